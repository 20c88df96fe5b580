"""Run this environment's migrations, from settings to connection to migrations.

A Connection or an engine in Config.attributes["connection"] belongs to the caller: it is used, and
left as it was found. A transaction that the caller has begun is the caller's to commit. Where there
is none, the migrations run on an engine made here for the URL, sync or async as its driver is.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from logging.config import fileConfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import context
from alembic.util import CommandError, load_python_file
from sqlalchemy import URL, Connection, Engine, NullPool, StaticPool, engine_from_config

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

config = context.config

# Loaded by path, as Alembic loads this file, and not imported by name: another environment or the
# application may have modules of the same names.
here = Path(__file__).parent
settings = load_python_file(here, "migration_settings.py")
locking = load_python_file(here, "migration_lock.py")
rules = load_python_file(here, "autogenerate_rules.py")

# Only the alembic command sets logging up, and only where nobody has: a program that runs
# migrations, also through alembic.config.main(), keeps its loggers, handlers and levels.
by_command = hasattr(config.cmd_opts, "cmd") and not logging.getLogger().handlers
if by_command and config.file_config.has_section("loggers"):
    fileConfig(config.file_config, disable_existing_loggers=False)

target_metadata = settings.target_metadata()


def configure(dialect: str, **target: Any) -> None:
    """Configure Alembic's context for a connection or, with `--sql`, for a URL."""
    context.configure(
        target_metadata=target_metadata,
        transaction_per_migration=settings.flag("transaction_per_migration"),
        # SQLite changes a table by copying it, and its DDL is transactional once migration_lock
        # has begun the transaction.
        render_as_batch=dialect == "sqlite",
        transactional_ddl=True if dialect == "sqlite" else None,
        **rules.hooks(settings.option("autogenerate_rules"), target_metadata),
        **settings.version_table(),
        **target,
    )
    settings.require_metadata()


def run_migrations(connection: Connection) -> None:
    """Run the command on a connection: in its transaction, if one has begun, else in our own."""
    configure(connection.dialect.name, connection=connection)
    with (
        settings.known_version(),
        locking.migration_lock(
            connection,
            timeout=settings.seconds("lock_timeout", default=60),
            ddl_timeout=settings.seconds("ddl_lock_timeout"),
        ),
        context.begin_transaction(),
    ):
        context.run_migrations()


def run_migrations_offline() -> None:
    """Write the command's SQL to standard output (`--sql`). Neither database nor driver is needed."""
    given = config.attributes.get("connection")
    url: URL = settings.database_url() if given is None else getattr(given, "engine", given).url
    configure(
        url.get_backend_name(), url=url, literal_binds=True, dialect_opts={"paramstyle": "named"}
    )
    with settings.known_version(), context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    """Run the command on what the caller has given, or on an engine of our own."""
    given = config.attributes.get("connection")
    if given is None:
        run_on_own_engine(settings.database_url())
    elif isinstance(given, Connection):
        run_migrations(given)
    elif hasattr(given, "run_sync"):
        raise CommandError(
            f'Config.attributes["connection"] is an {type(given).__name__}, whose event loop must '
            "not be blocked: set it to the Connection that run_sync gives, as in "
            "`await connection.run_sync(upgrade)`."
        )
    elif hasattr(given, "sync_engine"):
        if event_loop_runs():
            raise CommandError(
                'Config.attributes["connection"] is an AsyncEngine and an event loop runs in this '
                "thread: open a connection of it there, and call "
                "`await connection.run_sync(function)` with a function that sets the Connection "
                "it takes and runs the command."
            )
        asyncio.run(run_on_async_engine(given))
    elif hasattr(given, "connect"):
        with given.connect() as connection:
            run_migrations(connection)
    else:
        raise CommandError(
            f'Config.attributes["connection"] is of type {type(given).__name__}: expected a '
            "sqlalchemy Connection, Engine or AsyncEngine."
        )


def run_on_own_engine(url: URL) -> None:
    """Make an engine for the URL, run the command on it, and dispose of it."""
    with settings.engine_errors(url):
        engine = engine_from_config(settings.engine_options(), url=url, poolclass=NullPool)
        if engine.dialect.is_async:
            # Imported here since it needs greenlet, which sync drivers do without.
            from sqlalchemy.ext.asyncio import AsyncEngine

            run = run_on_async_engine(AsyncEngine(engine))
    if not engine.dialect.is_async:
        run_on_engine(engine)
    elif event_loop_runs():
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, run).result()
    else:
        asyncio.run(run)


def run_on_engine(engine: Engine) -> None:
    """Run the command on a connection of a sync engine."""
    try:
        with settings.connection_errors(engine.url):
            connection = engine.connect()
        with connection:
            run_migrations(connection)
    finally:
        engine.dispose()


async def run_on_async_engine(engine: "AsyncEngine") -> None:
    """Run the command on a connection of an async engine, in the event loop of this coroutine."""
    # A pooled connection is tied to the event loop that opened it: none is taken from an earlier
    # loop, none is left to a later one. A StaticPool's one connection may be the database itself.
    pooled = not isinstance(engine.pool, StaticPool)
    if pooled:
        await engine.dispose(close=False)
    try:
        with settings.connection_errors(engine.url):
            connection = await engine.connect()
        try:
            await connection.run_sync(run_migrations)
        finally:
            await connection.close()
    finally:
        if pooled:
            await engine.dispose()


def event_loop_runs() -> bool:
    """Tell whether an event loop runs in this thread, where asyncio.run() would raise."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
