"""The URL of the database: where it comes from, and what is said about it.

`-x url=…` comes first, then sqlalchemy.url in the configuration, and last DATABASE_URL
in the process environment. In another order, a program or a test that sets a URL could
reach the database that a shell happens to name. No error and no log line shows a
password, nor a piece of one that an unquoted @ has moved into the host or into the name
of the database.
"""

import logging
import os
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .settings import Settings, argument, option

log = logging.getLogger("alembic.env")


def url_text(settings: Settings) -> str | None:
    """Return the URL as it is written, in the order given above; None if there is none.

    It may be empty: after `-x url=`, the other places are not looked at.
    """
    url = argument(settings.config, "url")
    if url is not None:
        return url
    return option(settings.config, "sqlalchemy.url") or os.environ.get("DATABASE_URL")


def database_url(settings: Settings, *, is_offline: bool) -> URL:
    """Return the URL of the database; the `alembic` command logs which database it is.

    With `--sql` (`is_offline`) nothing is connected to, and no line says so. Raises
    CommandError if there is no URL, or if it cannot be parsed.
    """
    text = url_text(settings)
    if not text:
        raise CommandError(
            "No database URL: give -x url=…, set sqlalchemy.url in section "
            f"[{settings.config.config_ini_section}] of the Alembic configuration, "
            "or set DATABASE_URL in the environment."
        )
    url = parse_url(text)
    if settings.is_alembic_command:
        if argument(settings.config, "url") is None:
            warn_of_other_url(url)
        if not is_offline:
            log.info("Running on %s.", describe(url))
    return url


def warn_of_other_url(used: URL) -> None:
    """Log a warning if DATABASE_URL names another database than the one that is used.

    People set DATABASE_URL and expect it to win; silence would send their migration to
    another database.
    """
    text = os.environ.get("DATABASE_URL")
    if not text:
        return
    try:
        other = make_url(text)
    except (ArgumentError, ValueError):
        other = None
    if other is not None and is_cut(text, other):
        other = None
    if other is None or location(other) != location(used):
        log.warning(
            "DATABASE_URL names %s and is not used: sqlalchemy.url comes first, and "
            "names %s.",
            describe(other) if other else "no database that can be read",
            describe(used),
        )


def location(url: URL) -> tuple[str, ...]:
    """Return the kind of server, the host, the port and the database of a URL.

    Two URLs of one database have the same, whatever their drivers and users.
    """
    kind = url.get_backend_name()
    kind = {"postgres": "postgresql", "mariadb": "mysql"}.get(kind, kind)
    if kind == "sqlite":
        file = url.database or ":memory:"
        is_path = not file.startswith((":memory:", "file:"))
        return kind, str(Path(file).resolve()) if is_path else file
    host = url.host or url.query.get("host") or "localhost"
    port = url.port or url.query.get("port")
    port = port or {"postgresql": 5432, "mysql": 3306}.get(kind)
    name = url.database or url.query.get("dbname") or url.username
    is_local = host in {"localhost", "127.0.0.1", "::1"}
    return kind, "localhost" if is_local else str(host), str(port), str(name)


def describe(url: URL) -> str:
    """Return text that names the database and the host, without user or password."""
    if is_misread(url):
        return "a database whose name is not shown, since the URL has an @ too many"
    in_memory = ":memory:" if url.get_backend_name() == "sqlite" else None
    name = url.database or in_memory
    shown = f"database {name!r}" if name else "its default database"
    if not url.host:
        return shown
    return f"{shown} on {url.host}" + (f":{url.port}" if url.port else "")


def parse_url(text: str, name: str = "The database URL") -> URL:
    """Return a URL from its text; raise CommandError, which does not show it.

    `name` says in the error which URL it is.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise CommandError(
            f"{name} cannot be parsed: expected dialect+driver://user:password@host/"
            "name, with the characters @ : / % of a user or password URL-quoted."
        ) from None
    # The URL of a fleet is refused earlier, since it is shown in many places with the
    # names of tenants filled in.
    if (
        is_cut(text, url)
        or "@" in (url.host or "")
        or ("{tenant}" in text and is_misread(url))
    ):
        raise misread(name)
    if url.get_backend_name() == "sqlite" and url.host:
        raise CommandError(
            f"{name} has a host, and SQLite has none: write three slashes, as in "
            "sqlite:///app.db, or four before an absolute path."
        )
    return url


def is_cut(text: str, url: URL) -> bool:
    """Tell whether SQLAlchemy has dropped what may be the end of a password.

    It drops a part of the query that has no `=`. If a password has an unquoted ? in it,
    that part is its end, and the @ in it shows that. It also drops what follows a host
    in brackets.
    """
    query = text.partition("?")[2].split("&")
    is_dropped = any("=" not in each and "@" in each for each in query)
    return is_dropped or text.partition(f"[{url.host}]")[2][:1] not in ":/?"


def is_misread(url: URL) -> bool:
    """Tell whether a part of a password may stand in another part of the URL.

    SQLAlchemy ends the password at an @, and reads what follows as the host, the
    database or the query. SQLite's URLs have no password, and a path may have an @.
    """
    is_file = url.get_backend_name() == "sqlite" and not (url.host or url.username)
    parts = [url.host, url.database, *url.query, *url.query.values()]
    return not is_file and any("@" in str(part) for part in parts)


def misread(name: str = "The database URL") -> CommandError:
    """Return the error for a URL whose parts are mixed up; it shows no part of the URL.

    It is returned and not raised, so that the caller can write `from None`: a traceback
    of the first error would show the parts.
    """
    return CommandError(
        f"{name} has an @ too many, so that it cannot be told where its password ends: "
        "write the characters @ : / % of a user or password as %40, %3A, %2F and %25, "
        "and in the Alembic configuration each % doubled."
    )
