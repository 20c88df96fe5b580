"""The migration lock: one process at a time, waited for, given back, and never in the way."""

from __future__ import annotations

import hashlib
import logging
import re
import signal
import sqlite3
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command, op
from alembic.config import Config
from alembic.util import CommandError
from conftest import DRIVERS, Database, Project, imported, reached_by, render
from sqlalchemy import MetaData, NullPool, create_engine
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    InvalidRequestError,
    OperationalError,
    PendingRollbackError,
)

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


def test_eight_processes_at_once(project: Project, database: Database, runs: Runs) -> None:
    """Of eight processes that upgrade an empty database all succeed; each revision runs once."""
    project.revision("a1", CREATE_RUN + ran("a1"))
    project.revision("b2", ran("b2"), down="a1")
    processes = [runs.start(database) for _ in range(8)]
    for process in processes:
        finish(process)
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
    with pytest.raises(CommandError) as raised:
        command.upgrade(config, "head")
    runs.let_go()
    finish(holder)
    assert re.fullmatch(waited(database, "0.7"), str(raised.value))


def test_waiter_finds_the_work_done(project: Project, sync_database: Database, runs: Runs) -> None:
    """A run that has waited goes on when the other has finished, and has nothing left to do."""
    database = sync_database
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


# Meant to have no tables, as one with objects of another kind.
EMPTY = MetaData(info={"objects": ["one"]})

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
    read(impatient(project, database, target_metadata=EMPTY))
    assert holder.poll() is None
    runs.let_go()
    finish(holder)
    assert database.versions() == set()


@pytest.mark.parametrize("read", READS)
def test_reading_commands_create_nothing(
    project: Project, database: Database, read: Callable[[Config], object]
) -> None:
    """Commands that only read leave an empty database empty."""
    read(project.config(database.text, target_metadata=EMPTY))
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
    if database.url.drivername == "postgresql+psycopg2":
        error = "server closed the connection unexpectedly"  # its own words
    project.revision("a1", f"op.execute({statement!r})")
    project.set(ddl_lock_timeout="5")
    with database.engine().connect() as connection:
        if begins:
            connection.begin()
        with pytest.raises(OperationalError, match=error) as raised:
            project.upgrade(connection)
    assert raised.value.statement == statement


@pytest.mark.parametrize("kind", SERVERS)
def test_error_before_the_lock_is_the_only_one(
    project: Project, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A run that could not ask for the lock has none to release, and keeps the session."""
    database: Database = request.getfixturevalue(kind)
    project.revision("a1")
    with database.engine().connect() as connection:
        driver = connection.connection.driver_connection
        with (
            pytest.raises(InvalidRequestError, match="closed transaction"),
            connection.begin() as transaction,
        ):
            transaction.rollback()
            project.upgrade(connection)
        assert connection.connection.driver_connection is driver
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == []


def test_aborted_transaction_does_not_hide_the_error(
    project: Project, postgresql: Database
) -> None:
    """In a transaction that an error has aborted the lock is given back, and the error is shown."""
    project.revision("a1", "op.execute('SELECT 1 / 0')")
    project.set(ddl_lock_timeout="5")
    with postgresql.engine().connect() as connection:
        for _ in range(2):
            with pytest.raises(DataError, match="division by zero"):
                project.upgrade(connection)
        with pytest.raises(DataError, match="division by zero"):
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


# What a waiting run says, and of whom


def test_message_names_the_process_of_this_database(
    project: Project, postgresql: Database, request: pytest.FixtureRequest
) -> None:
    """The process that the message names holds the lock of this database, not of another one."""
    key = lock_of(postgresql).split()[3]
    for number in range(5):
        name = f"{postgresql.url.database}_{number}"
        engine = postgresql.engine()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        other = Database("postgresql", postgresql.url.set(database=name)).engine()
        held = other.connect()
        request.addfinalizer(partial(drop_database, postgresql, name))
        request.addfinalizer(held.close)
        held.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
    with postgresql.engine().connect() as holder:
        pid = holder.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        holder.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
        project.revision("a1")
        with pytest.raises(CommandError, match=f"held by server process {pid};"):
            command.upgrade(impatient(project, postgresql), "head")


def drop_database(database: Database, name: str) -> None:
    """Drop another database of the server."""
    with database.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("way", ["command", "series"])
def test_waiting_is_said_once(
    project: Project, database: Database, runs: Runs, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """A program's run that waits writes one WARNING: for what, who holds it, and how long."""
    project.revision("a1", CREATE_RUN + ran("a1") + HOLD)
    runs.hold(database)
    caplog.set_level(logging.INFO, "alembic")
    project.set(lock_timeout="1.5")
    with pytest.raises(CommandError, match=r"waited 1\.5 seconds"):
        if way == "command":
            command.upgrade(project.config(database.text), "head")
        else:
            with database.engine().connect() as connection:
                series(project)(connection).upgrade()
    runs.let_go()
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    (waits,) = [each for each in said if each[1].startswith("Waiting")]
    assert waits[0] == "WARNING"
    holder = {"sqlite": "", "postgresql": r", held by server process \d+"}
    assert re.fullmatch(
        rf"Waiting up to 1\.5 seconds for {re.escape(lock_of(database))}"
        + holder.get(database.kind, r", held by connection \d+"),
        waits[1],
    )
    assert len(said) == len(set(said))


def series(project: Project) -> Callable[..., Any]:
    """Return `Migrations` of a rendered environment."""
    migrations: Callable[..., Any] = imported(project.folder / "migrations").Migrations
    return migrations


def test_series_waits_for_its_turn_as_long_as_pyproject_says(
    project: Project, sqlite: Database, tmp_path: Path
) -> None:
    """A number with a fraction in pyproject.toml is the timeout of a series' turn as well."""
    (project.folder / "pyproject.toml").write_text(
        '[tool.alembic]\nscript_location = "migrations"\nlock_timeout = 0.5\n'
    )
    (project.folder / "alembic.ini").unlink()
    project.revision(
        "a1",
        "context.config.attributes['started'].set()\ncontext.config.attributes['end'].wait(30)",
    )
    started, end = threading.Event(), threading.Event()

    def hold() -> None:
        with sqlite.engine().connect() as connection:
            series(project)(connection, started=started, end=end).upgrade()

    thread = threading.Thread(target=hold)
    thread.start()
    assert started.wait(30)
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with other.connect() as connection, pytest.raises(CommandError) as raised:
        series(project)(connection).current()
    end.set()
    thread.join()
    assert str(raised.value).startswith(
        "A command of another thread or task has not ended in 0.5 seconds: "
    )


# The session that holds the lock


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_transaction_in_another_session_is_refused(
    project: Project, driver: str, request: pytest.FixtureRequest
) -> None:
    """A transaction in which another session has the lock commits nothing."""
    postgresql = reached_by(driver, request)
    key = lock_of(postgresql).split()[3]
    project.revision("a1", CREATE_RUN + ran("a1"))
    # As if the session had changed: this one gives its lock up, and another one takes it.
    project.revision(
        "b2",
        f"op.execute('SELECT pg_advisory_unlock({key})')\n"
        "other = context.config.attributes['other']\n"
        f"op.execute('COMMIT')\nother.exec_driver_sql('SELECT pg_advisory_lock({key})')\n",
        down="a1",
    )
    project.revision("c3", ran("c3"), down="b2")
    project.set(transaction_per_migration="true")
    with postgresql.engine().connect() as other, postgresql.engine().connect() as connection:
        config = project.config(connection=connection, other=other)
        with pytest.raises(CommandError, match="pooler"):
            command.upgrade(config, "head")
    assert postgresql.rows("SELECT revision FROM run") == [("a1",)]
    assert postgresql.versions() == {"b2"}


@pytest.mark.parametrize("driver", ["mysql+pymysql", "mysql+mysqldb"])
def test_lock_given_up_by_a_revision_is_noticed_on_mariadb(
    project: Project, driver: str, request: pytest.FixtureRequest
) -> None:
    """A transaction of a session that has lost the lock commits nothing."""
    mariadb = reached_by(driver, request)
    name = lock_of(mariadb).split()[2]
    project.revision("a1", CREATE_RUN + f"op.execute(\"SELECT RELEASE_LOCK('{name}')\")")
    project.revision("b2", ran("b2"), down="a1")
    with (
        mariadb.engine().connect() as connection,
        pytest.raises(CommandError, match="pooler"),
    ):
        project.upgrade(connection)
    assert mariadb.rows("SELECT revision FROM run") == []
    assert mariadb.versions() == {"a1"}


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_waiter_at_another_isolation_level_finds_the_work_done(
    project: Project, postgresql: Database, runs: Runs, level: str
) -> None:
    """A run whose transactions see old rows does not see those of before the holder's end."""
    project.revision("a1", CREATE_RUN + ran("a1") + HOLD)
    holder = runs.hold(postgresql)
    project.set(sqlalchemy__isolation_level=level)
    waiter = runs.start(postgresql)
    until_it_waits(waiter, postgresql)
    runs.let_go()
    finish(holder)
    finish(waiter)
    assert postgresql.rows("SELECT revision FROM run") == [("a1",)]


# Two series in transactions of their own, on MariaDB


def test_waiting_series_locks_nothing(project: Project, mariadb: Database) -> None:
    """A series that waits in its transaction does not stop the one that it waits for."""
    for number in range(1, 6):
        project.revision(
            f"r{number}",
            f"op.create_table('t{number}', sa.Column('id', sa.Integer))",
            down=f"r{number - 1}" if number > 1 else None,
        )
    project.set(lock_timeout="0")
    with mariadb.engine().connect() as first, mariadb.engine().connect() as second:
        first.exec_driver_sql("SET innodb_lock_wait_timeout = 1")
        first.commit()
        with first.begin(), second.begin():
            holds, waits = series(project)(first), series(project)(second)
            for number in range(1, 6):
                holds.upgrade(f"r{number}")
                with pytest.raises(CommandError, match="a transaction that is not committed"):
                    waits.upgrade()
            assert holds.current() == ("r5",)
            first.commit()
            waits.upgrade()
            assert waits.current() == ("r5",)
            assert waits.at_head()
    assert mariadb.versions() == {"r5"}


# What is refused, and what is said


def test_dialect_without_a_lock_says_so(
    project: Project, sqlite: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """On a database for which there is no lock, a run says so once."""
    (project.folder / "models.py").write_text(OTHER_DIALECT)
    project.revision("a1", CREATE_RUN)
    done = project.alembic("-x", f"url=other:///{sqlite.url.database}", "upgrade", "head", ok=False)
    assert "Alembic does not know the dialect other: expected one of its own" in done.stderr
    assert "Traceback" not in done.stderr
    (project.folder / "models.py").write_text(OTHER_DIALECT + KNOWN_TO_ALEMBIC)
    done = project.alembic("-x", f"url=other:///{sqlite.url.database}", "upgrade", "head")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("WARN")]
    assert line.endswith(
        "There is no migration lock for other: run migrations from one process at a time."
    )
    assert sqlite.versions() == {"a1"}


OTHER_DIALECT = """
from alembic.ddl.impl import DefaultImpl
from sqlalchemy import MetaData
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

metadata = MetaData()


class Other(SQLiteDialect_pysqlite):
    name = "other"
    supports_statement_cache = True


registry.register("other", "models", "Other")
"""
KNOWN_TO_ALEMBIC = """

class OtherImpl(DefaultImpl):
    __dialect__ = "other"
    transactional_ddl = True
"""


@pytest.mark.parametrize("verb", ["upgrade", "current", "check"])
def test_schema_translate_map_is_refused(project: Project, postgresql: Database, verb: str) -> None:
    """A connection with a schema_translate_map is refused, since the version would be lost."""
    postgresql.run("CREATE SCHEMA x")
    project.revision("a1", CREATE_RUN)
    engine = postgresql.engine()
    mapped = engine.execution_options(schema_translate_map={None: "x"})
    run: dict[str, Callable[[Config], object]] = {
        "upgrade": lambda config: command.upgrade(config, "head"),
        "current": command.current,
        "check": command.check,
    }
    with (
        mapped.connect() as connection,
        pytest.raises(CommandError, match="^The connection has a schema_translate_map"),
    ):
        run[verb](project.config(connection=connection))
    assert postgresql.tables() == set()
    assert postgresql.rows("SELECT 1 FROM pg_tables WHERE schemaname = 'x'") == []


@pytest.mark.parametrize("kind", SERVERS)
def test_missing_schema_of_the_version_table_is_one_sentence(
    project: Project, request: pytest.FixtureRequest, kind: str
) -> None:
    """A version_table_schema that does not exist is named, and nothing is done."""
    database: Database = request.getfixturevalue(kind)
    project.revision("a1", CREATE_RUN)
    project.set(version_table_schema="nowhere")
    done = project.alembic("-x", f"url={database.text}", "upgrade", "head", ok=False)
    assert done.stderr.splitlines()[-1].endswith(
        "Option version_table_schema names 'nowhere', and the database has no such schema: "
        "create it, or correct the option."
    )
    assert database.tables() == set()


@pytest.mark.parametrize("is_callers", [False, True], ids=["own", "callers"])
@pytest.mark.parametrize(
    "undo",
    [
        "op.execute('rollback')",
        "op.get_bind().rollback()",
        "session = Session(op.get_bind())\nsession.connection()\nsession.rollback()",
    ],
    ids=["statement", "connection", "session"],
)
def test_rollback_of_a_revision_is_refused(
    project: Project, sync_database: Database, undo: str, is_callers: bool
) -> None:
    """What a revision rolls back would be taken for done; savepoints and a Session are its own."""
    said = "A revision rolls its transaction back, after"
    if is_callers and sync_database.kind == "postgresql" and "get_bind" in undo:
        said = "A revision has ended the transaction that it runs in"
    sync_database.run("CREATE TABLE note (id INTEGER)")
    add = "op.execute('INSERT INTO note VALUES (1)')\n"
    nested = "with op.get_bind().begin_nested() as nested:\n    nested.rollback()\n"
    project.revision("a1", "op.execute('SAVEPOINT a')\nop.execute('ROLLBACK TO SAVEPOINT a')")
    session = "from sqlalchemy.orm import Session\n"
    own = "with Session(op.get_bind()) as own:\n    own.connection()\n    own.commit()\n"
    project.revision("a2", session + nested + own, down="a1")
    project.revision("a3", session + add + undo + "\n" + add, down="a2")
    config = project.config(sync_database.text)
    command.upgrade(config, "a2")
    with sync_database.engine().connect() as connection:
        if is_callers:
            connection.begin()
        config = project.config(connection=connection)
        with pytest.raises(CommandError, match=said):
            command.upgrade(config, "head")
        connection.rollback()
    assert sync_database.versions() == {"a2"}
    assert sync_database.rows("SELECT * FROM note") == []


def test_rollback_of_the_first_revision_is_refused(project: Project, postgresql: Database) -> None:
    """The version table, which the same transaction has created, is gone then."""
    project.revision("a1", CREATE_RUN + "op.get_bind().rollback()")
    with pytest.raises(CommandError, match="^A revision rolls its transaction back, after"):
        command.upgrade(project.config(postgresql.text), "head")
    assert postgresql.tables() == set()


def test_a_second_rollback_does_not_hide_the_first(project: Project, sqlite: Database) -> None:
    """The second one undoes nothing, and what the first has undone is still gone."""
    undo = "op.get_bind().rollback()\nop.execute('SELECT 1')\n"
    project.revision("a1", CREATE_RUN + undo + undo)
    with sqlite.engine().connect() as connection:
        connection.begin()
        with pytest.raises(CommandError, match="^A revision rolls its transaction back, after"):
            command.upgrade(project.config(connection=connection), "head")


def test_an_error_of_the_database_is_not_taken_for_a_rollback(
    project: Project, postgresql: Database
) -> None:
    """Alembic rolls back after an error, and the error is the one that is raised."""
    project.revision("a1", "op.execute('SELECT * FROM nowhere')")
    with pytest.raises(DBAPIError, match="nowhere"):
        command.upgrade(project.config(postgresql.text), "head")
    project.revision("a1", "op.execute('DROP TABLE alembic_version')")
    with pytest.raises(DBAPIError, match="alembic_version"):
        command.upgrade(project.config(postgresql.text), "head")
    assert postgresql.tables() == set()


@pytest.mark.parametrize(
    "level", [None, "AUTOCOMMIT", "engine-AUTOCOMMIT"], ids=["plain", "autocommit", "engine"]
)
def test_rollback_that_undoes_nothing_of_the_run_is_accepted(
    project: Project, sync_database: Database, level: str | None
) -> None:
    """A revision may roll back what it has begun after a commit of its own, and at AUTOCOMMIT."""
    sync_database.run("CREATE TABLE note (id INTEGER)")
    undo = """
        bind = op.get_bind()
        bind.commit()
        with Session(bind) as session:
            session.execute(sa.text("SELECT * FROM note"))
        try:
            with bind.begin():
                op.execute("SELECT * FROM nowhere")
        except sa.exc.DBAPIError:
            op.execute("INSERT INTO note VALUES (1)")
    """
    project.revision("a1", "from sqlalchemy.orm import Session\n" + textwrap.dedent(undo))
    options = {"isolation_level": "AUTOCOMMIT"} if level == "engine-AUTOCOMMIT" else {}
    engine = create_engine(sync_database.url, poolclass=NullPool, **options)
    with engine.connect() as connection:
        if level == "AUTOCOMMIT":
            connection.execution_options(isolation_level=level)
        command.upgrade(project.config(connection=connection), "head")
    assert sync_database.versions() == {"a1"}
    assert sync_database.rows("SELECT * FROM note") == [(1,)]


@pytest.mark.parametrize("verb", ["current", "upgrade"])
def test_a_url_without_a_database_is_refused(
    project: Project, mariadb: Database, verb: str
) -> None:
    """MySQL and MariaDB connect without one, and SQLAlchemy then finds no table anywhere."""
    project.revision("a1", CREATE_RUN)
    url = mariadb.url.set(database="").render_as_string(hide_password=False)
    revision = ["head"] if verb == "upgrade" else []
    done = project.alembic("-x", f"url={url}", verb, *revision, ok=False)
    assert "The connection is in no database: name one at the end of the URL" in done.stdout


def test_half_applied_revision_says_what_to_do(project: Project, mariadb: Database) -> None:
    """On MariaDB the error of a revision says what may have been committed, and how to go on."""
    project.revision("a1", CREATE_RUN + "op.execute('SELECT nothing')")
    with (
        mariadb.engine().connect() as connection,
        pytest.raises(OperationalError) as raised,
    ):
        project.upgrade(connection)
    assert "Revision a1 failed in line" in str(raised.value)
    assert "undo that by hand, or complete the revision by hand and stamp it" in str(raised.value)
    assert mariadb.tables() == {"alembic_version", "run"}


@pytest.mark.parametrize("template", ["shared", "sync", "asyncio"])
def test_alembic_op_is_free_after_a_failure(
    project: Project, sqlite: Database, template: str, tmp_path: Path
) -> None:
    """After a revision that failed, alembic.op belongs to nobody, as after one that did not."""
    project = project if template == "shared" else render(template, tmp_path / template)
    project.revision("a1", "raise RuntimeError('the revision fails')")
    driver = DRIVERS["sqlite"][-1 if template == "asyncio" else 0]
    with pytest.raises(RuntimeError, match="^the revision fails$"):
        command.upgrade(project.config(sqlite.url_for(driver)), "head")
    assert vars(op).get("_proxy") is None


@pytest.mark.parametrize("kind", SERVERS)
def test_engine_at_autocommit_stays_at_autocommit(
    project: Project, request: pytest.FixtureRequest, kind: str
) -> None:
    """An engine made at AUTOCOMMIT commits the caller's writes after a run with autocommit_block()."""
    database: Database = request.getfixturevalue(kind)
    project.revision(
        "a1", CREATE_RUN + "with op.get_context().autocommit_block():\n    " + ran("a1")
    )
    engine = create_engine(database.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        project.upgrade(connection)
        connection.exec_driver_sql("INSERT INTO run VALUES ('own')")
    assert database.rows("SELECT revision FROM run") == [("a1",), ("own",)]


FORKS = """
import os, signal, sys, threading
from pathlib import Path
from sqlalchemy import create_engine, event
from migrations.commands import Migrations

started, end = threading.Event(), threading.Event()


def hold():
    engine = create_engine("sqlite:///held.db")
    event.listen(engine, "connect", lambda *_: None)
    with engine.connect() as connection:
        Migrations(connection, started=started, end=end).upgrade()


thread = threading.Thread(target=hold)
thread.start()
assert started.wait(30)
child = os.fork()
if not child:
    signal.alarm(30)
    with create_engine("sqlite:///child.db").connect() as connection:
        # Nobody in this process will ever let the other revision go on.
        Migrations(connection, started=started, end=None).upgrade()
    os._exit(0)
_, status = os.waitpid(child, 0)
end.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_child_of_a_process_with_the_turn_takes_its_own(project: Project) -> None:
    """A process forked while another thread runs a command can run commands."""
    project.revision(
        "a1",
        """
        attributes = context.config.attributes
        attributes["started"].set()
        if attributes["end"]:
            attributes["end"].wait(60)
        """,
    )
    project.python(FORKS)


# A command that gives its turn away while it waits


def test_command_that_loses_its_turn_leaves_the_other_alone(
    project: Project, postgresql: Database, sqlite: Database
) -> None:
    """A command that waits longer than it may ends, and the one that has the turn goes on."""
    project.revision(
        "a1",
        """
        attributes = context.config.attributes
        if "started" in attributes:
            attributes["started"].set()
            assert attributes["end"].wait(30)
        op.execute("CREATE TABLE one (id INTEGER)")
        """,
    )
    project.set(lock_timeout="0.7")
    key = lock_of(postgresql).split()[3]
    started, end = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def waits() -> None:
        with postgresql.engine().connect() as connection:
            try:
                series(project)(connection).upgrade()
            except CommandError as error:
                errors.append(error)
        end.set()

    def has_the_turn() -> None:
        with sqlite.engine().connect() as connection:
            series(project)(connection, started=started, end=end).upgrade()

    with postgresql.engine().connect() as holder:
        holder.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
        threads = [threading.Thread(target=waits), threading.Thread(target=has_the_turn)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [str(error).partition(":")[0] for error in errors] == [
        "A command of another thread or task has not ended in 0.7 seconds"
    ]
    assert sqlite.versions() == {"a1"}
    assert "one" in sqlite.tables()
    assert postgresql.tables() == set()


# In the transaction of the caller


def test_commit_of_a_revision_stops_a_run_in_the_callers_transaction(
    project: Project, postgresql: Database
) -> None:
    """A revision that ends the caller's transaction is stopped before its next statement."""
    project.revision("a1", CREATE_RUN + "op.execute('/* by hand */ COMMIT')\n" + ran("a1"))
    with (
        postgresql.engine().connect() as connection,
        pytest.raises(CommandError, match="^A revision has ended the transaction"),
    ):
        connection.begin()
        project.upgrade(connection)
    assert postgresql.rows("SELECT revision FROM run") == []


def test_version_that_the_caller_has_written_counts(project: Project, mariadb: Database) -> None:
    """On MariaDB too, a series sees the version that its transaction has written by other means."""
    project.revision("a1", CREATE_RUN)
    command.upgrade(project.config(mariadb.text), "head")
    with mariadb.engine().connect() as connection, connection.begin():
        migrations = series(project)(connection)
        assert migrations.at_head()
        connection.exec_driver_sql("DELETE FROM alembic_version")
        assert migrations.current() == ()
        assert not migrations.at_head()
        connection.rollback()
    with mariadb.engine().connect() as connection, connection.begin():
        command.stamp(project.config(connection=connection), "base", purge=True)
        assert series(project)(connection).current() == ()
        series(project)(connection).stamp()
        assert series(project)(connection).at_head()


def test_engine_whose_creator_gives_one_connection_keeps_it(
    project: Project, mariadb: Database
) -> None:
    """The one connection of a creator is not closed, nor is what its caller has written lost."""
    project.revision("a1", "op.execute(\"INSERT INTO run VALUES ('a1')\")")
    mariadb.run("CREATE TABLE run (revision VARCHAR(10))")
    owner = mariadb.engine().raw_connection()
    raw = owner.driver_connection
    engine = create_engine(mariadb.url, creator=lambda: raw)
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO run VALUES ('own')")
        project.upgrade(connection)
        connection.commit()
    owner.close()
    assert mariadb.rows("SELECT revision FROM run") == [("own",), ("a1",)]
    assert mariadb.versions() == {"a1"}


def test_old_error_of_the_caller_is_not_raised_again(project: Project, sqlite: Database) -> None:
    """An error that the caller handles is not taken for that of a run on a lost connection."""
    project.revision("a1")
    with sqlite.engine().connect() as connection:
        connection.begin()
        connection.invalidate()
        try:
            raise KeyError("of the caller")
        except KeyError:
            with pytest.raises(PendingRollbackError):
                project.upgrade(connection)
