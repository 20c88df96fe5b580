"""Run this environment's migrations on every tenant, from settings to tenants to migrations.

A tenant has a schema (PostgreSQL), a database addressed by USE (MySQL, MariaDB), or a database of its
own where the URL has {tenant} in it. Each is run by itself: with its lock, its transaction and its
version table. A Connection or an engine in Config.attributes["connection"] belongs to the caller: it
is used, and left as it was found.
"""

from collections.abc import Callable
from functools import partial
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
rules = load_python_file(here, "autogenerate_rules.py")
event_loop = load_python_file(here, "event_loop.py")
fleets = load_python_file(here, "fleet.py")
# What fleet.py has loaded is not loaded again, since each command of a program runs this file anew.
settings, locking, names, schemas = fleets.settings, fleets.locking, fleets.names, fleets.schemas
runs, processes, replay = fleets.runs, fleets.processes, fleets.replay

# Only the alembic command sets logging up: a program that runs migrations, also one that calls
# alembic.config.main(), keeps its loggers, handlers and levels.
if settings.run_by_alembic_command() and config.file_config.has_section("loggers"):
    fileConfig(config.file_config, disable_existing_loggers=False)

# Read before anything is connected, so that a mistake in them leaves nothing behind.
target_metadata = names.without_schemas(settings.target_metadata())
version_table = names.version_table(settings.version_table())
hooks = rules.hooks(settings.option("autogenerate_rules"), target_metadata)
options = {
    **hooks,
    "target_metadata": target_metadata,
    "version_table": version_table,
    "transaction_per_migration": settings.flag("transaction_per_migration"),
    "include_name": schemas.without_table(version_table, hooks["include_name"]),
}
lock_timeout = settings.seconds("lock_timeout", default=60)
ddl_lock_timeout = settings.seconds("ddl_lock_timeout")
jobs = processes.number_of_jobs(settings.setting("jobs"))
creates, fail_fast = (settings.truth(x, settings.argument(x)) for x in ("create", "fail_fast"))
replays = settings.truth("replay", settings.setting("replay"))
given_tenants = settings.argument("tenant")
if given_tenants is None:
    given_tenants = config.attributes.get("tenant")


def configure(dialect: str, schema: str | None, **target: Any) -> None:
    """Configure Alembic's context for a tenant's connection or, with `--sql`, for a URL.

    All options are given each time, since Alembic keeps those of the tenant before.
    """
    sqlite = dialect == "sqlite"
    # SQLite changes a table by copying it, and its DDL is transactional in the transactions that
    # migration_lock begins.
    context.configure(
        render_as_batch=sqlite,
        transactional_ddl=sqlite or None,
        version_table_schema=schema,
        **options,
        **target,
    )
    settings.require_metadata()


def run_tenant(connection: Connection, task: Any, *, put_back: bool = False) -> bool:
    """Run the command on a tenant, in its own lock and transaction; tell whether it did anything."""
    applied: list[Any] = []
    with schemas.entered(connection, task, put_back=put_back), runs.cleaned():
        target = {"connection": connection, "on_version_apply": lambda **step: applied.append(step)}
        configure(connection.dialect.name, task.schema, **target)
        migrations = context.get_context()
        with (
            settings.known_version(),
            locking.migration_lock(connection, timeout=task.timeout, ddl_timeout=ddl_lock_timeout),
            context.begin_transaction(),
        ):
            schemas.complete(migrations, task)
            if task.script and set(migrations.get_current_heads()) == set(task.heads):
                replay.run(connection, task.script, task.schema)
                return True
            context.run_migrations()
    return bool(applied) or task.missing or migrations.purge


def fleet_of(given: Any) -> Any:
    """Return the fleet of the configured URL, or of the connection or engine that the caller gives."""
    if given is None:
        url = settings.database_url()
        by_url = names.in_url(url)
    else:
        url = getattr(given, "engine", given).url
        by_url = names.leads_to_tenant(url, settings.url_text())
    return fleets.Fleet(
        url=url, by_url=by_url, given=given_tenants, creates=creates, version_table=version_table,
        lock_timeout=lock_timeout, on_engine=on_engine, configure=configure, run_tenant=run_tenant,
    )  # fmt: skip


def run_migrations_offline() -> None:
    """Write the command's SQL for each tenant to standard output (`--sql`)."""
    given = config.attributes.get("connection")
    fleet = fleet_of(given)
    target = {"url": fleet.url, "literal_binds": True, "dialect_opts": {"paramstyle": "named"}}
    write = partial(configure, fleet.url.get_backend_name(), **target)
    fleets.write_scripts(fleet, given if isinstance(given, Connection) else None, write)


def run_migrations_online() -> None:
    """Run the command on the fleet: on what the caller has given, or on engines of our own."""
    given = config.attributes.get("connection")
    is_async = hasattr(given, "sync_engine")
    if given is None:
        fleet = fleet_of(None)
        with settings.engine_errors(fleet.url):
            configure(fleet.url.get_backend_name(), None, url=fleet.url)
        if locking.only_reads(context.get_context()):
            fleets.on_server(fleet, lambda connection: fleets.read(fleet, connection))
        else:
            fleets.migrate(fleet, jobs=jobs, fail_fast=fail_fast, replays=replays)
    elif isinstance(given, Connection):
        run_on_given(given)
    elif not hasattr(given, "connect") or (is_async and event_loop.runs()):
        raise settings.unusable(given)
    elif is_async:
        event_loop.run(given, run_on_given, settings.connection_errors)
    else:
        with given.connect() as connection:
            run_on_given(connection)


def run_on_given(connection: Connection) -> None:
    """Run the command on a connection of the caller, and on no other."""
    configure(connection.dialect.name, None, connection=connection)
    fleets.run_given(fleet_of(connection), connection)


def on_engine(url: URL, work: Callable[[Connection], Any]) -> Any:
    """Make an engine for a URL, return what some work on a connection gives, and dispose of it."""
    with settings.engine_errors(url):
        engine = engine_from_config(settings.engine_options(), url=url, poolclass=NullPool)
        if engine.dialect.is_async:
            # Imported here since it needs greenlet, which sync drivers do without.
            event_loop.require_greenlet()
            from sqlalchemy.ext.asyncio import AsyncEngine

    if engine.dialect.is_async:
        return event_loop.run(AsyncEngine(engine), work, settings.connection_errors)
    try:
        with settings.connection_errors(url):
            connection = engine.connect()
        with connection:
            return work(connection)
    finally:
        engine.dispose()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
