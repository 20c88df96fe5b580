"""Run this environment's migrations, from settings to connection to migrations.

What a program puts into Config.attributes["connection"] stays the program's: it is not
closed, and a transaction that the program has begun is not committed. If there is
nothing, an engine is made for the database URL, and disposed of at the end.
"""

import sys
from os.path import basename, dirname, realpath
from types import ModuleType
from typing import Any

import alembic
import sqlalchemy
from alembic import context
from alembic.util import CommandError

# Checked before the imports below, which fail on an older Alembic or SQLAlchemy.
if not hasattr(context.config, "get_alembic_option") or sqlalchemy.__version__ < "2":
    raise CommandError(
        f"Found Alembic {alembic.__version__} and SQLAlchemy {sqlalchemy.__version__}: "
        "upgrade to Alembic 1.16 and SQLAlchemy 2.0, or newer."
    )

# Alembic runs this file by its path, but relative imports need a package. It has the
# name under which the application has imported this folder, so that no class exists
# twice, or else the path for a name, so that two environments in a process stay apart.
if not __package__:
    here = realpath(dirname(__file__))
    __package__ = f"{here.replace('.', '%2E')} (alembic environment)"
    names = basename(dirname(__file__)), basename(here)
    likely = context.config.attributes.get("series_package", "")
    for name in (each for each in [likely, *sys.modules] if each.endswith(names)):
        paths = getattr(sys.modules.get(name), "__path__", [])
        if {realpath(path) for path in paths} == {here}:
            __package__ = name
            break
    if __package__ not in sys.modules:
        sys.modules[__package__] = ModuleType(__package__)
        sys.modules[__package__].__path__ = [here]
    __spec__.name = f"{__package__}.env"

from .connections import dialect_errors, run_on, run_on_url, url_of
from .database_url import database_url
from .metadata import autogenerate_hooks, find_metadata, require_models
from .migration_lock import in_transaction, migration_lock, version_errors
from .settings import read_settings, set_up_logging

# Only the alembic command sets logging up: a program keeps the logging that it has.
set_up_logging(context.config)

# Read before connecting, so that a mistake in the settings touches no database.
settings = read_settings(context.config)
target_metadata = find_metadata(settings)
hooks = autogenerate_hooks(settings, target_metadata)
# Set a hook of your own here, such as hooks["include_object"] = include_object. It takes
# the place of the rules skip_views and keep_unknown_tables, and "render_item" that of
# import_types: to keep these, call the function that hooks had before, if it had one.


def configure(dialect: str, **target: Any) -> None:
    """Configure Alembic for a connection or, with `--sql`, for a URL."""
    is_sqlite = dialect == "sqlite"
    with dialect_errors(dialect):
        context.configure(
            target_metadata=target_metadata,
            version_table=settings.version_table,
            version_table_schema=settings.version_table_schema,
            transaction_per_migration=settings.transaction_per_migration,
            # SQLite copies a table to change it, in transactions that we begin ourselves.
            render_as_batch=is_sqlite,
            transactional_ddl=is_sqlite or None,
            data=settings.data,
            **hooks,
            **target,
        )
    require_models(context.get_context(), settings)


def run_migrations(connection: sqlalchemy.Connection) -> None:
    """Run the command on a connection, in the caller's transaction or in our own."""
    # Send no statement before the lock: its transaction would count as the caller's.
    configure(connection.dialect.name, connection=connection)
    with migration_lock(connection, context.get_context(), settings) as run:
        # A new transaction is begun if a table was not free in ddl_lock_timeout.
        in_transaction(run, context.run_migrations)


def run_migrations_offline() -> None:
    """Write the command's SQL to standard output (`--sql`), without a database."""
    given = settings.connection
    url = database_url(settings, is_offline=True) if given is None else url_of(given)
    named = {"paramstyle": "named"}
    configure(url.get_backend_name(), url=url, literal_binds=True, dialect_opts=named)
    with version_errors(context.get_context()), context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    """Run the command on what the caller has given, or on an engine of our own."""
    if settings.connection is not None:
        run_on(settings.connection, run_migrations, settings)
    else:
        run_on_url(database_url(settings, is_offline=False), run_migrations, settings)


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
