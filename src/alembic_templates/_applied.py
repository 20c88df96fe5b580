"""Which revisions a database is at, asked through the owner's own env.py.

That is what `alembic current` does. Nothing is written, a database that does not answer is no
error, and none is created: SQLite would make an empty file of a wrong path.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from alembic import command
from alembic.config import Config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Dialect, Engine, event

from alembic_templates._alembic_config import quiet
from alembic_templates.errors import TemplatesError

# The name of each driver's argument for the seconds that a connection may take.
_TIMEOUTS = {
    "psycopg": "connect_timeout",
    "psycopg_async": "connect_timeout",
    "psycopg2": "connect_timeout",
    "asyncpg": "timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "aiomysql": "connect_timeout",
    "asyncmy": "connect_timeout",
}
_SECONDS = 5


def applied_heads(config: Config) -> tuple[set[str], str | None]:
    """Return the words that `alembic current` prints for revisions, of all tenants in a fleet.

    With them comes why the database could not be asked, or which tenants, None if all were. Raises
    TemplatesError if a database is at a revision that has no file here: nobody knows what it has.
    """
    printed = io.StringIO()
    config.stdout = printed
    try:
        with quiet(logging.CRITICAL), _careful_connections():
            command.current(config)
    except Exception as error:
        unknown = _unknown_revision(error)
        if unknown is not None:
            raise _may_have_applied(unknown) from error
        # Only Alembic's own errors are shown: a driver's may show a URL with its password.
        said = isinstance(error, CommandError)
        return set(), str(error).partition("\n")[0] if said else type(error).__name__
    # The line of a tenant begins with its name, which could be the word of a revision.
    lines = [line.rpartition(": ") for line in printed.getvalue().splitlines()]
    of_tenants = {name: words for name, _, words in lines if words.endswith(" (unknown)")}
    for words in of_tenants.values():
        if words.split()[0] not in {"unreadable", "missing"}:
            raise _may_have_applied(words.removesuffix(" (unknown)"))
    names = [name for name, words in of_tenants.items() if words.startswith("unreadable ")]
    unasked = f"what tenant {', '.join(names)} is at cannot be read" if names else None
    return {word for _, _, words in lines for word in words.split()}, unasked


def _unknown_revision(error: BaseException | None) -> str | None:
    """Return the revision of a database that has no file here, if an error is about that."""
    while error is not None and not isinstance(error, ResolutionError):
        error = error.__cause__
    return None if error is None else str(error.argument)


def _may_have_applied(revision: str) -> TemplatesError:
    return TemplatesError(
        f"The database is at revision {revision}, which has no file here, so it may have applied "
        "what would move: run rebase where that file is, or use `alembic merge heads`."
    )


@contextmanager
def _careful_connections() -> Iterator[None]:
    """Connect to no SQLite file that does not exist, and to a server for some seconds only."""

    def check(dialect: Dialect, _record: Any, arguments: Any, options: dict[str, Any]) -> None:
        if dialect.name == "sqlite":
            path = _file(str(arguments[0])) if arguments else None
            if path and not path.exists():
                raise CommandError(f"{path} does not exist")
        elif dialect.driver in _TIMEOUTS:
            options.setdefault(_TIMEOUTS[dialect.driver], _SECONDS)

    event.listen(Engine, "do_connect", check)
    try:
        yield
    finally:
        event.remove(Engine, "do_connect", check)


def _file(name: str) -> Path | None:
    """Return the file that SQLite would open; None for a database in memory."""
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").partition("?")[0])
    return None if name in {"", ":memory:"} else Path(name)
