"""A connection to run on, from whatever was given: a URL, a Connection, an engine.

Who makes something also ends it. A Connection or an engine of the caller is used, and
neither closed nor disposed of; otherwise a test would lose its connection, and an
application its pool. Only the pool of an AsyncEngine is emptied; see event_loop.py. An
engine that is made here for a URL is disposed of, also after an error; otherwise a
server would keep the connection of a program that goes on. If there can be no
connection, one sentence says why, without the password.

env.py calls run_on() or run_on_url(), and passes the function that migrates as `work`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic.util import CommandError
from sqlalchemy import URL, Connection, NullPool, engine_from_config
from sqlalchemy.exc import (
    ArgumentError,
    InvalidRequestError,
    NoSuchModuleError,
    OperationalError,
)

from .database_url import describe, is_misread, misread
from .optional_files import is_here
from .settings import Settings, engine_options

# What pip installs, by the name of the module that cannot be imported.
PACKAGES = {
    "MySQLdb": "mysqlclient, or pymysql with mysql+pymysql://",
    "aiomysql": "aiomysql",
    "aiosqlite": "aiosqlite",
    "asyncmy": "asyncmy",
    "asyncpg": "asyncpg",
    "greenlet": "'sqlalchemy[asyncio]'",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "pymysql": "pymysql",
}

T = TypeVar("T")
Work = Callable[[Connection], T]


def run_on(given: Any, work: Work[T], settings: Settings) -> T:
    """Call `work` with a connection to what is given, and return its result.

    `given` is what a program has put into Config.attributes["connection"]: a
    Connection, an Engine, an AsyncEngine, or any object whose connect() gives a
    Connection, as pytest-alembic passes one. Raises CommandError for anything else, a
    URL too.
    """
    if isinstance(given, Connection):
        return work(given)
    require_usable(given)
    if hasattr(given, "sync_engine"):
        return run_async(given, work, settings, is_callers=True)
    with given.connect() as connection:
        return work(connection)


def run_on_url(url: URL, work: Work[T], settings: Settings) -> T:
    """Call `work` with a connection to the database of a URL, and return its result.

    The engine has no pool: one command needs one connection. Raises CommandError if no
    engine can be made, or if the database does not answer.
    """
    with engine_errors(url):
        options = engine_options(settings)
        engine = engine_from_config(options, url=url, poolclass=NullPool)
    if engine.dialect.is_async:
        return run_async(engine, work, settings, is_callers=False)
    try:
        with connection_errors(url, settings):
            connection = engine.connect()
        with connection:
            return work(connection)
    finally:
        engine.dispose()


def run_async(engine: Any, work: Work[T], settings: Settings, *, is_callers: bool) -> T:
    """Call `work` with a connection of an engine whose driver is async.

    An engine of the caller (`is_callers`) cannot be used while an event loop runs in
    this thread, since its connections belong to that loop: CommandError says what to
    write instead. With an engine of ours, the work is then done in another thread.
    """
    if not is_here("event_loop"):
        raise CommandError(
            f"{engine.url.drivername}:// has an async driver, and this environment is "
            "sync: use a sync driver, or the environment of `alembic init -t asyncio`."
        )
    from . import event_loop  # type: ignore[attr-defined,unused-ignore]

    if is_callers and event_loop.is_running():
        raise unusable(engine)
    with engine_errors(engine.url):
        async_engine = event_loop.as_async_engine(engine)
    errors = connection_errors(engine.url, settings)
    returned: T = event_loop.run(async_engine, work, errors)
    return returned


def url_of(given: Any) -> URL:
    """Return the URL of a Connection, an engine or another object with connect().

    `--sql` needs only the dialect of what the caller has given. Raises CommandError for
    what run_on() would refuse.
    """
    if isinstance(given, Connection):
        return given.engine.url
    require_usable(given)
    url = getattr(given, "url", None)
    if isinstance(url, URL):
        return url
    with given.connect() as connection:
        return url_of(connection)


def require_usable(given: Any) -> None:
    """Raise CommandError for what is no engine.

    An async engine is refused as well if event_loop.py is not in this environment.
    """
    is_async = hasattr(given, "sync_engine")
    if not hasattr(given, "connect") or (is_async and not is_here("event_loop")):
        raise unusable(given)


def unusable(
    given: object,
    place: str = 'Config.attributes["connection"]',
    expected: str = "Connection or Engine",
) -> CommandError:
    """Return the error for what cannot be used, in a place where `expected` can.

    For an AsyncEngine or an AsyncConnection it shows the call that works: "Programmatic
    API use (connection sharing) with Asyncio" in Alembic's cookbook.
    """
    kind = type(given).__name__
    if hasattr(given, "sync_engine") or hasattr(given, "run_sync"):
        return CommandError(
            f"{place} is an {kind}, which cannot be used here: write a function that "
            "passes the Connection it takes there and runs the command, and call it by "
            "`await connection.run_sync(function)` on an AsyncConnection."
        )
    return CommandError(f"{place} is of type {kind}: expected a sqlalchemy {expected}.")


@contextmanager
def engine_errors(url: URL) -> Iterator[None]:
    """Say in one sentence why no engine can be made for a URL: raise CommandError.

    Nothing is connected to here. The driver is missing, or an option is wrong.
    """
    try:
        yield
    except (ImportError, NoSuchModuleError) as error:
        raise not_loaded(url.drivername, error) from error
    except (ArgumentError, InvalidRequestError, TypeError, ValueError) as error:
        if is_misread(url):
            raise misread() from None
        raise CommandError(
            f"No engine can be made for {url.drivername}:// ({error}): correct the "
            "sqlalchemy.* options or the dialect+driver of the database URL."
        ) from error


def not_loaded(drivername: str, error: Exception) -> CommandError:
    """Return the error for a dialect or a driver that cannot be imported."""
    if drivername.partition("+")[0] == "postgres":  # as Heroku writes it
        return CommandError("SQLAlchemy has no postgres://: write postgresql://.")
    pip = ""
    if isinstance(error, ImportError):
        # psycopg names no module if it is the library libpq that is missing.
        module = error.name or drivername.partition("+")[2]
        pip = f" (pip install {PACKAGES[module]})" if module in PACKAGES else ""
    return CommandError(
        f"The driver of {drivername}:// cannot be loaded ({first_line(error)}): "
        f"install it{pip}, or correct the dialect+driver of the database URL."
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error; of the driver's, if SQLAlchemy wraps one."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


@contextmanager
def connection_errors(url: URL, settings: Settings) -> Iterator[None]:
    """Say in one sentence which database does not answer: raise CommandError.

    Drivers raise errors of many classes here, and some messages quote the whole URL.
    """
    try:
        yield
    except Exception as error:
        if is_misread(url):  # the driver's message may show a part of the password
            raise misread() from None
        reason = first_line(error)
        refused = [
            name
            for name in settings.connect_args
            if re.search(rf"\b{re.escape(name)}\b", reason)
        ]
        # A driver refuses an argument by TypeError or ProgrammingError. An error of the
        # server is an OperationalError, and may contain the same word by chance.
        if refused and not isinstance(error, OperationalError | OSError):
            raise CommandError(
                f"The driver of {url.drivername}:// does not take {refused[0]!r} of "
                "option connect_args, or not its value: correct it, as the driver's "
                "connect() has it."
            ) from None
        todo = "check the URL and that the server runs"
        if url.get_backend_name() == "sqlite":
            folder = Path(url.database or "").absolute().parent
            todo = f"check the URL, and that the folder {folder} exists"
        raise CommandError(
            f"Cannot connect to {describe(url)} with {url.drivername} ({reason}): "
            f"{todo}."
        ) from error


@contextmanager
def dialect_errors(name: str) -> Iterator[None]:
    """Say in one sentence that a dialect is not known: raise CommandError.

    SQLAlchemy may not know it, or its driver. Alembic raises a bare KeyError, with the
    `name` of the dialect as its only argument.
    """
    try:
        yield
    except NoSuchModuleError as error:
        raise not_loaded(name, error) from error
    except KeyError as error:
        if error.args != (name,):
            raise
        raise CommandError(
            f"Alembic does not know the dialect {name}: expected one of its own, or "
            "one for which a package has a subclass of alembic.ddl.impl.DefaultImpl, "
            "imported by the models."
        ) from error
