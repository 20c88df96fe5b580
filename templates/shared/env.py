"""Run this environment's migrations, from settings to connection to migrations.

A Connection or an engine in Config.attributes["connection"] belongs to the caller: it is used, and
left as it was found. A transaction that the caller has begun is the caller's to commit. Where there
is none, the migrations run on an engine made here for the URL, sync or async as its driver is.
"""

from logging.config import fileConfig
from pathlib import Path
from typing import Any

from alembic import context
from alembic.util import load_python_file
from sqlalchemy import URL, Connection, NullPool, engine_from_config

config = context.config

# Loaded by path, as Alembic loads this file, and not imported by name: another environment or the
# application may have modules of the same names.
here = Path(__file__).parent
settings = load_python_file(here, "migration_settings.py")
locking = load_python_file(here, "migration_lock.py")
rules = load_python_file(here, "autogenerate_rules.py")
event_loop = load_python_file(here, "event_loop.py")

# Only the alembic command sets logging up: a program that runs migrations, also one that calls
# alembic.config.main(), keeps its loggers, handlers and levels.
if settings.run_by_alembic_command() and config.file_config.has_section("loggers"):
    fileConfig(config.file_config, disable_existing_loggers=False)

# Read before anything is connected, so that a mistake in them leaves nothing behind.
target_metadata = settings.target_metadata()
options = {
    "target_metadata": target_metadata,
    "transaction_per_migration": settings.flag("transaction_per_migration"),
    **rules.hooks(settings.option("autogenerate_rules"), target_metadata),
    **settings.version_table(),
}
lock_timeout = settings.seconds("lock_timeout", default=60)
ddl_lock_timeout = settings.seconds("ddl_lock_timeout")


def configure(dialect: str, **target: Any) -> None:
    """Configure Alembic's context for a connection or, with `--sql`, for a URL."""
    sqlite = dialect == "sqlite"
    # SQLite changes a table by copying it, and its DDL is transactional in the transactions that
    # migration_lock begins.
    context.configure(render_as_batch=sqlite, transactional_ddl=sqlite or None, **options, **target)
    settings.require_metadata()


def run_migrations(connection: Connection) -> None:
    """Run the command on a connection: in its transaction, if one has begun, else in our own."""
    configure(connection.dialect.name, connection=connection)
    with (
        settings.known_version(),
        locking.migration_lock(connection, timeout=lock_timeout, ddl_timeout=ddl_lock_timeout),
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
    is_async = hasattr(given, "sync_engine")
    if given is None:
        run_on_own_engine(settings.database_url())
    elif isinstance(given, Connection):
        run_migrations(given)
    elif not hasattr(given, "connect") or (is_async and event_loop.runs()):
        raise settings.unusable(given)
    elif is_async:
        event_loop.run(given, run_migrations, settings.connection_errors)
    else:
        with given.connect() as connection:
            run_migrations(connection)


def run_on_own_engine(url: URL) -> None:
    """Make an engine for the URL, run the command on it, and dispose of it."""
    with settings.engine_errors(url):
        engine = engine_from_config(settings.engine_options(), url=url, poolclass=NullPool)
        if engine.dialect.is_async:
            # Imported here since it needs greenlet, which sync drivers do without.
            event_loop.require_greenlet()
            from sqlalchemy.ext.asyncio import AsyncEngine

    if engine.dialect.is_async:
        event_loop.run(AsyncEngine(engine), run_migrations, settings.connection_errors)
        return
    try:
        with settings.connection_errors(url):
            connection = engine.connect()
        with connection:
            run_migrations(connection)
    finally:
        engine.dispose()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
