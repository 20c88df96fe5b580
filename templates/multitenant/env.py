"""Run this environment's migrations on every tenant: settings, tenants, migrations.

A tenant has a schema, a database or a URL of its own, and its own lock, transaction and
version table. What stands in Config.attributes["connection"] is the caller's.
"""

import sys
from functools import partial
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

from sqlalchemy import URL, Connection

from .connections import dialect_errors, run_on
from .fleet import Fleet, fleet_url, make_fleet
from .fleet_run import run_fleet, run_on_callers, run_revisions
from .fleet_script import script_of, tenants_of_script
from .fleet_settings import FLEET_KEYS, FLEET_OPTIONS, read_fleet_settings
from .metadata import autogenerate_hooks, find_metadata, require_models
from .migration_lock import in_transaction, migration_lock, version_errors
from .settings import Settings, read_settings, set_up_logging
from .tenant_schemas import entered, without_schemas
from .tenants import Tenant

# Only the alembic command sets logging up: a program keeps the logging that it has.
set_up_logging(context.config)

# Read before connecting, so that a mistake in the settings touches no database.
settings = read_settings(context.config, FLEET_KEYS, FLEET_OPTIONS)
options = read_fleet_settings(settings)
target_metadata = without_schemas(find_metadata(settings))
hooks = autogenerate_hooks(settings, target_metadata)
# Set a hook of your own here, such as hooks["include_object"] = include_object. It takes
# the place of the rules skip_views and keep_unknown_tables, and "render_item" that of
# import_types: to keep these, call the function that hooks had before, if it had one.


def configure(dialect: str, schema: str | None = None, **target: Any) -> None:
    """Configure Alembic for a tenant's connection or, with `--sql`, for a URL."""
    is_sqlite = dialect == "sqlite"
    with dialect_errors(dialect):
        context.configure(
            target_metadata=target_metadata,
            version_table=settings.version_table,
            version_table_schema=schema,
            transaction_per_migration=settings.transaction_per_migration,
            # SQLite copies a table to change it, in transactions that we begin ourselves.
            render_as_batch=is_sqlite,
            transactional_ddl=is_sqlite or None,
            data=settings.data,
            **hooks,
            **target,
        )
    require_models(context.get_context(), settings)


def run_tenant(connection: Connection, tenant: Tenant, now: Settings) -> str | None:
    """Run the command on a tenant in its lock; return where it is now, as Fleet says."""
    applied: list[Any] = []
    with entered(connection, tenant, context.get_context(), now):
        note: Any = {"on_version_apply": lambda **step: applied.append(step)}
        configure(connection.dialect.name, tenant.schema, connection=connection, **note)
        migrations = context.get_context()
        with migration_lock(connection, migrations, now, tenant.schema) as run:
            # A new transaction is begun if a table was not free in ddl_lock_timeout.
            target = in_transaction(run, partial(run_revisions, migrations, tenant))
    if applied:
        target = " ".join(sorted(applied[-1]["heads"]))
    return "" if target is None and (tenant.is_missing or migrations.purge) else target


def fleet_of(place: URL, **target: Any) -> Fleet:
    """Configure Alembic for the command, before any tenant, and return its fleet."""
    configure(place.get_backend_name(), **target)
    return make_fleet(settings, options, context.get_context(), place, run_tenant)


def run_migrations_offline() -> None:
    """Write the command's SQL for each tenant to standard output (`--sql`)."""
    url = fleet_url(settings, options, is_offline=True)
    named: Any = {"literal_binds": True, "dialect_opts": {"paramstyle": "named"}}
    fleet = fleet_of(url, url=url, **named)
    for tenant in tenants_of_script(fleet):
        place = tenant.url or url
        configure(place.get_backend_name(), tenant.schema, url=place, **named)
        script = script_of(fleet, tenant, context.static_output)
        with script, version_errors(context.get_context()), context.begin_transaction():
            context.run_migrations()


def run_migrations_online() -> None:
    """Run the command on the fleet: on what the caller has given, or on our engines."""
    if settings.connection is None:
        url = fleet_url(settings, options, is_offline=False)
        run_fleet(fleet_of(url, url=url))
    else:
        run_on(settings.connection, run_on_given, settings)


def run_on_given(connection: Connection) -> None:
    """Run the command on a connection of the caller, and on no other."""
    run_on_callers(fleet_of(connection.engine.url, connection=connection), connection)


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
