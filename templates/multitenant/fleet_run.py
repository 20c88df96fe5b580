"""A command on the whole fleet: run the tenants that are behind, one after the other.

Each tenant has its own lock, transaction and version table. So a tenant that fails
keeps its old version, and the others go on; in one transaction for all, one bad row of
one customer would stop a deployment. To run the command again does what is left. With
jobs, worker processes share the tenants; each worker uses one connection for many of
them.

On a connection of the caller, one process does the work, and no connection is opened.
"""

import logging
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import chain

from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection

from . import fleet_workers, tenant_names, tenant_schemas
from .database_url import parse_url, url_text
from .fleet import (
    MISSING,
    Fleet,
    all_tenants,
    describe_error,
    find,
    has_steps,
    left_without_transaction,
)
from .fleet_read import read
from .fleet_report import Result, Run, report
from .fleet_servers import server_of, shown_server
from .migration_lock import LockNotAvailable, TurnLost, reads_only, revisions_in
from .optional_files import is_here, require_file
from .tenants import Tenant, chosen, is_several

log = logging.getLogger("alembic.env")

# The databases that commit at each DDL statement.
COMMITTING = {"mysql", "mariadb", "oracle"}


def run_fleet(fleet: Fleet) -> None:
    """Run the command on connections of our own, whether it migrates or reads."""
    if reads_only(fleet.migrations, fleet.settings):
        fleet.on_server(partial(read, fleet))
    else:
        migrate(fleet)


def migrate(fleet: Fleet) -> None:
    """Run a command that migrates on all tenants that it has something to do for.

    The connection that finds them is closed before worker processes are forked, since
    two processes must not use one. At the end, report() raises if a tenant has failed.
    """
    run = Run(fleet)
    by_command = fleet.settings.is_alembic_command
    jobs = fleet_workers.possible_jobs(fleet.options.jobs)
    serve = partial(serve_tenants, fleet)
    with fleet_workers.stoppable(run, by_command=by_command):
        fleet.on_server(partial(plan, run, jobs))
        with fleet_workers.workers(min(jobs, run.left), serve) as workers, shown(run):
            if workers:
                fleet_workers.share(run, workers)
            else:
                fleet_workers.work_alone(run, serve)
    report(run)


def plan(run: Run, jobs: int, connection: Connection | None) -> None:
    """Fill the run with the tenants that have something to do.

    Those that are at the target, and those that do not exist, get their result here.
    `connection` is that of Fleet.on_server(). Raises CommandError if the server has no
    connections for so many jobs.
    """
    fleet = run.fleet
    replays = fleet.options.replays and fleet.command in {"upgrade", "downgrade"}
    steps_from = cache(partial(has_steps, fleet))
    for tenant in find(fleet, connection, versions=replays or not fleet.has_own_urls):
        if tenant.is_missing and not fleet.options.creates:
            run.record(Result(tenant.name, "failed", error=f"{MISSING}."))
        elif tenant.heads is not None and not steps_from(tenant.heads):
            run.record(Result(tenant.name, "current", " ".join(tenant.heads)))
        else:
            heads = () if tenant.is_missing else tenant.heads
            run.waiting.append(replace(tenant, heads=heads))
    if run.waiting and jobs > 1:
        require_connections(run, jobs, connection)
    if replays:
        run.waiting = deque(with_scripts(fleet, list(run.waiting), connection))


def require_connections(run: Run, jobs: int, connection: Connection | None) -> None:
    """Raise CommandError if a server has too few free connections for the jobs.

    Without this, workers would fail one by one, and the application would get no
    connection. A server that does not answer is given up here, with its tenants.
    """
    firsts: dict[str | None, Tenant] = {}
    for tenant in run.waiting:
        firsts.setdefault(server_of(tenant.url), tenant)
    for server, tenant in firsts.items():
        free = free_connections(run.fleet, tenant, connection)
        if server in run.fleet.servers.down:
            run.give_up(server, str(run.fleet.servers.error(server)))
        if free is not None and jobs > free:
            where = (
                f" {shown_server(tenant.url)}" if tenant.url and len(firsts) > 1 else ""
            )
            raise CommandError(
                f"{jobs} jobs need {jobs} connections, and the server{where} has "
                f"{free} left: set jobs to {free} or less, or raise max_connections."
            )


def free_connections(
    fleet: Fleet, tenant: Tenant, connection: Connection | None
) -> int | None:
    """Return how many connections the server of a tenant has free.

    That is None if the database is no server, or if the tenant cannot be connected to:
    its run will fail.
    """
    ask = tenant_schemas.free_connections
    if tenant.url is None:
        assert connection is not None
        return ask(connection)
    if tenant.url.get_backend_name() not in tenant_names.LONGEST:
        return None
    try:
        return fleet.on_tenant(tenant, ask)
    except CommandError:
        return None


def with_scripts(
    fleet: Fleet, tenants: list[Tenant], connection: Connection | None
) -> list[Tenant]:
    """Return the tenants, each with the script to replay.

    A script is rendered once for all tenants that are at the same version. Raises
    CommandError if the owner has deleted replay.py.
    """
    require_file("replay", "replay=true")
    from .replay import render_scripts  # type: ignore[import,unused-ignore]

    filled: list[Tenant] = render_scripts(fleet, tenants, connection)
    return filled


def run_revisions(migrations: MigrationContext, tenant: Tenant) -> str | None:
    """Run the revisions of a tenant, or their script; return where the script leads.

    A transaction has begun, or Alembic begins one for each revision.
    """
    tenant_schemas.create_what_is_missing(migrations, tenant)
    assert migrations.connection is not None
    target = replayed(migrations.connection, migrations, tenant)
    if target is None:
        context.run_migrations()
    return target


def replayed(
    connection: Connection, migrations: MigrationContext, tenant: Tenant
) -> str | None:
    """Run the script of a tenant in place of its revisions, and return where it leads.

    It is not run, and None is returned, if the tenant has none, or is not at the
    version that it starts from: another run may have been there since.
    """
    if tenant.script is None:
        return None
    if set(migrations.get_current_heads()) != set(tenant.heads or ()):
        return None
    from .replay import run_script  # type: ignore[import,unused-ignore]

    run_script(connection, migrations, tenant)
    return tenant.script.target


def serve_tenants(
    fleet: Fleet, tenants: Iterator[Tenant], report: Callable[[Result], None]
) -> None:
    """Run tenants as they come, in a worker process or in this one.

    `report` gets the result of each. Tenants with schemas share one connection. Each
    tenant with a URL gets its own: PostgreSQL has no statement that changes the
    database of a session.
    """
    for tenant in tenants:
        if tenant.url is not None:
            report(attempt(fleet, tenant, partial(run_by_url, fleet)))
            continue
        several = chain([tenant], tenants)
        try:
            fleet.servers.run_on(fleet.url, partial(serve_on, fleet, several, report))
        except CommandError as error:  # there is no connection
            report(failed(fleet, tenant, error))


def run_by_url(fleet: Fleet, tenant: Tenant) -> str | None:
    """Run a tenant on a connection to its own database; return what run_tenant does."""
    return fleet.on_tenant(tenant, lambda own: fleet.run(own, tenant))


def serve_on(
    fleet: Fleet,
    tenants: Iterator[Tenant],
    report: Callable[[Result], None],
    connection: Connection,
) -> None:
    """Run tenants as they come, on one connection, until one of them fails.

    Nobody knows what a failed tenant has set in the session. So the session ends, and
    the next tenant gets a new one.
    """
    for tenant in tenants:
        result = attempt(fleet, tenant, partial(fleet.run, connection))
        # An open transaction would look to the next tenant like one of a caller.
        connection.rollback()
        if result.outcome == "failed":
            connection.invalidate()
        report(result)
        if connection.invalidated:
            return


def attempt(
    fleet: Fleet, tenant: Tenant, work: Callable[[Tenant], str | None]
) -> Result:
    """Run a tenant by `work`, and return the result with its error, if there is one.

    `work` returns the revisions that the tenant is at then, None if it has changed
    nothing. An error does not end the run of the fleet, whatever its class; SystemExit
    in a revision is one, too. Only TurnLost is raised: a command of another thread runs
    then.
    """
    start = time.monotonic()
    try:
        revision = work(tenant)
    except TurnLost:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any error is a result
        return failed(fleet, tenant, error, time.monotonic() - start)
    outcome = "current" if revision is None else "changed"
    seconds = time.monotonic() - start
    return Result(tenant.name, outcome, revision, seconds=seconds)


def failed(
    fleet: Fleet, tenant: Tenant, error: BaseException, seconds: float = 0.0
) -> Result:
    """Return the result of a tenant that an error has ended."""
    outcome, servers = "failed", fleet.servers
    is_left = not tenant.is_last_try or servers.stopped[0]
    if server_of(tenant.url or fleet.url) in servers.down:
        outcome = "down"
    elif isinstance(error, LockNotAvailable) and is_left:
        outcome = "locked"
    dialect = (tenant.url or fleet.url).get_backend_name()
    commits, has_run = dialect in COMMITTING, tenant.script is not None
    said = describe_error(error, commits=commits, has_run=has_run)
    log.debug("Tenant %r: %s", tenant.name, said, exc_info=error)
    revision = next((name for name, _ in reversed(revisions_in(error))), None)
    trace = ""
    if getattr(fleet.settings.config.cmd_opts, "raiseerr", False):
        trace = "\n" + "".join(traceback.format_exception(error))
    return Result(tenant.name, outcome, revision, said, trace, seconds)


@contextmanager
def shown(run: Run) -> Iterator[None]:
    """Show how far the run is: a bar on a terminal, a line for each tenant elsewhere.

    The log of a deployment keeps lines, and would be filled by a bar. Above the bar, an
    error is written when it comes for the first time.
    """
    if not (run.left and sys.stderr.isatty() and is_here("progress")):
        yield
        return
    from .progress import bar  # type: ignore[import,unused-ignore]

    def advance(result: Result) -> None:
        newest = next(reversed(run.failures.values()), None)
        if newest is not None and newest.first is result:
            shown_bar.write(f"Tenant {result.name!r} failed: {result.error}")
        shown_bar.advance()

    with bar(run.left) as shown_bar:
        run.shown = advance
        yield


def run_on_callers(fleet: Fleet, connection: Connection) -> None:
    """Run the command on a connection of the caller, and on no other.

    If the connection leads to a tenant's own database, the command is run once, for
    that tenant. The connection is left in a transaction only if it was in one before.
    """
    with left_without_transaction(connection):
        if fleet.has_own_urls:
            if fleet.options.part != (0, 1):
                raise CommandError(
                    "The connection leads to the database of one tenant, and -x part "
                    "asks for a part of the fleet: leave it out, or pass no connection."
                )
            if fleet.options.given is not None:
                require_leads_to(fleet, connection)
            fleet.run(connection, Tenant("", is_last_try=True))
            return
        in_callers = connection.in_transaction()
        refuse_without_database(connection)
        if not in_callers:
            connection.rollback()
        is_reading = reads_only(fleet.migrations, fleet.settings)
        if is_reading and fleet.command not in (None, "read"):
            read(fleet, connection)
        else:
            run_one_by_one(fleet, connection, is_reading=is_reading)


def run_one_by_one(fleet: Fleet, connection: Connection, *, is_reading: bool) -> None:
    """Run tenants on the connection of the caller, one after the other.

    If the caller has begun a transaction, the first error ends the run and is raised,
    since the transaction may be broken. Otherwise the others go on, and CommandError
    names those that failed.
    """
    fleet = with_creation(fleet)
    in_callers = connection.in_transaction()
    tenants = find(fleet, connection, versions=False)
    if is_reading and len(tenants) > 1:
        raise CommandError(
            f"{len(tenants)} tenants are meant, and what is asked for is known of one "
            "at a time: name it in Migrations(connection, tenant=[name]) or "
            'Config.attributes["tenant"].'
        )
    # The version of one tenant is read in its own run, with the lock: on MySQL and
    # MariaDB, the caller's transaction keeps seeing what its first SELECT has seen. And
    # only functions of Alembic's own commands can be called once more to see their
    # steps; another function may do work.
    looks = len(tenants) > 1 and fleet.command in {"upgrade", "downgrade", "stamp"}
    if looks:
        table = fleet.settings.version_table
        tenants = tenant_schemas.with_versions(
            connection, tenants, table, in_callers=in_callers
        )
    steps_from = cache(partial(has_steps, fleet))
    run = Run(fleet)
    run.waiting.extend(replace(each, is_last_try=True) for each in tenants)
    run_tenant = partial(run_callers_tenant, fleet, connection)
    for tenant in iter(run.take, None):
        if looks and tenant.heads is not None and not steps_from(tenant.heads):
            run.record(Result(tenant.name, "current", " ".join(tenant.heads)))
        elif len(tenants) == 1 or in_callers:
            run_tenant(tenant)
            del run.under_way[tenant.name]
        else:
            run.record(attempt(fleet, tenant, run_tenant))
    if run.counts and not in_callers:
        report(run)


def with_creation(fleet: Fleet) -> Fleet:
    """Return the fleet; it creates the schema of the one tenant that a series is for.

    An application adds a customer in this way. `-x create=false` is obeyed.
    """
    given, options = fleet.options.given, fleet.options
    is_one = isinstance(given, str) and not is_several(given)
    is_one = is_one or (isinstance(given, list | tuple) and len(set(given)) == 1)
    is_series = fleet.settings.series_command in {"upgrade", "create_all"}
    if is_one and is_series and options.creates is None:
        return replace(fleet, options=replace(options, creates=True))
    return fleet


def run_callers_tenant(
    fleet: Fleet, connection: Connection, tenant: Tenant
) -> str | None:
    """Run a tenant on the caller's connection; return what run_tenant does.

    Raises CommandError if the tenant does not exist and may not be created.
    """
    if tenant.is_missing and not fleet.options.creates:
        raise CommandError(f"Tenant {tenant.name!r} failed: {MISSING}.")
    return fleet.run(connection, tenant)


def refuse_without_database(connection: Connection) -> None:
    """Raise CommandError if USE could not be undone on a connection of the caller.

    MySQL and MariaDB have no statement to leave a database without entering another.
    """
    is_mysql = connection.dialect.name != "postgresql"
    if is_mysql and tenant_schemas.current_database(connection) is None:
        raise CommandError(
            "The connection has no database that it could be put back to, and USE "
            "would leave it at a tenant's: name one in its URL."
        )


def require_leads_to(fleet: Fleet, connection: Connection) -> None:
    """Raise CommandError if a connection is not to the database of the named tenant.

    Without this, a program that mixes up two connections would migrate a wrong tenant.
    """
    known = partial(all_tenants, fleet, connection)
    names = chosen(fleet.options, lambda: [each.name for each in known()])
    if len(names) != 1:
        raise CommandError(
            f"{len(names)} tenants are named, and the connection leads to the database "
            "of one: name one, or pass no connection."
        )
    template = url_text(fleet.settings) or ""
    if tenant_names.is_per_tenant(template):
        url = connection.engine.url
        tenant_names.require_place(names[0], parse_url(template), url)
