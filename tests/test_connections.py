"""The connection that a caller hands over, and the one that the environment makes for itself."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError
from conftest import DRIVERS, SUPPORTED, Database, Project, imported, render
from sqlalchemy import (
    Connection,
    QueuePool,
    StaticPool,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

CREATE_AUTHOR = """
op.create_table("author", sa.Column("id", sa.Integer, primary_key=True))
op.execute("INSERT INTO author VALUES (1)")
"""
FAIL = f"{CREATE_AUTHOR}\nraise RuntimeError('the revision fails')"
AUTOCOMMIT_BLOCK = f"{CREATE_AUTHOR}\nwith op.get_context().autocommit_block():\n    pass"
AFTER = {"alembic_version", "author"}
ASYNC_DRIVERS = {
    driver: kind
    for kind, drivers in DRIVERS.items()
    for driver in drivers
    if make_url(f"{driver}://").get_dialect().is_async
}
# Databases whose DDL a rollback undoes.
UNDOES_DDL = ["sqlite", "postgresql"]


@pytest.fixture
def transactional(request: pytest.FixtureRequest) -> Database:
    """An empty database whose DDL a rollback undoes."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=ASYNC_DRIVERS)
def async_database(request: pytest.FixtureRequest) -> tuple[Database, str]:
    """An empty database and its URL with an async driver, for each async driver in turn."""
    database: Database = request.getfixturevalue(ASYNC_DRIVERS[request.param])
    return database, database.url_for(request.param)


@contextmanager
def ends(connection: Connection) -> Iterator[list[str]]:
    """Collect the commits and rollbacks that are sent on a connection of the caller."""
    seen: list[str] = []
    names = ("commit", "rollback", "rollback_savepoint", "release_savepoint")
    listeners = [(name, lambda *_, name=name: seen.append(name)) for name in names]
    for name, listener in listeners:
        event.listen(connection, name, listener)
    try:
        yield seen
    finally:
        for name, listener in listeners:
            event.remove(connection, name, listener)


# A Connection in the caller's transaction


@pytest.mark.parametrize("transactional", UNDOES_DDL, indirect=True)
@pytest.mark.parametrize(
    "begins",
    [
        pytest.param("begin", id="begin"),
        pytest.param("SELECT id FROM own", id="autobegun-by-read"),
        pytest.param("INSERT INTO own VALUES (1)", id="autobegun-by-write"),
    ],
)
def test_rollback_of_the_caller_undoes_everything(
    project: Project, transactional: Database, begins: str
) -> None:
    """The caller's rollback undoes tables, rows and version, also after reads or writes of its own."""
    project.revision("a1", CREATE_AUTHOR)
    transactional.run("CREATE TABLE own (id INTEGER)")
    with transactional.engine().connect() as connection:
        if begins == "begin":
            connection.begin()
        else:
            connection.execute(text(begins))
        project.upgrade(connection)
        assert connection.in_transaction()
        assert set(inspect(connection).get_table_names()) == {*AFTER, "own"}
        connection.rollback()
    assert transactional.tables() == {"own"}
    assert transactional.rows("SELECT * FROM own") == []


def test_version_row_is_the_callers_to_commit_on_mariadb(
    project: Project, mariadb: Database
) -> None:
    """MariaDB commits at each DDL statement; what follows the last one waits for the caller."""
    project.revision("a1", CREATE_AUTHOR)
    with mariadb.engine().connect() as connection:
        connection.begin()
        project.upgrade(connection)
        assert mariadb.tables() == AFTER
        connection.rollback()
        assert mariadb.versions() == set()
        connection.execute(text("DROP TABLE author"))
        project.upgrade(connection)
        connection.commit()
    assert mariadb.versions() == {"a1"}


@pytest.mark.parametrize("revision", [CREATE_AUTHOR, FAIL], ids=["succeeds", "fails"])
def test_transaction_of_the_caller_is_not_ended(
    project: Project, sync_database: Database, revision: str
) -> None:
    """Nothing is committed or rolled back in the caller's transaction, also after an error."""
    project.revision("a1", revision)
    with sync_database.engine().connect() as connection, ends(connection) as seen:
        transaction = connection.begin()
        if revision == FAIL:
            with pytest.raises(RuntimeError, match="^the revision fails$"):
                project.upgrade(connection)
        else:
            project.upgrade(connection)
        assert seen == []
        assert transaction.is_active
        assert connection.get_transaction() is transaction


@pytest.mark.parametrize("transactional", UNDOES_DDL, indirect=True)
def test_error_leaves_the_transaction_of_the_caller_usable(
    project: Project, transactional: Database
) -> None:
    """After a failing revision the caller goes on in its transaction, and may roll it all back."""
    project.revision("a1", FAIL)
    transactional.run("CREATE TABLE own (id INTEGER)")
    with transactional.engine().connect() as connection:
        connection.begin()
        with pytest.raises(RuntimeError, match="^the revision fails$"):
            project.upgrade(connection)
        connection.execute(text("INSERT INTO own VALUES (1)"))
        connection.rollback()
        assert connection.execute(text("SELECT * FROM own")).all() == []
    assert transactional.tables() == {"own"}


def test_caller_goes_on_and_commits(project: Project, database: Database) -> None:
    """The caller sees the migrated tables in its transaction, writes to them, and commits."""
    project.revision("a1", CREATE_AUTHOR)
    with database.engine().connect() as connection:
        with connection.begin():
            project.upgrade(connection)
            connection.execute(text("INSERT INTO author VALUES (2)"))
        assert connection.execute(text("SELECT id FROM author ORDER BY id")).all() == [(1,), (2,)]
    assert database.rows("SELECT id FROM author ORDER BY id") == [(1,), (2,)]
    assert database.versions() == {"a1"}


@pytest.mark.parametrize("transactional", UNDOES_DDL, indirect=True)
def test_rollback_to_savepoint_undoes_the_run(project: Project, transactional: Database) -> None:
    """In a savepoint of the caller, its rollback undoes the run and no more than the run."""
    project.revision("a1", CREATE_AUTHOR)
    transactional.run("CREATE TABLE own (id INTEGER)")
    with transactional.engine().connect() as connection:
        connection.execute(text("INSERT INTO own VALUES (1)"))
        savepoint = connection.begin_nested()
        project.upgrade(connection)
        assert savepoint.is_active
        savepoint.rollback()
        connection.commit()
    assert transactional.tables() == {"own"}
    assert transactional.rows("SELECT * FROM own") == [(1,)]


@pytest.mark.parametrize("transactional", UNDOES_DDL, indirect=True)
def test_revision_may_use_savepoints(project: Project, transactional: Database) -> None:
    """A savepoint that a revision rolls back leaves the rest of the caller's transaction alone."""
    project.revision(
        "a1",
        f"""
        {CREATE_AUTHOR.strip().replace(chr(10), chr(10) + " " * 8)}
        savepoint = op.get_bind().begin_nested()
        op.execute("INSERT INTO author VALUES (2)")
        savepoint.rollback()
        """,
    )
    with transactional.engine().begin() as connection:
        project.upgrade(connection)
    assert transactional.rows("SELECT id FROM author") == [(1,)]
    assert transactional.versions() == {"a1"}


def test_autocommit_block_is_refused_in_the_transaction_of_the_caller(
    project: Project, database: Database
) -> None:
    """A revision with autocommit_block() cannot run in a transaction that the caller has begun."""
    project.revision("a1", AUTOCOMMIT_BLOCK)
    with database.engine().connect() as connection:
        connection.begin()
        with pytest.raises(CommandError) as raised:
            project.upgrade(connection)
        connection.rollback()
    assert str(raised.value) == (
        "A revision uses autocommit_block(), which must commit, in a transaction that the caller "
        "has begun: pass an Engine, or a Connection without a transaction."
    )
    if database.kind in UNDOES_DDL:
        assert database.tables() == set()
    else:
        assert database.versions() == set()


@pytest.mark.parametrize("transactional", UNDOES_DDL, indirect=True)
def test_transaction_per_migration_leaves_the_transaction_of_the_caller_alone(
    project: Project, transactional: Database
) -> None:
    """With transaction_per_migration too, all revisions are in the caller's one transaction."""
    project.revision("a1", CREATE_AUTHOR)
    project.revision("b2", "op.execute('INSERT INTO author VALUES (2)')", down="a1")
    project.set(transaction_per_migration="true")
    with transactional.engine().connect() as connection, ends(connection) as seen:
        connection.begin()
        project.upgrade(connection)
        assert seen == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).all() == [
            ("b2",)
        ]
        connection.rollback()
    assert transactional.tables() == set()


# A Connection without a transaction


def test_environment_commits_where_the_caller_has_no_transaction(
    project: Project, database: Database
) -> None:
    """On a Connection without a transaction the run is committed, and none is left open."""
    project.revision("a1", CREATE_AUTHOR)
    with database.engine().connect() as connection:
        project.upgrade(connection)
        assert not connection.in_transaction()
        assert not connection.closed
        assert database.rows("SELECT id FROM author") == [(1,)]
        assert database.versions() == {"a1"}
        command.downgrade(project.config(connection=connection), "a1")  # nothing to do
        command.current(project.config(connection=connection))
        assert not connection.in_transaction()


@pytest.mark.parametrize("transactional", UNDOES_DDL, indirect=True)
def test_environment_rolls_back_where_the_caller_has_no_transaction(
    project: Project, transactional: Database
) -> None:
    """On a Connection without a transaction a failing run is undone, and none is left open."""
    project.revision("a1", FAIL)
    with transactional.engine().connect() as connection:
        with pytest.raises(RuntimeError, match="^the revision fails$"):
            project.upgrade(connection)
        assert not connection.in_transaction()
        assert connection.execute(text("SELECT 1")).scalar() == 1
    assert transactional.tables() == set()


SETTINGS = [
    pytest.param("sqlite", "PRAGMA foreign_keys", "PRAGMA foreign_keys = ON", 1, id="foreign_keys"),
    pytest.param(
        "sqlite", "PRAGMA busy_timeout", "PRAGMA busy_timeout = 1234", 1234, id="busy_timeout"
    ),
    pytest.param(
        "postgresql",
        "SELECT current_setting('lock_timeout')",
        "SET lock_timeout = '1234ms'",
        "1234ms",
        id="lock_timeout",
    ),
    pytest.param(
        "mariadb",
        "SELECT @@SESSION.lock_wait_timeout",
        "SET SESSION lock_wait_timeout = 1234",
        1234,
        id="lock_wait_timeout",
    ),
]


@pytest.mark.parametrize("revision", [CREATE_AUTHOR, FAIL], ids=["succeeds", "fails"])
@pytest.mark.parametrize(("kind", "read", "write", "value"), SETTINGS)
def test_settings_are_as_before(
    project: Project,
    request: pytest.FixtureRequest,
    kind: str,
    read: str,
    write: str,
    value: object,
    revision: str,
) -> None:
    """Settings of the caller's connection that the run changes are put back, also after an error."""
    database: Database = request.getfixturevalue(kind)
    project.revision("a1", revision)
    project.set(ddl_lock_timeout="7")
    with database.engine().connect() as connection:
        connection.execute(text(write))
        connection.commit()
        if revision == FAIL:
            with pytest.raises(RuntimeError, match="^the revision fails$"):
                project.upgrade(connection)
        else:
            project.upgrade(connection)
        assert connection.execute(text(read)).scalar() == value


@pytest.mark.parametrize(
    ("kind", "read", "write", "value"),
    [setting for setting in SETTINGS if setting.id != "foreign_keys"],
)
def test_settings_are_as_before_in_the_transaction_of_the_caller(
    project: Project,
    request: pytest.FixtureRequest,
    kind: str,
    read: str,
    write: str,
    value: object,
) -> None:
    """In the caller's transaction too, settings that the run changes are put back at its end."""
    database: Database = request.getfixturevalue(kind)
    project.revision("a1", CREATE_AUTHOR)
    project.set(ddl_lock_timeout="7")
    with database.engine().connect() as connection:
        connection.begin()
        connection.execute(text(write))
        project.upgrade(connection)
        assert connection.execute(text(read)).scalar() == value


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        pytest.param("sqlite", "READ UNCOMMITTED", id="sqlite"),
        pytest.param("postgresql", "SERIALIZABLE", id="postgresql"),
        pytest.param("mariadb", "READ COMMITTED", id="mariadb"),
    ],
)
def test_isolation_level_is_as_before(
    project: Project, request: pytest.FixtureRequest, kind: str, level: str
) -> None:
    """The isolation level that the caller gave its connection is kept, also over autocommit_block."""
    database: Database = request.getfixturevalue(kind)
    project.revision("a1", AUTOCOMMIT_BLOCK)
    with database.engine().connect() as connection:
        connection.execution_options(isolation_level=level)
        project.upgrade(connection)
        assert not connection.in_transaction()
        assert connection.get_isolation_level() == level
    assert database.versions() == {"a1"}


def test_isolation_level_is_as_before_if_the_end_of_a_block_fails(
    project: Project, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """What the caller writes can be rolled back, also after autocommit_block() could not commit."""
    project.revision("a1", AUTOCOMMIT_BLOCK.replace("pass", "op.execute('BEGIN')"))
    levels: list[object] = []

    def refuse_once(connection: Connection) -> None:
        level = connection.get_execution_options().get("isolation_level")
        is_new = level not in levels
        levels.append(level)
        if level == "AUTOCOMMIT" and is_new:
            raise RuntimeError("the application refuses")

    with database.engine().connect() as connection:
        event.listen(connection, "commit", refuse_once)
        with pytest.raises(RuntimeError, match="^the application refuses$"):
            project.upgrade(connection)
        connection.execute(text("INSERT INTO author VALUES (2)"))
        connection.rollback()
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == []
    assert database.rows("SELECT id FROM author") == [(1,)]


@pytest.mark.parametrize("revision", [CREATE_AUTHOR, AUTOCOMMIT_BLOCK], ids=["plain", "block"])
def test_connection_at_autocommit_stays_at_autocommit(
    project: Project, sync_database: Database, revision: str
) -> None:
    """A connection at isolation level AUTOCOMMIT commits each statement after the run, as before."""
    database = sync_database
    project.revision("a1", revision)
    with database.engine().connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        project.upgrade(connection)
        assert not connection.in_transaction()
        connection.execute(text("INSERT INTO author VALUES (2)"))
        assert database.rows("SELECT id FROM author ORDER BY id") == [(1,), (2,)]
    assert database.versions() == {"a1"}


# An Engine, and what looks like one


@pytest.mark.parametrize("revision", [CREATE_AUTHOR, FAIL], ids=["succeeds", "fails"])
def test_engine_of_one_connection_gets_it_back(
    project: Project, database: Database, revision: str
) -> None:
    """One connection of an Engine's pool is enough; it is given back, and the pool is kept."""
    project.revision("a1", revision)
    engine = create_engine(
        database.url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=1
    )
    with engine.connect() as connection:
        first = connection.connection.driver_connection
    pool = engine.pool
    if revision == FAIL:
        with pytest.raises(RuntimeError, match="^the revision fails$"):
            project.upgrade(engine)
    else:
        project.upgrade(engine)
        assert database.versions() == {"a1"}
    assert engine.pool is pool
    assert pool.checkedin() == 1  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.connection.driver_connection is first
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


class Wrapper:
    """What a test plugin passes for an engine: its connect() lends the test's own connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Lend the connection, and leave it open."""
        yield self.connection


@pytest.mark.parametrize("transactional", UNDOES_DDL, indirect=True)
def test_wrapper_lends_the_connection_of_the_caller(
    project: Project, transactional: Database
) -> None:
    """An object whose connect() lends a connection works, in that connection's transaction."""
    project.revision("a1", CREATE_AUTHOR)
    with transactional.engine().connect() as connection:
        connection.begin()
        command.upgrade(project.config(connection=Wrapper(connection)), "head")
        assert not connection.closed
        assert connection.execute(text("SELECT id FROM author")).all() == [(1,)]
        connection.rollback()
    assert transactional.tables() == set()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        pytest.param("sqlite://", "str", id="url"),
        pytest.param(Session(), "Session", id="session"),
        pytest.param(object(), "object", id="object"),
    ],
)
def test_other_objects_are_refused(project: Project, given: object, name: str) -> None:
    """What is no connection and no engine is refused with a sentence that says what to pass."""
    with pytest.raises(CommandError) as raised:
        command.upgrade(project.config(connection=given), "head")
    assert str(raised.value) == (
        f'Config.attributes["connection"] is of type {name}: expected a sqlalchemy Connection or '
        "Engine."
    )


# What `--sql` and Migrations are given


@pytest.fixture(params=SUPPORTED)
def any_project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """Each environment in turn, with a revision and, in a fleet, a tenant."""
    made = render(request.param, tmp_path / "project")
    if request.param == "multitenant":
        made.set(tenants="one")
    made.revision("a1", CREATE_AUTHOR)
    return made


# What is given, and what a script of it begins with; an error where it is refused.
GIVEN_TO_SQL = {
    "engine": ("create_engine('sqlite:///test.db')", True),
    "connection": ("create_engine('sqlite:///test.db').connect()", True),
    "wrapper": ("Wrapper()", True),
    "text": ("'sqlite://'", 'Config.attributes["connection"] is of type str: expected'),
    "session": ("Session()", 'Config.attributes["connection"] is of type Session: expected'),
    "object": ("object()", 'Config.attributes["connection"] is of type object: expected'),
    "async connection": (
        "create_async_engine('sqlite+aiosqlite://').connect()",
        'Config.attributes["connection"] is an AsyncConnection, which cannot be used here',
    ),
}


@pytest.mark.parametrize(("given", "expected"), GIVEN_TO_SQL.values(), ids=GIVEN_TO_SQL)
def test_a_script_is_written_for_what_a_run_takes(
    any_project: Project, given: str, expected: str | bool
) -> None:
    """`--sql` takes what a run takes, a wrapper too, and refuses all else in the same words."""
    code = f"""
        import io
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError
        from sqlalchemy import create_engine
        from sqlalchemy.orm import Session
        from sqlalchemy.ext.asyncio import create_async_engine

        class Wrapper:
            def connect(self):
                return create_engine("sqlite:///test.db").connect()

        said = []
        for sql in (True, False):
            config = Config("alembic.ini", output_buffer=io.StringIO())
            config.attributes["connection"] = {given}
            try:
                command.upgrade(config, "head", sql=sql)
            except CommandError as error:
                said.append(str(error))
            else:
                said.append("CREATE TABLE author" in config.output_buffer.getvalue() or not sql)
        assert said[0] == said[1], said
        print(said[0])
    """
    done = any_project.python(code)
    assert done.stdout.startswith(str(expected))


def test_a_script_for_an_async_engine_is_refused_by_sync_alone(any_project: Project) -> None:
    """`--sql` with an AsyncEngine is refused by the environment that refuses it in a run."""
    files = {path.name for path in (any_project.folder / "migrations").iterdir()}
    code = """
        import io
        from alembic import command
        from alembic.config import Config
        from sqlalchemy.ext.asyncio import create_async_engine
        config = Config("alembic.ini", output_buffer=io.StringIO())
        config.attributes["connection"] = create_async_engine("sqlite+aiosqlite:///test.db")
        command.upgrade(config, "head", sql=True)
        assert "CREATE TABLE author" in config.output_buffer.getvalue()
    """
    done = any_project.python(code, ok="event_loop.py" in files)
    if "event_loop.py" not in files:
        assert 'Config.attributes["connection"] is an AsyncEngine' in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(
            given,
            f"The connection of Migrations is of type {name}: expected a sqlalchemy Connection, such "
            "as engine.connect() or session.connection().",
            id=name,
        )
        for given, name in [
            ("sqlite://", "str"),
            (Session(), "Session"),
            (create_engine("sqlite://"), "Engine"),
            (None, "NoneType"),
        ]
    ]
    + [
        pytest.param(
            kind(create_async_engine("sqlite+aiosqlite://")),
            f"The connection of Migrations is an {kind.__name__}, which cannot be used here: write a "
            "function that passes the Connection it takes there and runs the command, and call it by "
            "`await connection.run_sync(function)` on an AsyncConnection.",
            id=kind.__name__,
        )
        for kind in (AsyncConnection, AsyncSession)
    ],
)
def test_migrations_takes_a_connection(project: Project, given: object, message: str) -> None:
    """Migrations refuses at once what is no Connection, and says what to pass."""
    with pytest.raises(CommandError) as raised:
        imported(project.folder / "migrations").Migrations(given)
    assert str(raised.value) == message


# Async


@pytest.mark.parametrize(
    "kind",
    [pytest.param(AsyncConnection, id="connection"), pytest.param(AsyncSession, id="session")],
)
def test_async_connection_is_refused(
    project: Project, sqlite: Database, kind: type[AsyncConnection | AsyncSession]
) -> None:
    """An AsyncConnection is refused with the run_sync call that passes its Connection."""

    async def upgrade() -> None:
        engine = create_async_engine(sqlite.url_for("sqlite+aiosqlite"))
        try:
            async with kind(engine) as given:
                command.upgrade(project.config(connection=given), "head")
        finally:
            await engine.dispose()

    with pytest.raises(CommandError) as raised:
        asyncio.run(upgrade())
    assert str(raised.value) == (
        f'Config.attributes["connection"] is an {kind.__name__}, which cannot be used here: write a '
        "function that passes the Connection it takes there and runs the command, and call it by "
        "`await connection.run_sync(function)` on an AsyncConnection."
    )
    assert sqlite.tables() == set()


def test_async_engine_works_twice_from_sync_code(
    project: Project, async_database: tuple[Database, str]
) -> None:
    """Commands in a row work on one AsyncEngine, each with an event loop of its own."""
    database, url = async_database
    project.revision("a1", CREATE_AUTHOR, "op.drop_table('author')")
    engine = create_async_engine(url)
    config = project.config(connection=engine)
    command.upgrade(config, "head")
    assert database.tables() == AFTER
    command.downgrade(config, "base")
    assert database.tables() == {"alembic_version"}

    async def read() -> object:
        async with engine.connect() as connection:
            found = (await connection.execute(text("SELECT 1"))).scalar()
        await engine.dispose()
        return found

    assert asyncio.run(read()) == 1


def test_async_engine_that_was_pooled_in_a_closed_loop(
    project: Project, async_database: tuple[Database, str]
) -> None:
    """An AsyncEngine works though it has pooled a connection in an event loop since closed."""
    database, url = async_database
    project.revision("a1", CREATE_AUTHOR)
    project.python(
        f"""
        import asyncio
        from alembic import command
        from alembic.config import Config
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine({url!r})

        async def read():
            async with engine.connect() as connection:
                return (await connection.execute(text("SELECT 1"))).scalar()

        asyncio.run(read())
        command.upgrade(Config("alembic.ini", attributes={{"connection": engine}}), "head")

        async def read_and_dispose():
            assert await read() == 1
            await engine.dispose()

        asyncio.run(read_and_dispose())
        print("read again")
        import os, sys
        sys.stdout.flush()
        os._exit(0)  # aiosqlite's thread of the forgotten connection never ends
        """
    )
    assert database.tables() == AFTER
    assert database.versions() == {"a1"}


def test_async_engine_of_a_memory_database_keeps_its_tables(project: Project) -> None:
    """The one connection of a StaticPool is kept: it is the memory database itself."""
    project.revision("a1", CREATE_AUTHOR)
    project.revision("b2", "op.execute('INSERT INTO author VALUES (2)')", down="a1")
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    config = project.config(connection=engine)
    command.upgrade(config, "a1")
    command.upgrade(config, "b2")

    async def read() -> list[int]:
        async with engine.connect() as connection:
            found = (await connection.execute(text("SELECT id FROM author ORDER BY id"))).scalars()
        await engine.dispose()
        return list(found)

    assert asyncio.run(read()) == [1, 2]


def test_async_engine_is_refused_in_a_running_loop(
    project: Project, async_database: tuple[Database, str]
) -> None:
    """In a running event loop an AsyncEngine is refused with the run_sync call to use."""
    database, url = async_database
    project.revision("a1", CREATE_AUTHOR)

    async def upgrade() -> None:
        engine = create_async_engine(url)
        command.upgrade(project.config(connection=engine), "head")

    with pytest.raises(CommandError) as raised:
        asyncio.run(upgrade())
    assert str(raised.value) == (
        'Config.attributes["connection"] is an AsyncEngine, which cannot be used here: write a '
        "function that passes the Connection it takes there and runs the command, and call it by "
        "`await connection.run_sync(function)` on an AsyncConnection."
    )
    assert database.tables() == set()


def test_run_sync_runs_in_the_transaction_of_the_caller(
    project: Project, async_database: tuple[Database, str]
) -> None:
    """`await connection.run_sync(...)` runs in the caller's transaction, for it to roll back."""
    database, url = async_database
    project.revision("a1", CREATE_AUTHOR)

    async def upgrade() -> None:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            transaction = await connection.begin()
            await connection.run_sync(project.upgrade)
            found = (await connection.execute(text("SELECT id FROM author"))).all()
            assert [tuple(row) for row in found] == [(1,)]
            await transaction.rollback()
        await engine.dispose()

    asyncio.run(upgrade())
    if database.kind in UNDOES_DDL:
        assert database.tables() == set()
    else:
        assert database.versions() == set()


def test_run_sync_commits_where_the_caller_has_no_transaction(
    project: Project, async_database: tuple[Database, str]
) -> None:
    """`await connection.run_sync(...)` without a transaction commits, and leaves none open."""
    database, url = async_database
    project.revision("a1", CREATE_AUTHOR)

    async def upgrade() -> None:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            await connection.run_sync(project.upgrade)
            assert not connection.in_transaction()
        await engine.dispose()

    asyncio.run(upgrade())
    assert database.rows("SELECT id FROM author") == [(1,)]
    assert database.versions() == {"a1"}


def test_async_url_works_from_the_command_line(
    project: Project, async_database: tuple[Database, str]
) -> None:
    """An async URL alone is enough for the alembic command."""
    database, url = async_database
    project.revision("a1", CREATE_AUTHOR)
    project.set(sqlalchemy__url=url.replace("%", "%%"))
    project.alembic("upgrade", "head")
    assert database.tables() == AFTER
    assert database.versions() == {"a1"}


def test_async_url_works_from_sync_code(
    project: Project, async_database: tuple[Database, str]
) -> None:
    """An async URL alone is enough for a program without an event loop."""
    database, url = async_database
    project.revision("a1", CREATE_AUTHOR)
    command.upgrade(project.config(url), "head")
    assert database.tables() == AFTER
    assert database.versions() == {"a1"}


def test_async_url_works_from_a_running_loop(
    project: Project, async_database: tuple[Database, str]
) -> None:
    """An async URL alone is enough for a coroutine, where asyncio.run() would raise."""
    database, url = async_database
    project.revision("a1", CREATE_AUTHOR)

    async def upgrade() -> None:
        command.upgrade(project.config(url), "head")

    asyncio.run(upgrade())
    assert database.tables() == AFTER
    assert database.versions() == {"a1"}


# Engines of the environment's own


CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mariadb": "SELECT count(*) FROM information_schema.processlist "
    "WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}


@pytest.mark.parametrize("revision", [CREATE_AUTHOR, FAIL], ids=["succeeds", "fails"])
def test_own_engine_leaves_nothing_open(
    project: Project, any_driver: tuple[Database, str], revision: str
) -> None:
    """A run from a URL leaves no connection and no thread, also after an error."""
    database, driver = any_driver
    project.revision("a1", revision)
    config = project.config(database.url_for(driver))
    threads = set(threading.enumerate())

    async def upgrade() -> None:
        command.upgrade(config, "head")

    for run in (lambda: command.upgrade(config, "head"), lambda: asyncio.run(upgrade())):
        if revision == FAIL:
            with pytest.raises(RuntimeError, match="^the revision fails$"):
                run()
            if database.kind == "mariadb":
                database.run("DROP TABLE author")
        else:
            run()
            assert database.versions() == {"a1"}
    gc.collect()  # an unclosed connection raises its ResourceWarning here
    assert set(threading.enumerate()) <= threads
    if database.kind in CONNECTIONS:
        # The server notices a closed socket a moment later.
        deadline = time.monotonic() + 5
        while database.rows(CONNECTIONS[database.kind]) != [(0,)]:
            assert time.monotonic() < deadline, "A connection is left on the server."
            time.sleep(0.02)
