"""Each step of an upgrade fails in turn, in the client and on the server: nothing of it is left."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from inspect import isfunction
from itertools import count, product
from pathlib import Path
from typing import Any, ClassVar

import alembic.context
import alembic.op
import pytest
from alembic import command
from alembic.config import Config
from conftest import DRIVERS, Database, Project, kind_of
from sqlalchemy import (
    AsyncAdaptedQueuePool,
    Connection,
    Engine,
    QueuePool,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.events import ConnectionEvents, PoolEvents
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

# A test ends after so many problems, each of which may have cost seconds.
ENOUGH = 20
# A sync and an async driver for each database.
TRIED = [
    driver
    for drivers in DRIVERS.values()
    for driver in dict.fromkeys([drivers[0], drivers[-1]])  # one of them without greenlet
]
OWNERS = ["own", "engine", "connection", "transaction"]
FAULTS = {
    "before": "an exception in the client, before a statement is sent",
    "after": "an exception in the client, after a statement was run",
    "driver": "an exception of SQLite's driver, whoever calls it",
    "error": "an error of the server instead of what a statement does",
    "kill": "the server ends the session before a statement",
    "busy": "another process takes SQLite's write lock before a statement",
}
FAULTS_OF = {
    "sqlite": ["before", "after", "driver", "error", "busy"],
    "postgresql": ["before", "after", "error", "kill"],
    "mariadb": ["before", "after", "error", "kill"],
}
# What the error that a run raises speaks of.
WORDS = {
    **dict.fromkeys(FAULTS, "injected"),
    "kill": "(?i)terminat|clos|lost|gone|kill",
    "busy": "locked|Another process",
}
# A statement that fails on the server as one that is cancelled by a timeout does.
ERRORS = {
    "postgresql": "DO 'BEGIN RAISE query_canceled USING MESSAGE = ''injected''; END'",
    "mariadb": "SIGNAL SQLSTATE '70100' SET MYSQL_ERRNO = 1317, MESSAGE_TEXT = 'injected'",
    "sqlite": "SELECT injected FROM injected",
}
# A transaction that has begun, with the number of its session, in what InnoDB says of itself.
ACTIVE_TRANSACTION = re.compile(
    r"^---TRANSACTION [^,]+, ACTIVE(?:(?!^---).)*?thread id (\d+)", re.MULTILINE | re.DOTALL
)
# What the caller has set on each session.
SET = {
    "postgresql": ["SET search_path TO public, pg_catalog", "SET lock_timeout TO '7s'"],
    "mariadb": ["SET SESSION lock_wait_timeout = 77"],
    "sqlite": ["PRAGMA foreign_keys = ON", "PRAGMA busy_timeout = 20"],
}
SETTINGS = {
    "postgresql": ["SELECT current_setting('search_path'), current_setting('lock_timeout')"],
    "mariadb": ["SELECT DATABASE(), @@lock_wait_timeout, @@autocommit, @@foreign_key_checks"],
    "sqlite": ["PRAGMA foreign_keys", "PRAGMA busy_timeout", "PRAGMA defer_foreign_keys"],
}
CREATE_AUTHOR = """
id = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
op.create_table("author", id)
op.execute("INSERT INTO author VALUES (1)")
"""
CREATE_BOOK = """
author = sa.ForeignKey("author.id", name="fk", ondelete="CASCADE")
op.create_table("book", sa.Column("author", sa.Integer, author))
op.execute("INSERT INTO book VALUES (1)")
with op.batch_alter_table("author") as table:
    table.add_column(sa.Column("born", sa.Integer))
    table.create_check_constraint("known", "id > 0")
"""
CREATE_INDEX = """
with op.get_context().autocommit_block():
    op.create_index("ix_born", "author", ["born"], if_not_exists=True, postgresql_concurrently=True)
"""
# The rows of each table that a version has.
CONTENT: dict[str, dict[str, list[tuple[object, ...]]]] = {
    "": {},
    "a1": {"author": [(1,)]},
    "b2": {"author": [(1, None)], "book": [(1,)]},
    "c3": {"author": [(1, None)], "book": [(1,)]},
}


class InjectedError(Exception):
    """The exception that a test lets the client raise."""

    def __init__(self) -> None:
        super().__init__("injected")


@dataclass
class Steps:
    """The statements, commits and rollbacks of a command, of which the one at `at` fails."""

    fault: str
    at: int
    outside: Outside
    seen: list[str] = field(default_factory=list)
    failed: bool = False
    # The steps whose statements have not ended, by their cursors.
    running: dict[int, int] = field(default_factory=dict)

    def step(self, what: str) -> bool:
        """Count a step; tell whether it is the one to fail, and do what its fault asks for first."""
        self.seen.append(what)
        if len(self.seen) != self.at:
            return False
        if self.fault == "kill":
            self.outside.kill()
        self.failed = self.outside.hold() if self.fault == "busy" else True
        return True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count the steps of each engine, or of SQLite's driver."""
        if self.fault == "driver":
            FaultyConnection.steps = self
            try:
                yield
            finally:
                FaultyConnection.steps = None
            return
        listeners: dict[str, Callable[..., Any]] = {
            "before_cursor_execute": self.before,
            "after_cursor_execute": self.after,
            "commit": lambda _: self.end("COMMIT"),
            "rollback": lambda _: self.end("ROLLBACK"),
        }
        for name, listener in listeners.items():
            event.listen(Engine, name, listener, retval=name == "before_cursor_execute")
        try:
            yield
        finally:
            for name, listener in listeners.items():
                event.remove(Engine, name, listener)

    def before(
        self, _: Connection, cursor: Any, statement: str, parameters: Any, *_more: Any
    ) -> tuple[str, Any]:
        """Let a statement fail before it is sent, or on the server."""
        if self.step(statement):
            if self.fault == "before":
                raise InjectedError
            if self.fault == "error":
                return ERRORS[self.outside.database.kind], type(parameters)()
        self.running[id(cursor)] = len(self.seen)
        return statement, parameters

    def after(self, _: Connection, cursor: Any, *_more: Any) -> None:
        """Let the client fail after a statement was run."""
        if self.running.pop(id(cursor), 0) == self.at and self.fault == "after":
            raise InjectedError

    def end(self, what: str) -> None:
        """Let a COMMIT or ROLLBACK fail, which is no statement that could be another."""
        if self.step(what):
            if self.fault in {"before", "after"}:
                raise InjectedError
            self.failed = self.failed and self.fault != "error"


class FaultyCursor(sqlite3.Cursor):
    """A cursor of SQLite's driver, whose statements are steps."""

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """Run a statement, unless it is the one to fail."""
        FaultyConnection.step(statement)
        return super().execute(statement, *parameters)


class FaultyConnection(sqlite3.Connection):
    """A connection of SQLite's driver, whose calls are steps."""

    steps: ClassVar[Steps | None] = None

    @classmethod
    def step(cls, what: str) -> None:
        """Count a call, unless it is the one to fail."""
        if cls.steps is not None and cls.steps.step(what):
            raise sqlite3.OperationalError("injected")

    def cursor(self, factory: type[Any] = FaultyCursor) -> Any:
        """Return a cursor whose statements are steps."""
        return super().cursor(factory)

    def commit(self) -> None:
        """Commit, unless it is the step to fail."""
        if self.in_transaction:
            self.step("COMMIT")
        super().commit()

    def rollback(self) -> None:
        """Roll back, unless it is the step to fail."""
        if self.in_transaction:
            self.step("ROLLBACK")
        super().rollback()


@dataclass
class Outside:
    """A look at the databases of a test from outside, and what its server does to a run."""

    database: Database
    tenants: list[str]
    held: list[sqlite3.Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Connect to a server, without waits for what a run has left locked."""
        connect_args: dict[str, Any] = {
            "postgresql": {"options": "-c lock_timeout=3s", "prepare_threshold": None},
            "mariadb": {"init_command": "SET SESSION lock_wait_timeout = 3"},
            "sqlite": {},
        }[self.database.kind]
        url = self.database.url
        self.engine = create_engine(url, isolation_level="AUTOCOMMIT", connect_args=connect_args)

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each in its own transaction, and return the rows of the last one."""
        with self.engine.connect() as connection:
            results = [connection.exec_driver_sql(statement) for statement in statements]
            return [tuple(row) for row in results[-1]] if results[-1].returns_rows else []

    def file(self, tenant: str) -> Path:
        """Return SQLite's file of a tenant, or of the only database."""
        file = Path(str(self.database.url.database))
        return file.with_name(f"{tenant}.db") if tenant else file

    def where(self, tenant: str) -> str:
        """Return the schema of a tenant, or of the only database."""
        return tenant or ("public" if self.database.kind == "postgresql" else self.name)

    @property
    def name(self) -> str:
        """The name of the test's own database."""
        return str(self.database.url.database)

    def empty(self) -> None:
        """Leave nothing in the databases but a table of the caller."""
        if self.database.kind == "sqlite":
            for tenant in self.tenants:
                for file in self.file(tenant).parent.glob(f"{self.file(tenant).name}*"):
                    file.unlink()
                with sqlite3.connect(self.file(tenant)) as connection:
                    connection.execute("CREATE TABLE own (id INTEGER)")
                connection.close()
            return
        for tenant in self.tenants:
            tables = (f"{self.where(tenant)}.{name}" for name in ("book", "author"))
            self.run(
                f"DROP TABLE IF EXISTS {', '.join(tables)}, {self.where(tenant)}.alembic_version"
            )
        table = f"{self.where('')}.own"
        self.run(f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER)", f"DELETE FROM {table}")

    def rows(self, tenant: str, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query that has {} for the place of its table."""
        if self.database.kind != "sqlite":
            return self.run(query.format(f"{self.where(tenant)}."))
        connection = sqlite3.connect(self.file(tenant))
        try:
            return connection.execute(query.format("")).fetchall()
        finally:
            connection.close()

    def tables(self, tenant: str) -> set[str]:
        """Return the tables of a tenant but the caller's."""
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        if self.database.kind != "sqlite":
            query = (
                "SELECT table_name FROM information_schema.tables "
                f"WHERE table_schema = '{self.where(tenant)}'"
            )
        return {name for (name,) in self.rows(tenant, query)} - {"own"}

    def found(self, tenant: str) -> tuple[str, dict[str, list[tuple[Any, ...]]]]:
        """Return the version of a tenant, and the rows of its tables."""
        tables = self.tables(tenant)
        rows = {table: self.rows(tenant, f"SELECT * FROM {{}}{table}") for table in tables}
        return " ".join(row[0] for row in rows.pop("alembic_version", [])), rows

    def kill(self) -> None:
        """End each other session of the test's databases, and wait until it has ended."""
        kill = "SELECT pg_terminate_backend({})" if self.is_postgresql else "KILL CONNECTION {}"
        while sessions := self.sessions():
            for session in sessions:
                with suppress(Exception):  # it has ended by now
                    self.run(kill.format(session))
            time.sleep(0.002)

    @property
    def is_postgresql(self) -> bool:
        """Whether the server is PostgreSQL."""
        return self.database.kind == "postgresql"

    def sessions(self) -> list[int]:
        """Return the numbers of the other sessions of the test's databases."""
        query = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            if self.is_postgresql
            else "SELECT id FROM information_schema.processlist "
            f"WHERE db LIKE '{self.name}%%' AND id <> connection_id()"
        )
        return [number for (number,) in self.run(query)]

    def hold(self) -> bool:
        """Take SQLite's write lock of each file; tell whether it was free."""
        for tenant in self.tenants:
            connection = sqlite3.connect(self.file(tenant), timeout=0, isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                connection.close()
            else:
                self.held.append(connection)
        return bool(self.held)

    def let_go(self) -> bool:
        """Give SQLite's write locks back; tell whether there was one."""
        was_held = bool(self.held)
        while self.held:
            self.held.pop().close()
        return was_held

    def left(self, *, sessions: bool) -> list[str]:
        """Return what a run has left on the server: locks, transactions, and `sessions` if asked."""
        # A session that is closed ends a little later.
        deadline = time.monotonic() + 5
        while (found := self.left_now(sessions=sessions)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    def left_now(self, *, sessions: bool) -> list[str]:
        """Return what a run has left by now."""
        if self.database.kind == "sqlite":
            folder = Path(self.name).parent
            found = [f"the file {file.name}" for file in folder.glob("*.lock")]
            for tenant in self.tenants:
                if self.hold():
                    self.let_go()
                else:
                    found.append(f"the write lock of {self.file(tenant).name}")
            return found
        if self.is_postgresql:
            locks = self.run(
                "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            transactions = self.run(
                "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database() "
                "AND state LIKE 'idle in transaction%%'"
            )
        else:
            names = [
                f"'alembic-{sha256(f'alembic {place}.alembic_version'.encode()).hexdigest()[:40]}'"
                for place in map(self.where, self.tenants)
            ]
            locks = [
                row for name in names for row in self.run(f"SELECT IS_USED_LOCK({name})") if row[0]
            ]
            # Not from information_schema.innodb_trx: InnoDB makes that list anew only if nobody has
            # read it for a tenth of a second, and other tests read it as well.
            ((_, _, status),) = self.run("SHOW ENGINE INNODB STATUS")
            active = map(int, ACTIVE_TRANSACTION.findall(status))
            transactions = sorted({*active} & {*self.sessions()})
        found = [f"the lock {lock}" for lock in locks]
        found += [f"the transaction {transaction}" for transaction in transactions]
        return found + [f"the session {each}" for each in self.sessions() if sessions]


def listeners(engine: Engine, connection: Connection | None = None) -> list[list[Any]]:
    """Return the listeners of an engine, of its pool, and of a connection."""
    targets: list[tuple[Any, type]] = [(engine, ConnectionEvents), (engine.pool, PoolEvents)]
    if connection is not None:
        targets.append((connection, ConnectionEvents))
    return [
        list(getattr(target.dispatch, name))
        for target, events in targets
        for name, member in vars(events).items()
        if isfunction(member) and not name.startswith("_")
    ]


@dataclass
class Case:
    """An upgrade by a caller, whose steps are to fail in turn."""

    outside: Outside
    project: Project
    driver: str
    owner: str
    fault: str
    several: bool
    fleet: bool
    problems: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The database."""
        return self.outside.database.kind

    @property
    def tenants(self) -> list[str]:
        """The tenants that are upgraded: the connection to a SQLite file leads to one."""
        alone = self.kind == "sqlite" and self.owner != "own"
        return self.outside.tenants[:1] if alone else self.outside.tenants

    @property
    def head(self) -> str:
        """The version after the upgrade."""
        return "c3" if self.several else "b2"

    def url(self) -> str:
        """Return the URL with the driver, as the caller's engine takes it."""
        if self.kind != "sqlite":
            return self.outside.database.url_for(self.driver)
        return f"{self.driver}:///{self.outside.file(self.tenants[0])}"

    def config(self, connection: Any, lock_timeout: int) -> Config:
        """Return a Config for the caller's connection, or for an engine of the environment's own."""
        attributes: dict[str, Any] = {"tenant": self.tenants if self.fleet else None}
        url = self.url()
        if connection is not None:
            attributes["connection"] = connection
        elif self.kind == "sqlite":
            name = self.outside.file("{tenant}" if self.fleet else "")
            url = f"{self.driver}:///{name}?timeout=0.02"
        config = self.project.config(url, **attributes)
        config.set_main_option("lock_timeout", str(lock_timeout))
        return config

    def engine(self) -> Engine | AsyncEngine:
        """Return the engine of the caller, on whose sessions something is set."""
        connect_args = {"factory": FaultyConnection} if self.kind == "sqlite" else {}
        make = create_async_engine if is_async(self.driver) else create_engine
        pool = AsyncAdaptedQueuePool if is_async(self.driver) else QueuePool
        engine = make(
            self.url(), poolclass=pool, pool_size=1, max_overflow=0, connect_args=connect_args
        )
        statements = SET[self.kind]
        if self.kind == "sqlite" and self.owner == "transaction":
            # With foreign keys on, a transaction of the caller is refused.
            statements = statements[1:]

        def connect(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            cursor.close()
            connection.commit()

        event.listen(getattr(engine, "sync_engine", engine), "connect", connect)
        return engine

    def settings(self, connection: Connection) -> list[Any]:
        """Return what a connection of the caller is set to."""
        found: list[Any] = [
            tuple(row) for query in SETTINGS[self.kind] for row in connection.exec_driver_sql(query)
        ]
        driver = connection.connection.driver_connection
        found += [connection.get_isolation_level(), connection.dialect.default_schema_name]
        found.append(connection.dialect is connection.engine.dialect)
        if self.kind == "sqlite":
            found += [getattr(driver, name, None) for name in ("isolation_level", "autocommit")]
        return found

    def iteration(self, at: int) -> Steps:
        """Let a step fail, look at what is left, and upgrade again; return the steps that were seen."""
        steps = Steps(self.fault, at, self.outside)
        self.outside.empty()
        if self.owner == "own":
            error = self.run(steps, None)
            self.check("after the run", steps, error)
            self.again(steps, None)
            return steps
        engine = self.engine()
        try:
            if self.owner == "engine":
                self.on_engine(engine, steps)
            else:
                on(engine, lambda connection: self.on_connection(connection, steps))
        except Exception as raised:  # noqa: BLE001 - whatever it is, the caller cannot go on
            self.problem(steps, f"the caller met {type(raised).__name__}: {raised}")
        finally:
            getattr(engine, "sync_engine", engine).dispose()
        return steps

    def run(self, steps: Steps, connection: Any) -> BaseException | None:
        """Run the upgrade, in which a step may fail, and return its error."""
        impatient = 0 if self.fault == "busy" else 5
        try:
            with steps.watched():
                command.upgrade(self.config(connection, impatient), "head")
        except BaseException as error:  # noqa: BLE001 - it is looked at
            return error
        finally:
            self.outside.let_go()
        return None

    def on_engine(self, engine: Any, steps: Steps) -> None:
        """Upgrade on an engine of the caller."""
        before = on(engine, self.settings)
        sync_engine = getattr(engine, "sync_engine", engine)
        heard = listeners(sync_engine)
        error = self.run(steps, engine)
        self.expect("listeners", listeners(sync_engine), heard, steps)
        self.expect("checked out", sync_engine.pool.checkedout(), 0, steps)
        self.check("after the run", steps, error)
        self.expect("settings", on(engine, self.settings), before, steps)
        self.again(steps, engine)
        self.expect("settings in the end", on(engine, self.settings), before, steps)

    def on_connection(self, connection: Connection, steps: Steps) -> None:
        """Upgrade on a connection of the caller, whose transaction may have begun."""
        before = self.settings(connection)
        connection.rollback()
        begun = self.owner == "transaction"
        if begun:
            connection.begin()
        heard = listeners(connection.engine, connection)
        error = self.run(steps, connection)
        after = listeners(connection.engine, connection)
        self.expect("listeners", after, heard, steps)
        self.expect("in a transaction", connection.in_transaction(), begun, steps)
        if begun:
            connection.rollback()
        self.check("after the run", steps, error, undone=begun)
        try:
            self.expect("settings", self.settings(connection), before, steps)
            connection.execute(text("INSERT INTO own VALUES (1)"))
        except Exception as raised:  # noqa: BLE001 - whatever it is, the connection is of no use
            self.problem(steps, f"the connection cannot be used: {type(raised).__name__}: {raised}")
        connection.rollback()
        self.expect("rows written and rolled back", self.own(), [], steps)
        if begun:
            connection.begin()
        self.again(steps, connection, commit=begun)
        self.expect("settings in the end", self.settings(connection), before, steps)
        connection.execute(text("INSERT INTO own VALUES (1)"))
        connection.commit()
        self.expect("rows written and committed", self.own(), [(1,)], steps)

    def own(self) -> list[tuple[Any, ...]]:
        """Return the rows of the caller's own table."""
        tenant = self.tenants[0] if self.kind == "sqlite" else ""
        return self.outside.rows(tenant, "SELECT * FROM {}own")

    def check(
        self, when: str, steps: Steps, error: BaseException | None, *, undone: bool = False
    ) -> None:
        """Look at what a failed run has raised and left."""
        for module in (alembic.op, alembic.context):
            proxy = getattr(module, "_proxy", None)
            self.expect(f"{module.__name__}._proxy", proxy, None, steps)
            if proxy is not None:
                proxy._remove_proxy()
        for left in self.outside.left(sessions=self.owner == "own" and self.kind != "sqlite"):
            self.problem(steps, f"{left} is left {when}")
        if error is not None and not re.search(WORDS[self.fault], str(error)):
            self.problem(steps, f"raised {type(error).__name__}: {error}")
        if error is not None and not steps.failed:
            self.problem(steps, f"nothing failed, and {type(error).__name__} is raised: {error}")
        for tenant in self.tenants:
            version, rows = self.outside.found(tenant)
            if self.kind == "mariadb" and (version != self.head or undone):
                continue  # DDL was committed
            allowed = {"", self.head} if not self.several else set(CONTENT)
            if undone:
                allowed = {""}
            elif error is None:
                allowed = {self.head}
            if version not in allowed or rows != CONTENT[version]:
                self.problem(steps, f"{tenant!r} is at {version!r} with {rows}")

    def again(self, steps: Steps, connection: Any, *, commit: bool = False) -> None:
        """Run the upgrade again, without a fault, which finds or does the rest."""
        if self.kind == "mariadb":
            self.outside.empty()
        try:
            command.upgrade(self.config(connection, 5), "head")
            if commit:
                connection.commit()
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.problem(steps, f"the next command raised {type(error).__name__}: {error}")
            if isinstance(connection, Connection):
                connection.rollback()
        else:
            for tenant in self.tenants:
                found, expected = self.outside.found(tenant), (self.head, CONTENT[self.head])
                self.expect(f"the next command's {tenant!r}", found, expected, steps)
        if isinstance(connection, Connection):
            self.expect("in a transaction in the end", connection.in_transaction(), False, steps)
        for left in self.outside.left(sessions=self.owner == "own" and self.kind != "sqlite"):
            self.problem(steps, f"{left} is left by the next command")

    def expect(self, what: str, found: object, expected: object, steps: Steps) -> None:
        """Note what is not as it should be."""
        if found != expected:
            self.problem(steps, f"{what}: {found} instead of {expected}")

    def problem(self, steps: Steps, problem: str) -> None:
        """Note a problem, and the step that failed."""
        step = " ".join(steps.seen[steps.at - 1].split())[:70] if steps.failed else "-"
        self.problems.append(f"{steps.at} ({step}): {' '.join(problem.split())[:300]}")


def is_async(driver: str) -> bool:
    """Tell whether a driver is an async one."""
    return bool(make_url(f"{driver}://").get_dialect().is_async)


def on(engine: Any, work: Callable[[Connection], Any]) -> Any:
    """Return what some work on a connection of an engine gives, whose pool keeps what it may."""
    if isinstance(engine, Engine):
        with engine.connect() as connection:
            return work(connection)

    async def connect_and_work() -> Any:
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()

    return asyncio.run(connect_and_work())


def cases() -> Iterator[Any]:
    """Give each combination of driver, owner and template with a fault of the client and the server.

    The other faults, and runs of several transactions, are tried where the template is `shared`.
    """
    for driver, owner, fault, several, template in product(
        TRIED, OWNERS, FAULTS, [False, True], ["shared", "multitenant"]
    ):
        kind, fleet = kind_of(driver), template == "multitenant"
        if fault not in FAULTS_OF[kind] or (fault == "driver" and owner == "own"):
            continue  # the driver of an engine of the environment's own cannot be another
        if several and (owner in {"transaction", "engine"} or fault == "after"):
            continue  # an autocommit block is refused in a transaction of the caller
        everywhere = fault in {"before", "kill", "busy"} and not several and owner != "engine"
        also_async = everywhere or fault in {"kill", "driver"}
        if (fleet and not everywhere) or (is_async(driver) and not also_async):
            continue
        number = "several" if several else "one"
        names = (driver, owner, fault, number, template)
        yield pytest.param(driver, owner, fault, several, fleet, id="-".join(names))


@pytest.mark.parametrize(("driver", "owner", "fault", "several", "fleet"), list(cases()))
def test_each_step_fails_in_turn(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    owner: str,
    fault: str,
    *,
    several: bool,
    fleet: bool,
) -> None:
    """Whatever step fails: no setting, transaction, lock or listener is left, and the next is right."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # or each command compiles env.py anew
    project: Project = request.getfixturevalue("fleet_project" if fleet else "project")
    database: Database = request.getfixturevalue(kind_of(driver))
    tenants = [""]
    if fleet:
        prefix = f"{database.url.database}_" if database.kind == "mariadb" else ""
        tenants = [f"{prefix}one", f"{prefix}two"]
    outside = Outside(database, tenants)
    if fleet and database.kind != "sqlite":
        outside.run(*(f"CREATE SCHEMA {tenant}" for tenant in tenants))
    project.set(ddl_lock_timeout="5", transaction_per_migration=str(several).lower())
    if fleet:
        project.set(tenants=" ".join(tenants))
        if database.kind == "sqlite":
            project.set(sqlalchemy__url=f"{driver}:///{outside.file('{tenant}')}")
    project.revision("a1", CREATE_AUTHOR)
    project.revision("b2", CREATE_BOOK, down="a1")
    if several:
        project.revision("c3", CREATE_INDEX, down="b2")
    case = Case(outside, project, driver, owner, fault, several, fleet)
    try:
        for at in count(1):
            if len(case.iteration(at).seen) < at or len(case.problems) >= ENOUGH:
                break
    finally:
        if fleet and database.kind == "mariadb":
            outside.run(*(f"DROP DATABASE {tenant}" for tenant in tenants))
        outside.engine.dispose()
    assert not case.problems, "\n".join(case.problems)
    assert at > 10
