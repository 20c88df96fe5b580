"""The servers of a fleet: which one a tenant is on, and what to do if it is down.

A server that does not answer costs the tenants that it has, and no others. Without
this, a run would try to connect to it once for each of its tenants. A server that has
answered in this run is probably being restarted, so it is waited for, up to
lock_timeout seconds.
"""

import logging
import mmap
import re
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from alembic.util import CommandError
from sqlalchemy import URL, Connection
from sqlalchemy.exc import ArgumentError

from .connections import run_on_url
from .database_url import is_misread, location
from .migration_lock import LockNotAvailable
from .settings import Settings

log = logging.getLogger("alembic.env")

T = TypeVar("T")

# How PostgreSQL refuses connections while it starts or stops.
BETWEEN = re.compile(r"database system is (starting|shutting|in recovery|not yet)")

# The arguments of asyncpg and of SQLAlchemy for it, without which both keep statements.
UNPREPARED = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}

# So long a server may take to accept a connection, in seconds.
PATIENCE = 10


class Servers:
    """The connections of a run, and what is known of its servers.

    `answered` has those that have answered, and `down` those that do not, each with its
    name as it is shown, and the reason. Worker processes that are forked know what
    their parent has found out. The byte `stopped`, which they share with it, is 1 if
    the run was stopped: they wait no longer then.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.answered: set[str | None] = set()
        self.down: dict[str | None, tuple[str, str]] = {}
        self.stopped = mmap.mmap(-1, 1)

    def run_on(self, url: URL, work: Callable[[Connection], T]) -> T:
        """Call `work` with a connection to the database of a URL; return its result.

        Raises CommandError if it cannot be connected to, without a try if its server is
        down, and LockNotAvailable if the run was stopped.
        """
        server, start = server_of(url), time.monotonic()
        if server in self.down:
            raise self.error(server)
        has_warned = False
        opened: list[Connection] = []

        def connected(connection: Connection) -> T:
            opened.append(connection)
            self.answered.add(server)
            return work(connection)

        while True:
            try:
                return run_on_url(url, connected, self.unprepared(url))
            except CommandError as error:
                reason = None if opened else why_down(url, error)
                if reason is None:
                    raise
                limit = self.settings.lock_timeout if server in self.answered else 0.0
                left = start + limit - time.monotonic()
                if left <= 0:
                    self.down[server] = shown_server(url), reason
                    raise self.error(server) from error
            if not has_warned:
                shown = shown_server(url)
                log.warning("Waiting up to %g seconds for server %s.", limit, shown)
            has_warned = True
            self.sleep(min(0.2, left))

    def unprepared(self, url: URL) -> Settings:
        """Return the settings, with which asyncpg keeps no statement that it prepares.

        See nothing_prepared() in tenant_schemas.py, which psycopg needs.
        """
        if not url.drivername.endswith("+asyncpg"):
            return self.settings
        arguments = {**UNPREPARED, **self.settings.connect_args}
        return replace(self.settings, connect_args=arguments)

    def sleep(self, seconds: float) -> None:
        """Sleep in a wait for a server, a lock or a table.

        Raises LockNotAvailable if the run was stopped.
        """
        if self.stopped[0]:
            raise LockNotAvailable("The run was stopped.")
        self.settings.sleep(seconds)

    def error(self, server: str | None) -> CommandError:
        """Return the error for a server that is down."""
        shown, reason = self.down[server]
        return CommandError(
            f"The server {shown} does not answer ({reason}): start it, and run the "
            "command again."
        )


def server_of(url: URL | None) -> str | None:
    """Return the host and port of a URL as text; None if no server is known.

    That is so for a file of SQLite, and for a tenant without a URL of its own.
    """
    place = () if url is None else location(url)
    return f"{place[1]}:{place[2]}" if len(place) == 4 else None


def shown_server(url: URL) -> str:
    """Return the host and port of a server, with the host as the URL has it."""
    host = url.host or url.query.get("host") or "localhost"
    return f"{host}:{location(url)[2]}"


def why_down(url: URL, error: CommandError) -> str | None:
    """Return why a server takes no connection at all; None if another database might.

    `error` is that of a connection that has failed. Drivers have no common error for
    that, so the server's port is tried without a driver. Several hosts or ports, and a
    port that is not known, cannot be tried.
    """
    if isinstance(error.__cause__, ImportError | ArgumentError):  # there is no engine
        return None
    host = url.host or url.query.get("host")
    if server_of(url) is None or is_misread(url) or not isinstance(host, str):
        return None
    port = location(url)[2]
    if "," in host or not port.isdecimal():
        return None
    if BETWEEN.search(str(error.__cause__)):
        return "it starts or stops"
    try:
        if host.startswith("/"):  # the folder of PostgreSQL's socket
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"{host}/.s.PGSQL.{port}")
        else:
            socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as failure:
        return getattr(failure, "strerror", None) or str(failure)
    return None
