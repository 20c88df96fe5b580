"""The migration lock: one process at a time, waited for, given back, and never in the way."""

from __future__ import annotations

import hashlib
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from conftest import Database, Project
from sqlalchemy import MetaData
from sqlalchemy.exc import OperationalError

# Tells the test that the revision runs, and waits for it to take the file "hold" away.
HOLD = """
import time
from pathlib import Path
folder = Path(__file__).parents[2]
(folder / "started").touch()
deadline = time.monotonic() + 30
while (folder / "hold").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
"""
CREATE_RUN = "op.execute('CREATE TABLE IF NOT EXISTS run (revision VARCHAR(10))')\n"
SERVERS = ["postgresql", "mariadb"]


def ran(revision: str) -> str:
    """Return the statement of a revision that says that it ran."""
    return f"op.execute(\"INSERT INTO run VALUES ('{revision}')\")\n"


def lock_of(database: Database, table: str = "alembic_version") -> str:
    """Return how a message names the lock. Deployments of different age must agree on its key."""
    if database.kind == "sqlite":
        return f"the write lock of {database.url.database}"
    schema = "public" if database.kind == "postgresql" else database.url.database
    digest = hashlib.sha256(f"alembic {schema}.{table}".encode())
    if database.kind == "postgresql":
        key = int.from_bytes(digest.digest()[:8], "big", signed=True)
        return f"the advisory lock {key} of {schema}.{table}"
    return f"the lock alembic-{digest.hexdigest()[:40]} of {schema}.{table}"


def waited(database: Database, seconds: str = "0") -> str:
    """Return the pattern of the error of a run that has not got the lock; it names the holder."""
    holder = {
        "sqlite": "",
        "postgresql": r", held by server process \d+",
        "mariadb": r", held by connection \d+",
    }[database.kind]
    return (
        rf"Another process migrates this database: waited {re.escape(seconds)} seconds for "
        rf"{re.escape(lock_of(database))}{holder}; run the command again when it has finished, "
        r"or raise lock_timeout\."
    )


def impatient(project: Project, database: Database, **attributes: object) -> Config:
    """Return the Config of a run that does not wait for the lock, nor hangs where there is none."""
    config = project.config(database.text, **attributes)
    config.set_main_option("lock_timeout", "0")
    config.set_main_option("ddl_lock_timeout", "5")
    return config


@dataclass
class Runs:
    """The processes of a test; `hold` and `let_go` stop one in a revision that has HOLD."""

    project: Project
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, database: Database, *args: str) -> subprocess.Popen[str]:
        """Start a command, `upgrade head` if none is given, and do not wait for it."""
        process = self.project.start("-x", f"url={database.text}", *(args or ("upgrade", "head")))
        self.processes.append(process)
        return process

    def hold(self, database: Database, *args: str) -> subprocess.Popen[str]:
        """Start a command, and return when it is in the revision that holds."""
        (self.project.folder / "hold").touch()
        holder = self.start(database, *args)
        deadline = time.monotonic() + 30
        while not (self.project.folder / "started").exists():
            assert holder.poll() is None, holder.communicate()[1]
            assert time.monotonic() < deadline, "The holder has not come to its revision."
            time.sleep(0.02)
        return holder

    def let_go(self) -> None:
        """Let the holder finish."""
        (self.project.folder / "hold").unlink()


@pytest.fixture
def runs(project: Project) -> Iterator[Runs]:
    """The processes of a test; those that a failure has left are killed."""
    found = Runs(project)
    yield found
    for process in found.processes:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process and fail the test unless it succeeds."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def until_it_waits(process: subprocess.Popen[str], database: Database) -> None:
    """Read what a process logs until it says that it waits for the lock."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if f"Waiting up to 60 seconds for {lock_of(database)}" in line:
            return
    pytest.fail(f"The process has not waited:\n{''.join(seen)}")


def test_eight_processes_at_once(
    project: Project, database: Database, capsys: pytest.CaptureFixture[str], runs: Runs
) -> None:
    """Of eight processes that upgrade an empty database all succeed; each revision runs once."""
    project.revision("a1", CREATE_RUN + ran("a1"))
    project.revision("b2", ran("b2"), down="a1")
    started = time.monotonic()
    processes = [runs.start(database) for _ in range(8)]
    for process in processes:
        finish(process)
    with capsys.disabled():
        print(f"\n8 upgrades on {database.kind}: {time.monotonic() - started:.1f} s")
    assert database.rows("SELECT revision FROM run ORDER BY revision") == [("a1",), ("b2",)]
    assert database.versions() == {"b2"}


def test_killed_holder_is_no_obstacle(project: Project, database: Database, runs: Runs) -> None:
    """A process killed in the middle of a revision leaves no lock behind."""
    project.revision("a1", CREATE_RUN + ran("a1") + HOLD)
    holder = runs.hold(database)
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)
    runs.let_go()
    command.upgrade(project.config(database.text), "head")
    assert database.versions() == {"a1"}
    assert database.rows("SELECT revision FROM run") == [("a1",)]


@pytest.mark.parametrize("given", ["option", "argument"])
def test_lock_timeout_of_0_fails_at_once(
    project: Project, database: Database, given: str, runs: Runs
) -> None:
    """Without time to wait, a run beside another fails with a sentence that names the lock."""
    project.revision("a1", CREATE_RUN + ran("a1") + HOLD)
    holder = runs.hold(database)
    if given == "option":
        with pytest.raises(CommandError) as raised:
            command.upgrade(impatient(project, database), "head")
        error = str(raised.value)
    else:
        url = f"url={database.text}"
        done = project.alembic("-x", "lock_timeout=0", "-x", url, "upgrade", "head", ok=False)
        error = done.stderr.splitlines()[-1].partition("] ")[2]
    runs.let_go()
    finish(holder)
    assert re.fullmatch(waited(database), error)
    assert database.rows("SELECT revision FROM run") == [("a1",)]


def test_lock_timeout_is_waited(project: Project, database: Database, runs: Runs) -> None:
    """A run waits as long as lock_timeout says, and the error says how long it was."""
    project.revision("a1", CREATE_RUN + HOLD)
    holder = runs.hold(database)
    config = project.config(database.text)
    config.set_main_option("lock_timeout", "0.7")
    started = time.monotonic()
    with pytest.raises(CommandError) as raised:
        command.upgrade(config, "head")
    assert 0.7 <= time.monotonic() - started < 5
    runs.let_go()
    finish(holder)
    assert re.fullmatch(waited(database, "0.7"), str(raised.value))


def test_waiter_finds_the_work_done(project: Project, database: Database, runs: Runs) -> None:
    """A run that has waited goes on when the other has finished, and has nothing left to do."""
    project.revision("a1", CREATE_RUN + ran("a1") + HOLD)
    project.revision("b2", ran("b2"), down="a1")
    holder = runs.hold(database)
    waiter = runs.start(database)
    until_it_waits(waiter, database)
    runs.let_go()
    finish(holder)
    finish(waiter)
    assert database.rows("SELECT revision FROM run ORDER BY revision") == [("a1",), ("b2",)]
    assert database.versions() == {"b2"}


def test_waiter_does_the_work_of_a_holder_that_fails(
    project: Project, database: Database, runs: Runs
) -> None:
    """A run that has waited for one that failed does the work itself."""
    project.revision(
        "a1",
        CREATE_RUN
        + HOLD
        + "if not (folder / 'failed').exists():\n"
        + "    (folder / 'failed').touch()\n"
        + "    raise RuntimeError('the revision fails')\n"
        + ran("a1"),
    )
    holder = runs.hold(database)
    waiter = runs.start(database)
    until_it_waits(waiter, database)
    runs.let_go()
    _, errors = holder.communicate(timeout=60)
    assert holder.returncode == 1
    assert errors.endswith("RuntimeError: the revision fails\n")
    finish(waiter)
    assert database.rows("SELECT revision FROM run") == [("a1",)]
    assert database.versions() == {"a1"}


def test_concurrent_index_beside_a_waiter(
    project: Project, postgresql: Database, runs: Runs
) -> None:
    """CREATE INDEX CONCURRENTLY does not deadlock with a process that waits for the lock."""
    postgresql.run("CREATE TABLE own (id INTEGER)")
    project.revision(
        "a1",
        CREATE_RUN
        + HOLD
        + "with op.get_context().autocommit_block():\n"
        + "    op.execute('CREATE INDEX CONCURRENTLY own_id ON own (id)')\n"
        + ran("a1"),
    )
    holder = runs.hold(postgresql)
    waiter = runs.start(postgresql)
    until_it_waits(waiter, postgresql)
    runs.let_go()
    finish(holder)
    finish(waiter)
    assert postgresql.rows(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'own_id'::regclass"
    ) == [(True,)]
    assert postgresql.rows("SELECT revision FROM run") == [("a1",)]


@pytest.mark.parametrize(
    ("kind", "option", "value", "table"),
    [
        pytest.param("postgresql", "version_table", "other", "other", id="postgresql-table"),
        pytest.param(
            "postgresql",
            "version_table_schema",
            "other",
            "other.alembic_version",
            id="postgresql-schema",
        ),
        pytest.param("mariadb", "version_table", "other", "other", id="mariadb-table"),
    ],
)
def test_two_environments_do_not_wait_for_each_other(
    project: Project,
    request: pytest.FixtureRequest,
    kind: str,
    option: str,
    value: str,
    table: str,
    runs: Runs,
) -> None:
    """Environments with version tables of their own migrate one database at the same time."""
    database: Database = request.getfixturevalue(kind)
    if option == "version_table_schema":
        database.run("CREATE SCHEMA other")
    project.revision("a1", HOLD.replace('"hold"', "context.config.attributes.get('file', 'hold')"))
    holder = runs.hold(database)
    config = impatient(project, database, file="not there")
    config.set_main_option(option, value)
    command.upgrade(config, "head")
    assert database.versions(table) == {"a1"}
    assert holder.poll() is None
    runs.let_go()
    finish(holder)
    assert database.versions() == {"a1"}


def test_two_databases_do_not_wait_for_each_other(
    project: Project, mariadb: Database, request: pytest.FixtureRequest, runs: Runs
) -> None:
    """The lock is the database's, though GET_LOCK's names are the server's."""
    project.revision("a1", CREATE_RUN + HOLD)
    holder = runs.hold(mariadb)
    name = f"{mariadb.url.database}_2"
    mariadb.run(f"CREATE DATABASE {name}")
    request.addfinalizer(lambda: mariadb.run(f"DROP DATABASE {name}"))
    other = Database("mariadb", mariadb.url.set(database=name))
    with pytest.raises(CommandError, match="^Another process migrates this database: "):
        command.upgrade(impatient(project, mariadb), "head")
    command.downgrade(impatient(project, other), "base")
    assert other.tables() == {"alembic_version"}
    runs.let_go()
    finish(holder)


READS = [
    pytest.param(command.current, id="current"),
    pytest.param(command.check, id="check"),
    pytest.param(lambda config: command.history(config, indicate_current=True), id="history"),
    pytest.param(
        lambda config: command.revision(config, autogenerate=True), id="revision-autogenerate"
    ),
]


@pytest.mark.parametrize("read", READS)
def test_reading_commands_take_no_lock(
    project: Project, database: Database, read: Callable[[Config], object], runs: Runs
) -> None:
    """Commands that only read do not wait for a run that migrates."""
    project.revision("a1", "pass", HOLD)
    command.upgrade(project.config(database.text), "head")
    holder = runs.hold(database, "downgrade", "base")
    read(impatient(project, database, target_metadata=MetaData()))
    assert holder.poll() is None
    runs.let_go()
    finish(holder)
    assert database.versions() == set()


@pytest.mark.parametrize("read", READS)
def test_reading_commands_create_nothing(
    project: Project, database: Database, read: Callable[[Config], object]
) -> None:
    """Commands that only read leave an empty database empty."""
    read(project.config(database.text, target_metadata=MetaData()))
    assert database.tables() == set()


def test_lock_in_the_transaction_of_the_caller_is_kept_until_it_commits(
    project: Project, postgresql: Database
) -> None:
    """PostgreSQL's lock in a caller's transaction is held until the caller ends it."""
    project.revision("a1", CREATE_RUN + ran("a1"))
    with postgresql.engine().connect() as connection:
        transaction = connection.begin()
        project.upgrade(connection)
        with pytest.raises(CommandError) as raised:
            command.upgrade(impatient(project, postgresql), "head")
        transaction.commit()
        command.upgrade(impatient(project, postgresql), "head")
    assert re.fullmatch(waited(postgresql), str(raised.value))
    assert postgresql.rows("SELECT revision FROM run") == [("a1",)]


@pytest.mark.parametrize("begins", [True, False], ids=["transaction", "no-transaction"])
@pytest.mark.parametrize("fails", [True, False], ids=["fails", "succeeds"])
def test_lock_of_mariadb_ends_with_the_run(
    project: Project, mariadb: Database, fails: bool, begins: bool
) -> None:
    """MariaDB's lock is held while revisions run and given back when they end."""
    name = lock_of(mariadb).split()[2]
    project.revision(
        "a1",
        CREATE_RUN
        + f"held = op.get_bind().scalar(sa.text(\"SELECT IS_USED_LOCK('{name}') = CONNECTION_ID()\"))\n"
        + "op.execute(f'INSERT INTO run VALUES ({held})')\n"
        + "with sa.create_engine(op.get_bind().engine.url, poolclass=sa.NullPool).connect():\n"
        + "    pass\n"
        + ("op.execute('COMMIT')\nraise RuntimeError('the revision fails')\n" if fails else ""),
    )
    with mariadb.engine().connect() as connection:
        if begins:
            connection.begin()
        if fails:
            with pytest.raises(RuntimeError, match="^the revision fails$"):
                project.upgrade(connection)
        else:
            project.upgrade(connection)
        assert mariadb.rows(f"SELECT IS_FREE_LOCK('{name}')") == [(1,)]
        if begins:
            connection.commit()
    assert mariadb.rows("SELECT revision FROM run") == [("1",)]


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "succeeds"])
def test_lock_of_postgresql_ends_with_the_run(
    project: Project, postgresql: Database, fails: bool
) -> None:
    """A shared connection without a transaction does not keep the lock after the run."""
    project.revision("a1", "raise RuntimeError('the revision fails')" if fails else "pass")
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with postgresql.engine().connect() as connection:
        if fails:
            with pytest.raises(RuntimeError, match="^the revision fails$"):
                project.upgrade(connection)
        else:
            project.upgrade(connection)
        assert postgresql.rows(query) == [(0,)]


@pytest.mark.parametrize(
    ("option", "revision"),
    [
        pytest.param("true", HOLD, id="transaction-per-migration"),
        pytest.param(
            None,
            "with op.get_context().autocommit_block():\n" + HOLD.replace("\n", "\n    "),
            id="autocommit-block",
        ),
        pytest.param(
            None,
            "with op.get_context().autocommit_block():\n    pass\n" + HOLD,
            id="after-autocommit-block",
        ),
    ],
)
def test_lock_is_held_across_transactions(
    project: Project, database: Database, option: str | None, revision: str, runs: Runs
) -> None:
    """A run with several transactions holds the lock from its beginning to its end."""
    project.revision("a1", CREATE_RUN + ran("a1"))
    project.revision("b2", revision + "\n" + ran("b2"), down="a1")
    project.set(transaction_per_migration=option)
    holder = runs.hold(database)
    assert database.rows("SELECT revision FROM run") == [("a1",)]
    with pytest.raises(CommandError) as raised:
        command.upgrade(impatient(project, database), "head")
    runs.let_go()
    finish(holder)
    assert re.fullmatch(waited(database), str(raised.value))
    assert database.rows("SELECT revision FROM run ORDER BY revision") == [("a1",), ("b2",)]


@pytest.mark.parametrize("begins", [True, False], ids=["transaction", "no-transaction"])
def test_lost_connection_does_not_hide_the_error_of_the_revision(
    project: Project, database: Database, begins: bool
) -> None:
    """What fails because the connection is gone is not raised instead of the revision's error."""
    project.revision(
        "a1",
        "op.get_bind().invalidate()\nraise RuntimeError('the revision fails')",
    )
    project.set(ddl_lock_timeout="5")
    engine = database.engine()
    with engine.connect() as connection:
        if begins:
            connection.begin()
        with pytest.raises(RuntimeError, match="^the revision fails$"):
            project.upgrade(connection)
    with pytest.raises(RuntimeError, match="^the revision fails$"):
        project.upgrade(engine)


@pytest.mark.parametrize("begins", [True, False], ids=["transaction", "no-transaction"])
@pytest.mark.parametrize(
    ("kind", "statement", "error"),
    [
        pytest.param(
            "postgresql",
            "SELECT pg_terminate_backend(pg_backend_pid())",
            "terminating connection due to administrator command",
            id="postgresql",
        ),
        pytest.param("mariadb", "KILL CONNECTION_ID()", "Connection was killed", id="mariadb"),
    ],
)
def test_terminated_session_is_reported_as_such(
    project: Project,
    request: pytest.FixtureRequest,
    kind: str,
    statement: str,
    error: str,
    begins: bool,
) -> None:
    """A revision whose session the server ends fails with the server's own words."""
    database: Database = request.getfixturevalue(kind)
    project.revision("a1", f"op.execute({statement!r})")
    project.set(ddl_lock_timeout="5")
    with database.engine().connect() as connection:
        if begins:
            connection.begin()
        with pytest.raises(OperationalError, match=error) as raised:
            project.upgrade(connection)
    assert raised.value.statement == statement


def test_aborted_transaction_does_not_hide_the_error(
    project: Project, postgresql: Database
) -> None:
    """In a transaction that an error has aborted the lock is given back, and the error is shown."""
    project.revision("a1", "op.execute('SELECT 1 / 0')")
    project.set(ddl_lock_timeout="5")
    with postgresql.engine().connect() as connection:
        for _ in range(2):
            with pytest.raises(Exception, match="division by zero"):
                project.upgrade(connection)
        with pytest.raises(Exception, match="division by zero"):
            command.upgrade(impatient(project, postgresql), "head")


def test_waiter_in_the_middle_of_an_applications_write(
    project: Project, sqlite: Database, runs: Runs
) -> None:
    """On SQLite a run waits until an application has committed, and keeps what it wrote."""
    sqlite.run("CREATE TABLE run (revision VARCHAR(10))")
    project.revision("a1", ran("a1"))
    with closing(sqlite3.connect(str(sqlite.url.database), isolation_level=None)) as application:
        application.execute("BEGIN IMMEDIATE")
        application.execute("INSERT INTO run VALUES ('own')")
        with pytest.raises(CommandError) as raised:
            command.upgrade(impatient(project, sqlite), "head")
        waiter = runs.start(sqlite)
        until_it_waits(waiter, sqlite)
        application.execute("COMMIT")
        finish(waiter)
    assert re.fullmatch(waited(sqlite), str(raised.value))
    assert sqlite.rows("SELECT revision FROM run") == [("own",), ("a1",)]


def test_waiter_in_the_transaction_of_the_caller(project: Project, sqlite: Database) -> None:
    """On SQLite a run in a caller's transaction that has read only waits as well."""
    sqlite.run("CREATE TABLE run (revision VARCHAR(10))")
    project.revision("a1", ran("a1"))
    project.set(lock_timeout="0")
    with closing(sqlite3.connect(str(sqlite.url.database), isolation_level=None)) as application:
        application.execute("BEGIN IMMEDIATE")
        with sqlite.engine().connect() as connection:
            connection.begin()
            with pytest.raises(CommandError) as raised:
                project.upgrade(connection)
            application.execute("COMMIT")
            project.upgrade(connection)
            connection.commit()
    assert re.fullmatch(waited(sqlite), str(raised.value))
    assert sqlite.rows("SELECT revision FROM run") == [("a1",)]
