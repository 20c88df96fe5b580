"""A command on the whole fleet: find the tenants, run those that are behind, say what came of it."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from inspect import getclosurevars
from itertools import chain
from pathlib import Path
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.script.revision import MultipleHeads, ResolutionError
from alembic.util import CommandError, load_python_file
from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

here = Path(__file__).parent
settings = load_python_file(here, "migration_settings.py")
locking = load_python_file(here, "migration_lock.py")
names = load_python_file(here, "tenant_names.py")
schemas = load_python_file(here, "tenant_schemas.py")
processes = load_python_file(here, "fleet_workers.py")
runs = processes.runs
replay = load_python_file(here, "replay.py")

log = logging.getLogger("alembic.env")


@dataclass(frozen=True)
class Fleet:
    """Where the tenants are, which of them are meant, and what env.py does with one.

    `by_url` says that each tenant has a database of its own, with its name for {tenant} in `url`.
    `given` is what names tenants, None for all. `on_engine` runs a function on a connection to a
    URL; `configure` and `run_tenant` are those of env.py.
    """

    url: URL
    by_url: bool
    given: Any
    creates: bool
    version_table: str
    lock_timeout: float
    on_engine: Callable[[URL, Callable[[Connection], Any]], Any]
    configure: Callable[..., None]
    run_tenant: Callable[..., bool]

    def on_tenant(self, tenant: str, work: Callable[[Connection], Any]) -> Any:
        """Run a function on a connection to the tenant's own database."""
        return self.on_engine(names.url_of(tenant, self.url), work)


MISSING = (
    "there is no schema or database of this name, correct it or create what is missing by "
    "-x create=true"
)

# What the summary says of the tenants that a command has changed.
DONE = {"upgrade": "upgraded", "downgrade": "downgraded", "stamp": "stamped"}


def command() -> str:
    """Return the name of the command of Alembic that runs, empty for what a program does."""
    function = context.get_context().opts["fn"]
    if function.__module__ != "alembic.command":
        return ""
    return str(function.__qualname__.partition(".")[0])


def on_server(fleet: Fleet, work: Callable[[Connection | None], None]) -> None:
    """Do some work on a connection that can tell who the tenants are, None where none is needed."""
    if not fleet.by_url:
        fleet.on_engine(fleet.url, work)
        return
    url = settings.option("tenants_url")
    if url and names.asks_database(settings.option("tenants")):
        fleet.on_engine(settings.parsed(url, "Option tenants_url"), work)
    else:
        work(None)


def meant(fleet: Fleet, connection: Connection | None) -> list[str]:
    """Return the names of the tenants that the command is for, whether or not they exist."""
    option = settings.option("tenants")
    wanted: list[str] = names.chosen(fleet.given, option, lambda: names.listed(option, connection))
    names.check(wanted, fleet.url.get_backend_name(), fleet.url if fleet.by_url else None)
    return wanted


def find(fleet: Fleet, connection: Connection | None, *, versions: bool) -> list[Any]:
    """Return the tenants that the command is for, and what is known of them.

    `versions` asks for the revisions that they are at. Nothing is changed. Raises CommandError for
    a tenant that is named and does not exist.
    """
    callers = connection is not None and connection.in_transaction()
    wanted = meant(fleet, connection)
    if fleet.by_url:
        tasks = [look_by_url(fleet, name, versions=versions) for name in wanted]
    else:
        assert connection is not None
        known = schemas.look(
            connection, wanted, fleet.version_table, versions=versions, callers=callers
        )
        tasks = [runs.Task(name, name, *known.get(name, (True,))) for name in wanted]
    if connection is not None and not callers:
        connection.rollback()
    missing = [task.tenant for task in tasks if task.missing]
    if missing and fleet.given not in (None, "all") and not fleet.creates:
        raise CommandError(f"Tenant {', '.join(map(repr, missing))} is unknown: {MISSING}.")
    return tasks


def look_by_url(fleet: Fleet, tenant: str, *, versions: bool) -> Any:
    """Return a tenant that has a database of its own."""
    url = names.url_of(tenant, fleet.url)
    file = str(url.database).removeprefix("file:").partition("?")[0]
    task = runs.Task(tenant, missing=url.get_backend_name() == "sqlite" and not is_file(file))
    if task.missing or not versions:
        return task

    def heads(connection: Connection) -> tuple[str, ...]:
        opts = {"version_table": fleet.version_table}
        return tuple(sorted(MigrationContext.configure(connection, opts=opts).get_current_heads()))

    try:
        return task._replace(heads=fleet.on_tenant(tenant, heads))
    except (CommandError, SQLAlchemyError) as error:  # the others go on; its run will say it too
        log.warning("Tenant %r: %s", tenant, runs.described(error))
        return task


def is_file(path: str) -> bool:
    """Tell whether there is a file; a name that is too long has none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def migrate(fleet: Fleet, *, jobs: int, fail_fast: bool, replays: bool) -> None:
    """Run a command that migrates on all tenants that it has something to do for."""
    run = runs.Run(DONE.get(command(), "migrated"), fleet.lock_timeout, fail_fast=fail_fast)
    by_command = settings.run_by_alembic_command()
    serve = partial(serve_tenants, fleet)
    with processes.stoppable(run, by_command=by_command), processes.workers(jobs, serve) as workers:
        on_server(fleet, lambda connection: plan(fleet, run, connection, len(workers), replays))
        with runs.progress(run):
            if workers:
                processes.share(run, workers)
            else:
                processes.work_alone(run, serve)
    runs.report(run, by_command=by_command)


def plan(
    fleet: Fleet, run: Any, connection: Connection | None, workers: int, replays: bool
) -> None:
    """Put into the run what is to do for each tenant, and what is known to be done or to fail."""
    replays = replays and command() in {"upgrade", "downgrade"}
    has_steps_from = cache(has_steps)
    for task in find(fleet, connection, versions=replays or not fleet.by_url):
        if task.missing and not fleet.creates:
            run.record(runs.Result(task.tenant, "failed", f"{MISSING}."))
        elif task.heads is not None and not has_steps_from(task.heads):
            run.record(runs.Result(task.tenant, "current"))
        else:
            run.tasks.append(task._replace(heads=()) if task.missing else task)
    free = free_connections(fleet, run, connection) if run.tasks and workers else None
    if free is not None and workers > free:
        raise CommandError(
            f"{workers} jobs need {workers} connections, and the server has {free} left: set jobs "
            f"to {free} or less, or raise max_connections."
        )
    if replays:
        render(fleet, run, connection)


def free_connections(fleet: Fleet, run: Any, connection: Connection | None) -> int | None:
    """Return how many connections the server has left, None where the tenants have no common one."""
    if not fleet.by_url:
        return int(schemas.free_connections(connection))
    if fleet.url.get_backend_name() == "sqlite" or "{tenant}" in (fleet.url.host or ""):
        return None
    try:
        return int(fleet.on_tenant(run.tasks[0].tenant, schemas.free_connections))
    except CommandError:
        return None  # there is no connection to this one, which its own run will say


def has_steps(heads: tuple[str, ...]) -> bool:
    """Tell whether the command has something to do for a tenant that is at `heads`.

    Raises CommandError where the destination is at fault, and not the tenant.
    """
    migrations = context.get_context()
    if migrations.purge:
        return True
    try:
        with settings.known_version():
            return bool(list(migrations.opts["fn"](heads, migrations)))
    except CommandError as error:
        if isinstance(error.__cause__, ResolutionError | MultipleHeads):
            raise
        return True  # its own run will say what is wrong


def render(fleet: Fleet, run: Any, connection: Connection | None) -> None:
    """Give each task the statements to replay, rendered once for all that start where it does."""
    starts: dict[tuple[str, ...], Any] = {}
    for task in run.tasks:
        if task.heads is not None:
            starts.setdefault(task.heads, task)
    rendered: dict[tuple[str, ...], Any] = {}
    for heads, task in starts.items():
        schema = None if fleet.by_url else replay.PLACE
        rendering = partial(replay.render, fleet.configure, schema, heads)
        try:
            rendered[heads] = (
                fleet.on_tenant(task.tenant, rendering) if fleet.by_url else rendering(connection)
            )
        except CommandError as error:
            log.info("From %s nothing is replayed: %s.", " ".join(heads) or "base", error)
    run.tasks = deque(task._replace(script=rendered.get(task.heads)) for task in run.tasks)


def serve_tenants(fleet: Fleet, tasks: Iterator[Any], report: Callable[[Any], None]) -> None:
    """Run tenants as they come, in a worker process or in this one."""
    if fleet.by_url:
        for task in tasks:
            report(runs.attempt(task, partial(run_by_url, fleet)))
        return
    first = next(tasks, None)
    if first is not None:  # a worker without a task needs no connection
        every = chain([first], tasks)
        fleet.on_engine(fleet.url, lambda own: serve_on(fleet, own, every, report))


def run_by_url(fleet: Fleet, task: Any) -> bool:
    """Run a tenant on a connection to its own database."""
    return bool(fleet.on_tenant(task.tenant, lambda own: fleet.run_tenant(own, task)))


def serve_on(
    fleet: Fleet, connection: Connection, tasks: Iterator[Any], report: Callable[[Any], None]
) -> None:
    """Run tenants as they come, on one connection."""
    for task in tasks:
        if connection.invalidated:
            with settings.connection_errors(fleet.url):
                connection.connection  # noqa: B018 - connects
        result = runs.attempt(task, partial(fleet.run_tenant, connection))
        # A transaction left open would be taken for a caller's by the next tenant.
        connection.rollback()
        if result.outcome == "failed":
            connection.invalidate()
        report(result)


def read(fleet: Fleet, connection: Connection | None) -> None:
    """Run a command that only reads on one tenant, the first that is meant; `current` reads all."""
    if command() == "current":
        show_current(fleet, connection)
        return
    tasks = find(fleet, connection, versions=False)
    if command() != "ensure_version":  # which creates a table, in each tenant
        del tasks[1:]
    for task in tasks:
        if task.missing:
            raise CommandError(
                f"Tenant {task.tenant!r} has no schema or database yet: name another, or create it "
                "by `alembic -x tenant=… -x create=true upgrade head`."
            )
        if fleet.by_url:
            try:
                run_by_url(fleet, task)
            except DBAPIError as error:
                reason = runs.described(error)
                raise CommandError(f"Tenant {task.tenant!r} failed: {reason}.") from error
        else:
            fleet.run_tenant(connection, task, put_back=True)
    if command() == "check" and settings.option("tenants"):
        compare_versions(fleet, connection, tasks[0].tenant)


def compare_versions(fleet: Fleet, connection: Connection | None, tenant: str) -> None:
    """Raise CommandError where other tenants are not at the revisions of the one that was checked."""
    tasks = find(replace(fleet, given=None), connection, versions=True)
    (reference,) = [task for task in tasks if task.tenant == tenant] or find(
        replace(fleet, given=[tenant]), connection, versions=True
    )
    others = [task for task in tasks if task.heads != reference.heads]
    if others:
        shown = ", ".join(f"{task.tenant!r} ({at(task)})" for task in others[:5])
        raise CommandError(
            f"{len(others)} of {len(tasks)} tenants are not at {at(reference)}, where {tenant!r} "
            f"is: {shown}{', …' if len(others) > 5 else ''}; run `alembic upgrade head`."
        )


def at(task: Any) -> str:
    """Return the revisions of a tenant as people read them."""
    if task.missing:
        return "missing"
    return " ".join(task.heads) or "base" if task.heads is not None else "unreadable"


def state(heads: tuple[str, ...] | None) -> str:
    """Tell where tenants at these revisions stand against the heads of the revision files."""
    if heads is None:
        return "unknown"
    try:
        included = {script.revision for script in context.script.get_all_current(heads)}
    except CommandError:  # a revision that has no file here
        return "unknown"
    return "head" if included.issuperset(context.script.get_heads()) else "behind"


def show_current(fleet: Fleet, connection: Connection | None) -> None:
    """Print where the tenants are, and how many are at each version: unknown and behind first."""
    order = ["unknown", "behind", "head"]
    tasks = find(fleet, connection, versions=True)
    state_at = cache(state)
    states = {task.tenant: state_at(task.heads) for task in tasks}
    tasks.sort(key=lambda task: order.index(states[task.tenant]))
    counts = Counter((states[task.tenant], at(task)) for task in tasks)
    show = context.config.print_stdout
    for task in tasks:
        tenant = task.tenant if task.tenant.isprintable() else repr(task.tenant)
        show("%s: %s (%s)", tenant, at(task), states[task.tenant])
    show("\n%7s  %-7s  %s", "tenants", "state", "revision")
    for (where, revision), count in counts.items():
        show("%7d  %-7s  %s", count, where, revision)
    # The function of the command is not called: it would print once for each tenant.
    checks = getclosurevars(context.get_context().opts["fn"]).nonlocals.get("check_heads")
    if checks and set(states.values()) != {"head"}:
        raise CommandError("Not all tenants are at the head: run `alembic upgrade head`.")


def run_given(fleet: Fleet, connection: Connection) -> None:
    """Run tenants on the connection of the caller, one after the other.

    Where the connection leads to a tenant's own database, it is that tenant. Else one that a
    program names for an upgrade is created where it does not exist. Where the caller's transaction
    has begun, the first that fails ends the run, since the database may have ended the transaction.
    """
    if fleet.by_url:
        if fleet.given is not None:
            check_given(fleet, connection)
        fleet.run_tenant(connection, runs.Task("", timeout=fleet.lock_timeout))
        return
    callers = connection.in_transaction()
    if connection.dialect.name != "postgresql" and schemas.current(connection) is None:
        raise CommandError(
            "The connection has no database that it could be put back to, and USE would leave it "
            "at a tenant's: name one in its URL."
        )
    if not callers:
        connection.rollback()
    migrations = context.get_context()
    reads = locking.only_reads(migrations)
    if reads and command():
        read(fleet, connection)
        return
    function = migrations.opts["fn"].__qualname__
    upgrades = function.startswith(("upgrade.", "Migrations.upgrade.", "Migrations.create_all."))
    if fleet.given and upgrades and not names.several(fleet.given):
        fleet = replace(fleet, creates=True)
    tasks = find(fleet, connection, versions=False)
    if reads and len(tasks) > 1:
        raise CommandError(
            f"{len(tasks)} tenants are meant, and what is asked for is known of one at a time: name "
            'it in Migrations(connection, tenant=[name]) or Config.attributes["tenant"].'
        )
    run = runs.Run(DONE.get(command(), "migrated"), fleet.lock_timeout, fail_fast=False)

    def run_tenant(task: Any) -> bool:
        if task.missing and not fleet.creates:
            raise CommandError(f"Tenant {task.tenant!r} failed: {MISSING}.")
        return fleet.run_tenant(connection, task, put_back=True)

    for task in tasks:
        last = task._replace(timeout=fleet.lock_timeout, first=False)
        if len(tasks) == 1 or callers:
            run_tenant(last)
        else:
            run.record(runs.attempt(last, run_tenant))
    if run.counts:
        runs.report(run, by_command=False)


def check_given(fleet: Fleet, connection: Connection) -> None:
    """Raise CommandError where a connection to a tenant's database is not to the one that is named."""
    wanted = meant(fleet, connection)
    if len(wanted) != 1:
        raise CommandError(
            f"{len(wanted)} tenants are named, and the connection leads to the database of one: "
            "name one, or pass no connection."
        )
    template = settings.url_text()
    if "{tenant}" in (template or ""):
        names.check_place(wanted[0], settings.parsed(template), connection.engine.url)


def write_scripts(
    fleet: Fleet, given: Connection | None, configure: Callable[[str | None], None]
) -> None:
    """Write the command's script for each tenant (`--sql`), after what leads to the tenant.

    Where the names are to be asked for, it is on the connection that the caller has given.
    """
    wanted: list[str] = []

    def ask(connection: Connection | None) -> None:
        callers = connection is None or connection.in_transaction()
        wanted.extend(meant(fleet, connection))
        if connection is not None and not callers:
            connection.rollback()

    # A name needs no database, the fleet may.
    is_fleet = fleet.given is None or names.several(fleet.given)
    if given is None and is_fleet and names.asks_database(settings.option("tenants")):
        on_server(fleet, ask)
    else:
        ask(given)
    for tenant in wanted:
        configure(None if fleet.by_url else tenant)
        dialect = context.get_context().dialect
        if fleet.by_url:
            context.static_output(f"-- {str(names.url_of(tenant, fleet.url))!r}")
        else:
            for statement in schemas.statements_to_enter(dialect, tenant, creates=fleet.creates):
                context.static_output(f"{statement};")
        with settings.known_version(), context.begin_transaction():
            context.run_migrations()
        if not fleet.by_url and dialect.name == "postgresql":
            context.static_output("RESET search_path;")
