"""Migrations through PgBouncer, which may give each transaction another session of the server."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from alembic import command
from conftest import POOL_SIZE, Database, Pooler, Project, render
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

# What each driver needs in transaction mode: a statement that it prepares on one session would be
# asked for on another.
CONNECT_ARGS: dict[str, dict[str, object]] = {
    "postgresql+psycopg": {"prepare_threshold": None},
    "postgresql+asyncpg": {"statement_cache_size": 0, "prepared_statement_cache_size": 0},
}
SINGLE = [
    ("sync", "postgresql+psycopg"),
    ("shared", "postgresql+psycopg"),
    ("shared", "postgresql+asyncpg"),
    ("asyncio", "postgresql+psycopg"),
    ("asyncio", "postgresql+asyncpg"),
]
Rows = list[tuple[object, ...]]
# What stands in a schema: its version, its tables, and its visits, sorted by their numbers.
Place = tuple[Rows, set[str], Rows]
EMPTY: Place = ([], set(), [])
# After the first revision.
BEGUN: Place = ([("r0",)], {"alembic_version", "visit"}, [])
MODES = ["transaction", "session"]
MODELS = """
from sqlalchemy import Column, Integer, MetaData, String, Table

metadata = MetaData()
Table("visit", metadata, Column("number", Integer), Column("tenant", String(10)))
"""
CREATE_VISIT = """
op.create_table("visit", sa.Column("number", sa.Integer), sa.Column("tenant", sa.String(10)))
"""
AUTOCOMMIT_BLOCK = """
op.create_table("late", sa.Column("id", sa.Integer))
with op.get_context().autocommit_block():
    op.execute("CREATE INDEX CONCURRENTLY ix_visit_number ON visit (number)")
"""
# What a session is set to, and must be set to again when a run is over.
SETTINGS = (
    "SELECT current_setting('search_path'), current_setting('lock_timeout'), "
    "current_setting('statement_timeout'), current_user"
)
OTHERS = (
    "FROM pg_stat_activity WHERE datname = current_database() "
    "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


def visit(number: int) -> str:
    """Return a revision that makes a table and says in which schema it did so."""
    return (
        f"op.create_table('t{number}', sa.Column('id', sa.Integer))\n"
        f"op.execute('INSERT INTO visit VALUES ({number}, current_schema())')\n"
    )


def engine_of(database: Database, driver: str = "postgresql+psycopg") -> Engine:
    """Return an engine of an application that reaches its database through the pooler."""
    url = database.url.set(drivername=driver)
    return create_engine(url, poolclass=NullPool, connect_args=CONNECT_ARGS.get(driver, {}))


def connect_to(project: Project, database: Database, driver: str) -> None:
    """Set a project up for a database behind the pooler."""
    (project.folder / "models.py").write_text(MODELS)
    project.set(
        sqlalchemy__url=database.url_for(driver).replace("%", "%%"),
        connect_args=json.dumps(CONNECT_ARGS[driver]),
        ddl_lock_timeout="20",
    )


def check_nothing_is_left(postgresql: Database, pooled: Database) -> None:
    """Hold every session of the pool at once: no lock, no transaction, no setting of a run is left."""
    deadline = time.monotonic() + 30
    while busy := postgresql.rows(f"SELECT pid, state, query {OTHERS} AND state <> 'idle'"):
        assert time.monotonic() < deadline, busy
        time.sleep(0.02)
    assert advisory_locks(postgresql) == []
    (default,) = postgresql.rows(SETTINGS)
    engine = engine_of(pooled)
    with ExitStack() as stack:
        held = [stack.enter_context(engine.connect()) for _ in range(POOL_SIZE)]
        found = [tuple(connection.execute(text(SETTINGS)).one()) for connection in held]
        pids = {connection.scalar(text("SELECT pg_backend_pid()")) for connection in held}
    assert len(pids) == POOL_SIZE
    assert found == [default] * POOL_SIZE


def advisory_locks(postgresql: Database) -> list[tuple[object, ...]]:
    """Return the advisory locks of a database, and who holds them."""
    return postgresql.rows(
        "SELECT pid, mode, granted FROM pg_locks WHERE locktype = 'advisory' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    )


def placed(postgresql: Database) -> dict[str, Place]:
    """Return what stands in each schema."""
    tables: dict[str, set[str]] = {}
    for schema, table in postgresql.rows(
        "SELECT nspname, tablename FROM pg_namespace LEFT JOIN pg_tables ON schemaname = nspname "
        "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
    ):
        tables.setdefault(str(schema), set()).update([str(table)] if table else [])

    def rows(table: str, columns: str) -> dict[str, Rows]:
        found: dict[str, Rows] = {schema: [] for schema in tables}
        query = " UNION ALL ".join(
            f"SELECT '{schema}', {columns} FROM {schema}.{table}"
            for schema in tables
            if table in tables[schema]
        )
        for schema, *values in postgresql.rows(f"{query} ORDER BY 2") if query else []:
            found[str(schema)].append(tuple(values))
        return found

    versions, visits = rows("alembic_version", "version_num"), rows("visit", "number, tenant")
    return {schema: (versions[schema], tables[schema], visits[schema]) for schema in tables}


def right(tenants: list[str], number: int) -> dict[str, Place]:
    """Return what `placed` finds where each tenant, and nobody else, has had the first revisions."""
    numbers = range(1, number + 1)
    tables = {"alembic_version", "visit", *(f"t{each}" for each in numbers)}
    places: dict[str, Place] = {"public": EMPTY}
    for tenant in tenants:
        places[tenant] = ([(f"r{number}",)], tables, [(each, tenant) for each in numbers])
    return places


def fleet_of(number: int, project: Project, postgresql: Database) -> list[str]:
    """Create the schemas of a fleet, and its first revision."""
    tenants = [f"tenant{each:02}" for each in range(number)]
    postgresql.run(*(f"CREATE SCHEMA {tenant}" for tenant in tenants))
    project.set(tenants=" ".join(tenants))
    project.revision("r0", CREATE_VISIT, "op.drop_table('visit')")
    return tenants


@dataclass
class Seen:
    """What an application that works beside the migrations has seen."""

    settings: set[tuple[object, ...]] = field(default_factory=set)
    transactions: int = 0
    errors: list[Exception] = field(default_factory=list)


@contextmanager
def application(postgresql: Database, pooled: Database) -> Iterator[Seen]:
    """Run short transactions of an application through the pool, one after the other, meanwhile."""
    postgresql.run("CREATE TABLE public.application (number INTEGER)")
    seen, stop, begun = Seen(), threading.Event(), threading.Event()

    def work() -> None:
        engine = create_engine(pooled.url, connect_args=CONNECT_ARGS["postgresql+psycopg"])
        try:
            while not stop.is_set():
                with engine.begin() as connection:
                    seen.settings.add(tuple(connection.execute(text(SETTINGS)).one()))
                    connection.execute(text("INSERT INTO application VALUES (1)"))
                seen.transactions += 1
                begun.set()
        except SQLAlchemyError as error:
            seen.errors.append(error)
        finally:
            begun.set()
            engine.dispose()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        begun.wait()
        yield seen
    finally:
        stop.set()
        thread.join()


def check_application(postgresql: Database, seen: Seen) -> None:
    """An application has seen its own settings alone, and its rows stand in its own table."""
    assert seen.errors == []
    assert seen.settings == set(postgresql.rows(SETTINGS))
    assert postgresql.rows("SELECT count(*) FROM public.application") == [(seen.transactions,)]
    postgresql.run("DROP TABLE public.application")


def finished(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for processes that must succeed, and return what they printed."""
    try:
        done = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), done
    return [output for output, _ in done]


# A fleet


@pytest.mark.parametrize("driver", CONNECT_ARGS)
def test_fleet_in_ten_runs(
    fleet_project: Project, postgresql: Database, pooler: Pooler, driver: str
) -> None:
    """Four jobs give forty tenants each revision of ten in their own schema, and leave nothing."""
    tenants = fleet_of(40, fleet_project, postgresql)
    connect_to(fleet_project, pooler.transaction, driver)
    fleet_project.set(jobs="4")
    for number in range(1, 11):
        fleet_project.revision(f"r{number}", visit(number), down=f"r{number - 1}")
        done = fleet_project.alembic("upgrade", "head")
        assert done.stdout.splitlines()[-1] == "40 upgraded, 0 current, 0 failed"
        assert placed(postgresql) == right(tenants, number)
        check_nothing_is_left(postgresql, pooler.transaction)


@pytest.mark.parametrize("driver", CONNECT_ARGS)
def test_commands_on_a_tenant(
    fleet_project: Project, postgresql: Database, pooler: Pooler, driver: str
) -> None:
    """Commands that read see the tenant that is named, those that write change it alone."""
    tenants = fleet_of(3, fleet_project, postgresql)
    connect_to(fleet_project, pooler.transaction, driver)
    for args in (
        ["-x", "tenant=all", "stamp", "base"],
        ["upgrade", "head"],
        ["-x", "tenant=tenant01", "check"],
        ["-x", "tenant=tenant01", "downgrade", "base"],
    ):
        fleet_project.alembic(*args)
        check_nothing_is_left(postgresql, pooler.transaction)
    assert placed(postgresql) == {
        "public": EMPTY,
        **dict.fromkeys(tenants, BEGUN),
        "tenant01": ([], {"alembic_version"}, []),
    }
    assert "tenant01: base (behind)" in fleet_project.alembic("current").stdout
    check_nothing_is_left(postgresql, pooler.transaction)


def test_fleet_with_a_transaction_for_each_revision_is_refused(
    fleet_project: Project, postgresql: Database, pooler: Pooler
) -> None:
    """A transaction for each revision is refused for each tenant; commands that read work."""
    tenants = fleet_of(3, fleet_project, postgresql)
    connect_to(fleet_project, pooler.transaction, "postgresql+psycopg")
    fleet_project.alembic("upgrade", "head")
    fleet_project.set(jobs="2", transaction_per_migration="true")
    fleet_project.revision("r1", visit(1), down="r0")
    done = fleet_project.alembic("upgrade", "head", ok=False)
    assert done.stdout.splitlines()[-1] == "0 upgraded, 0 current, 3 failed"
    assert "option transaction_per_migration needs one session" in done.stderr
    assert placed(postgresql) == {"public": EMPTY, **dict.fromkeys(tenants, BEGUN)}
    assert "tenant01: r0 (behind)" in fleet_project.alembic("current").stdout
    check_nothing_is_left(postgresql, pooler.transaction)


def test_tenant_whose_revision_fails(
    fleet_project: Project, postgresql: Database, pooler: Pooler
) -> None:
    """A tenant that fails keeps its version, and nothing of its run meets another one."""
    tenants = fleet_of(12, fleet_project, postgresql)
    connect_to(fleet_project, pooler.transaction, "postgresql+psycopg")
    fleet_project.set(jobs="4")
    fails = "op.execute(\"SELECT 1 / (current_schema() !~ '[05]$')::int\")"
    path = fleet_project.revision("r1", f"{visit(1)}{fails}", down="r0")
    fleet_project.alembic("upgrade", "r0")
    done = fleet_project.alembic("upgrade", "head", ok=False)
    assert done.stdout.splitlines()[-1] == "9 upgraded, 0 current, 3 failed"
    failed = ["tenant00", "tenant05", "tenant10"]
    assert placed(postgresql) == {**right(tenants, 1), **dict.fromkeys(failed, BEGUN)}
    check_nothing_is_left(postgresql, pooler.transaction)
    path.write_text(path.read_text().replace("[05]$", "never"))
    assert fleet_project.alembic("upgrade", "head").stdout.startswith("3 upgraded, 9 current")
    assert placed(postgresql) == right(tenants, 1)
    check_nothing_is_left(postgresql, pooler.transaction)


# One database


@pytest.fixture
def single(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Project, str]:
    """A project of a template for one database, and a driver."""
    template, driver = request.param
    project = render(template, tmp_path / "single")
    project.revision("r0", CREATE_VISIT, "op.drop_table('visit')")
    for number in range(1, 4):
        project.revision(f"r{number}", visit(number), down=f"r{number - 1}")
    return project, driver


each_single = pytest.mark.parametrize("single", SINGLE, ids=" ".join, indirect=True)


@each_single
@pytest.mark.parametrize("mode", MODES)
def test_single_database(
    single: tuple[Project, str], postgresql: Database, pooler: Pooler, mode: str
) -> None:
    """A database is upgraded in one transaction, while an application works in it."""
    project, driver = single
    pooled: Database = getattr(pooler, mode)
    connect_to(project, pooled, driver)
    with application(postgresql, pooled) as seen:
        project.alembic("upgrade", "head")
    check_application(postgresql, seen)
    assert placed(postgresql) == right(["public"], 3)
    check_nothing_is_left(postgresql, pooled)


def test_why_nothing_is_tried_again(project: Project, postgresql: Database, pooler: Pooler) -> None:
    """A table that is not free ends the run, and a warning names the pooler as the reason."""
    postgresql.run("CREATE TABLE busy (id int)")
    project.revision("r0", "op.add_column('busy', sa.Column('more', sa.Integer))")
    connect_to(project, pooler.transaction, "postgresql+psycopg")
    project.set(ddl_lock_timeout="0.2")
    with postgresql.engine().connect() as holder:
        holder.exec_driver_sql("SELECT * FROM busy").all()
        done = project.alembic("upgrade", "head", ok=False)
    assert done.stderr.count("is not tried again, since a pooler stands before the server.") == 1
    assert "tried again in" not in done.stderr
    assert "lock timeout" in done.stderr


@each_single
@pytest.mark.parametrize("mode", MODES)
def test_autocommit_block_is_refused(
    single: tuple[Project, str], postgresql: Database, pooler: Pooler, mode: str
) -> None:
    """An autocommit block, which no lock would cover, is refused, and its revision undone."""
    project, driver = single
    pooled: Database = getattr(pooler, mode)
    connect_to(project, pooled, driver)
    project.alembic("upgrade", "head")
    project.revision("late", AUTOCOMMIT_BLOCK, down="r3")
    done = project.alembic("upgrade", "head", ok=False)
    assert "pooler" in done.stderr
    assert "Traceback" not in done.stderr
    assert placed(postgresql) == right(["public"], 3)
    check_nothing_is_left(postgresql, pooled)


@each_single
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"transaction_per_migration": "true"}, "option transaction_per_migration"),
        (
            {"sqlalchemy__isolation_level": "AUTOCOMMIT"},
            "a connection at isolation level AUTOCOMMIT",
        ),
    ],
    ids=["option", "autocommit"],
)
def test_transaction_for_each_revision_is_refused(
    single: tuple[Project, str],
    postgresql: Database,
    pooler: Pooler,
    mode: str,
    option: dict[str, str],
    said: str,
) -> None:
    """Several transactions, between which no lock could be held, are refused before the first."""
    project, driver = single
    pooled: Database = getattr(pooler, mode)
    connect_to(project, pooled, driver)
    project.set(**option)
    done = project.alembic("upgrade", "head", ok=False)
    assert f"A pooler such as PgBouncer stands before the server, and {said} needs" in done.stderr
    assert "Traceback" not in done.stderr
    assert postgresql.tables() == set()
    check_nothing_is_left(postgresql, pooled)


@each_single
@pytest.mark.parametrize("per_migration", ["false", "true"])
def test_direct_connection(
    single: tuple[Project, str], postgresql: Database, per_migration: str
) -> None:
    """Without a pooler, a transaction for each revision and an autocommit block both work."""
    project, driver = single
    connect_to(project, postgresql, driver)
    project.set(transaction_per_migration=per_migration)
    project.revision("late", AUTOCOMMIT_BLOCK, down="r3")
    project.alembic("upgrade", "head")
    _, tables, visits = right(["public"], 3)["public"]
    assert placed(postgresql) == {"public": ([("late",)], {*tables, "late"}, visits)}
    assert postgresql.rows("SELECT 1 FROM pg_indexes WHERE indexname = 'ix_visit_number'")
    assert advisory_locks(postgresql) == []


# The connection of a caller


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
@pytest.mark.parametrize("begun", [False, True], ids=["connection", "transaction"])
def test_connection_of_the_caller(
    project: Project, postgresql: Database, pooler: Pooler, driver: str, *, begun: bool
) -> None:
    """On an application's connection a run leaves no lock and no setting to others of the pool."""
    project.revision("r0", CREATE_VISIT)
    project.revision("r1", visit(1), down="r0")
    with engine_of(pooler.transaction, driver).connect() as connection:
        if begun:
            connection.begin()
        project.upgrade(connection)
        assert connection.in_transaction() == begun
        if begun:
            assert len(advisory_locks(postgresql)) == 1
            assert postgresql.tables() == set()
            connection.commit()
        else:
            check_nothing_is_left(postgresql, pooler.transaction)
    assert placed(postgresql) == right(["public"], 1)
    check_nothing_is_left(postgresql, pooler.transaction)


@pytest.mark.parametrize("begun", [False, True], ids=["connection", "transaction"])
def test_fleet_on_the_connection_of_the_caller(
    fleet_project: Project, postgresql: Database, pooler: Pooler, *, begun: bool
) -> None:
    """A fleet on an application's connection gets its own rows, while the application works."""
    tenants = fleet_of(8, fleet_project, postgresql)
    fleet_project.revision("r1", visit(1), down="r0")
    connect_to(fleet_project, pooler.transaction, "postgresql+psycopg")
    with (
        application(postgresql, pooler.transaction) as seen,
        engine_of(pooler.transaction).connect() as connection,
    ):
        if begun:
            connection.begin()
        command.upgrade(fleet_project.config(connection=connection, tenant="all"), "head")
        connection.commit()
    check_application(postgresql, seen)
    assert placed(postgresql) == right(tenants, 1)
    check_nothing_is_left(postgresql, pooler.transaction)


# Competition


@pytest.mark.parametrize("driver", CONNECT_ARGS)
def test_four_processes_on_a_fleet(
    fleet_project: Project, postgresql: Database, pooler: Pooler, driver: str
) -> None:
    """Four processes at once upgrade each tenant once, and never reach the application beside them."""
    tenants = fleet_of(12, fleet_project, postgresql)
    connect_to(fleet_project, pooler.transaction, driver)
    fleet_project.set(jobs="2")
    for number in range(1, 3):
        fleet_project.revision(f"r{number}", visit(number), down=f"r{number - 1}")
        with application(postgresql, pooler.transaction) as seen:
            started = [fleet_project.start("upgrade", "head") for _ in range(4)]
            printed = finished(started)
        assert sum(int(each.split()[0]) for each in printed) == len(tenants)
        check_application(postgresql, seen)
        assert placed(postgresql) == right(tenants, number)
        check_nothing_is_left(postgresql, pooler.transaction)


def five_revisions(project: Project, pooled: Database, driver: str) -> None:
    """Write revisions of which each may run once, for a database behind the pooler."""
    connect_to(project, pooled, driver)
    project.revision("r0", CREATE_VISIT)
    for number in range(1, 6):
        project.revision(f"r{number}", visit(number), down=f"r{number - 1}")


@pytest.mark.parametrize("driver", CONNECT_ARGS)
def test_four_processes_on_a_database(
    project: Project, postgresql: Database, pooler: Pooler, driver: str
) -> None:
    """Four processes at once run each revision once, and never reach the application beside them."""
    five_revisions(project, pooler.transaction, driver)
    with application(postgresql, pooler.transaction) as seen:
        finished([project.start("upgrade", "head") for _ in range(4)])
    check_application(postgresql, seen)
    assert placed(postgresql) == right(["public"], 5)
    check_nothing_is_left(postgresql, pooler.transaction)


@pytest.mark.parametrize("end", ["COMMIT", "/* by hand */ COMMIT", "SELECT 1; COMMIT"])
def test_revision_that_ends_its_transaction_is_stopped(
    fleet_project: Project, postgresql: Database, pooler: Pooler, end: str
) -> None:
    """What stands after a COMMIT in a revision does not reach another schema than the tenant's."""
    fleet_of(1, fleet_project, postgresql)
    connect_to(fleet_project, pooler.transaction, "postgresql+psycopg")
    fleet_project.revision(
        "r1",
        f"op.execute({end!r})\nop.create_table('late', sa.Column('id', sa.Integer))",
        down="r0",
    )
    done = fleet_project.alembic("upgrade", "head", ok=False)
    assert "A revision has ended the transaction that it runs in" in done.stderr
    assert postgresql.rows("SELECT schemaname FROM pg_tables WHERE tablename = 'late'") == []
    check_nothing_is_left(postgresql, pooler.transaction)
