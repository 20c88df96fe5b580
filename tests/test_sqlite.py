"""SQLite: transactions that its driver does not begin, foreign keys, and the lock file."""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.util import CommandError
from conftest import Database, Project
from sqlalchemy import (
    URL,
    Engine,
    NullPool,
    QueuePool,
    StaticPool,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

CREATE_ONE = "op.create_table('one', sa.Column('id', sa.Integer, primary_key=True))"
CREATE_TWO = "op.create_table('two', sa.Column('id', sa.Integer, primary_key=True))"
FAIL = "raise RuntimeError('the revision fails')"
VACUUM = "with op.get_context().autocommit_block():\n    op.execute('VACUUM')"

# Whether the driver's transaction has begun, and whether the lock file stands, asked in a revision.
NOTE = """
from pathlib import Path
driver = op.get_bind().connection.driver_connection
lock_file = Path(f"{op.get_bind().engine.url.database}-alembic_version.lock")
op.execute(f"INSERT INTO note VALUES ({driver.in_transaction:d}, {lock_file.exists():d})")
"""


def lines(*statements: str) -> str:
    """Put statements under each other, as the body of a revision."""
    return "\n".join(statement.strip("\n") for statement in statements)


def enforcing_engine(database: Database, pool_size: int = 1, **connect_args: object) -> Engine:
    """Return an engine that enforces foreign keys, as applications do."""
    engine = create_engine(
        database.url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=1,
        connect_args=connect_args,
    )

    @event.listens_for(engine, "connect")
    def connect(driver: sqlite3.Connection, _: object) -> None:
        driver.execute("PRAGMA foreign_keys = ON")

    return engine


def application_engine(
    database: Database, pool_size: int = 1, statement: str = "BEGIN", **connect_args: object
) -> Engine:
    """Return an engine as SQLAlchemy's manual has it for SQLite: it sends BEGIN by itself."""
    engine = enforcing_engine(database, pool_size, **connect_args)

    @event.listens_for(engine, "connect")
    def connect(driver: sqlite3.Connection, _: object) -> None:
        driver.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection) -> None:  # type: ignore[no-untyped-def]
        connection.exec_driver_sql(statement)

    return engine


def wait_for(path: Path) -> None:
    """Wait until another process has written a file."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"No {path.name}."
        time.sleep(0.02)


# All or nothing


def by_command(project: Project, database: Database) -> None:
    """Upgrade with the alembic command, and raise what it fails with."""
    done = project.alembic("-x", f"url={database.text}", "upgrade", "head", ok=False)
    raise RuntimeError(done.stderr.strip().splitlines()[-1].removeprefix("RuntimeError: "))


def by_url(project: Project, database: Database) -> None:
    """Upgrade with a URL alone."""
    command.upgrade(project.config(database.text), "head")


def by_async_url(project: Project, database: Database) -> None:
    """Upgrade with an async URL alone."""
    command.upgrade(project.config(database.url_for("sqlite+aiosqlite")), "head")


def by_async_engine(project: Project, database: Database) -> None:
    """Upgrade on an AsyncEngine."""
    engine = create_async_engine(database.url_for("sqlite+aiosqlite"))
    command.upgrade(project.config(connection=engine), "head")


def by_connection(project: Project, database: Database) -> None:
    """Upgrade on a shared connection without a transaction."""
    with database.engine().connect() as connection:
        project.upgrade(connection)


def by_transaction(project: Project, database: Database) -> None:
    """Upgrade on a shared connection, in a transaction that an error rolls back."""
    with database.engine().begin() as connection:
        project.upgrade(connection)


def by_application_engine(project: Project, database: Database) -> None:
    """Upgrade on an engine that sends BEGIN by itself."""
    engine = application_engine(database)
    try:
        project.upgrade(engine)
    finally:
        engine.dispose()


WAYS = [by_url, by_async_url, by_async_engine, by_connection, by_transaction, by_application_engine]


@pytest.mark.parametrize("way", [by_command, *WAYS], ids=lambda way: way.__name__)
def test_failing_revision_leaves_nothing(
    project: Project, sqlite: Database, way: Callable[[Project, Database], None]
) -> None:
    """A revision that fails half-way undoes the whole run: tables, rows and versions."""
    project.revision("a1", CREATE_ONE)
    project.revision(
        "b2", lines(CREATE_TWO, "op.execute('INSERT INTO two VALUES (1)')", FAIL), down="a1"
    )
    with pytest.raises(RuntimeError, match="^the revision fails$"):
        way(project, sqlite)
    assert sqlite.tables() == set()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_run_is_committed(
    project: Project, sqlite: Database, way: Callable[[Project, Database], None]
) -> None:
    """A run that succeeds is there afterwards, whatever it was given."""
    project.revision("a1", CREATE_ONE)
    project.revision("b2", "op.execute('INSERT INTO one VALUES (1)')", down="a1")
    way(project, sqlite)
    assert sqlite.rows("SELECT id FROM one") == [(1,)]
    assert sqlite.versions() == {"b2"}


def test_transaction_per_migration_keeps_what_came_before(
    project: Project, sqlite: Database
) -> None:
    """With transaction_per_migration, a failing revision undoes itself and not the ones before."""
    project.revision("a1", CREATE_ONE)
    project.revision("b2", lines(CREATE_TWO, FAIL), down="a1")
    project.set(transaction_per_migration="true")
    with pytest.raises(RuntimeError, match="^the revision fails$"):
        by_url(project, sqlite)
    assert sqlite.tables() == {"alembic_version", "one"}
    assert sqlite.versions() == {"a1"}


@pytest.mark.parametrize(
    "way", [by_url, by_connection, by_transaction], ids=lambda way: way.__name__
)
def test_second_connection_of_a_revision_reads(
    project: Project, sqlite: Database, way: Callable[[Project, Database], None]
) -> None:
    """A revision reads on a second connection of its engine without waiting for itself."""
    sqlite.run("CREATE TABLE own (id INTEGER)", "INSERT INTO own VALUES (7)")
    project.revision(
        "a1",
        lines(
            CREATE_ONE,
            "with op.get_bind().engine.connect() as connection:",
            "    found = connection.execute(sa.text('SELECT id FROM own')).scalar()",
            "op.execute(f'INSERT INTO one VALUES ({found})')",
        ),
    )
    way(project, sqlite)
    assert sqlite.rows("SELECT id FROM one") == [(7,)]


def test_second_connection_of_an_application_engine_reads(
    project: Project, sqlite: Database
) -> None:
    """On an engine that sends BEGIN by itself, a revision's second connection reads as well."""
    sqlite.run("CREATE TABLE own (id INTEGER)", "INSERT INTO own VALUES (7)")
    project.revision(
        "a1",
        """
        op.execute("CREATE TABLE one (id INTEGER)")
        with op.get_bind().engine.connect() as connection:
            found = connection.execute(sa.text("SELECT id FROM own")).scalar()
        op.execute(f"INSERT INTO one VALUES ({found})")
        """,
    )
    engine = application_engine(sqlite, pool_size=2)
    project.upgrade(engine)
    engine.dispose()
    assert sqlite.rows("SELECT id FROM one") == [(7,)]


# Isolation level AUTOCOMMIT, and engines that send BEGIN


@pytest.mark.parametrize("where", ["engine", "connection", "option"])
def test_autocommit_level_begins_no_transaction(
    project: Project, sqlite: Database, where: str
) -> None:
    """At isolation level AUTOCOMMIT nothing is begun: VACUUM works, and an error keeps the rest."""
    project.revision("a1", lines(CREATE_ONE, "op.execute('VACUUM')"))
    project.revision("b2", lines(CREATE_TWO, FAIL), down="a1")
    config = project.config(sqlite.text)
    level = "AUTOCOMMIT" if where == "engine" else None
    with create_engine(
        sqlite.url, poolclass=NullPool, **({"isolation_level": level} if level else {})
    ).connect() as connection:
        if where == "option":
            config.set_main_option("sqlalchemy.isolation_level", "AUTOCOMMIT")
        else:
            config.attributes["connection"] = connection.engine
        if where == "connection":
            config.attributes["connection"] = connection.execution_options(
                isolation_level="AUTOCOMMIT"
            )
        with pytest.raises(RuntimeError, match="^the revision fails$"):
            command.upgrade(config, "head")
    assert sqlite.tables() == {"alembic_version", "one", "two"}
    assert sqlite.versions() == {"a1"}


def test_application_engine_is_one_transaction_that_the_caller_rolls_back(
    project: Project, sqlite: Database
) -> None:
    """On an engine that sends BEGIN by itself, the caller's rollback undoes everything."""
    project.revision("a1", CREATE_ONE)
    engine = application_engine(sqlite)
    with engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("BEGIN")
        project.upgrade(connection)
        assert set(inspect(connection).get_table_names()) == {"alembic_version", "one"}
        connection.rollback()
    engine.dispose()
    assert sqlite.tables() == set()


def test_application_engine_takes_the_write_lock(project: Project, sqlite: Database) -> None:
    """On an engine that sends BEGIN by itself too, others wait from the first revision on."""
    sqlite.run("CREATE TABLE own (id INTEGER)")
    project.revision(
        "a1",
        """
        with sa.create_engine(
            op.get_bind().engine.url, poolclass=sa.NullPool, connect_args={"timeout": 0}
        ).begin() as connection:
            connection.execute(sa.text("INSERT INTO own VALUES (1)"))
        """,
    )
    engine = application_engine(sqlite)
    with pytest.raises(OperationalError) as raised:
        project.upgrade(engine)
    assert str(raised.value.orig) == "database is locked"
    with closing(sqlite3.connect(str(sqlite.url.database), isolation_level=None)) as application:
        application.execute("BEGIN IMMEDIATE")
        config = project.config(connection=engine)
        config.set_main_option("lock_timeout", "0")
        with pytest.raises(CommandError) as refused:
            command.upgrade(config, "head")
    engine.dispose()
    assert str(refused.value) == waited(sqlite)
    assert sqlite.rows("SELECT * FROM own") == []


# autocommit_block()


@pytest.mark.parametrize(
    "engine", [Database.engine, application_engine], ids=["plain", "application"]
)
def test_autocommit_block_begins_again_afterwards(
    project: Project, sqlite: Database, engine: Callable[[Database], Engine]
) -> None:
    """VACUUM works in an autocommit_block(); after it a transaction has begun that undoes DDL."""
    sqlite.run("CREATE TABLE note (in_transaction INTEGER, lock_file INTEGER)")
    project.revision(
        "a1",
        lines(CREATE_ONE, VACUUM, NOTE, VACUUM, CREATE_TWO, FAIL),
    )
    shared = engine(sqlite)
    with pytest.raises(RuntimeError, match="^the revision fails$"):
        project.upgrade(shared)
    shared.dispose()
    assert sqlite.rows("SELECT in_transaction FROM note") == [(1,)]
    assert sqlite.tables() == {"alembic_version", "note", "one"}
    assert sqlite.versions() == set()


def test_autocommit_block_in_a_run_that_succeeds(project: Project, sqlite: Database) -> None:
    """A run with an autocommit_block() commits what stands after it too."""
    project.revision("a1", lines(CREATE_ONE, VACUUM, CREATE_TWO))
    project.revision("b2", "op.execute('INSERT INTO two VALUES (1)')", down="a1")
    by_url(project, sqlite)
    assert sqlite.rows("SELECT id FROM two") == [(1,)]
    assert sqlite.versions() == {"b2"}


# Foreign keys

FAMILY = [
    "CREATE TABLE parent (id INTEGER PRIMARY KEY, name VARCHAR(10))",
    (
        "CREATE TABLE child (id INTEGER PRIMARY KEY, "
        "parent_id INTEGER REFERENCES parent (id) ON DELETE CASCADE)"
    ),
    "INSERT INTO parent VALUES (1, 'a')",
    "INSERT INTO child VALUES (1, 1), (2, 1)",
]
COPY_PARENT = """
with op.batch_alter_table("parent") as batch:
    batch.alter_column("name", type_=sa.String(20))
"""
COPY_CHILD = """
with op.batch_alter_table("child") as batch:
    batch.add_column(sa.Column("name", sa.String(20), nullable=False, server_default=""))
    batch.alter_column("name", type_=sa.String(30))
"""


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("shares", ["engine", "connection"])
@pytest.mark.parametrize(
    "engine", [enforcing_engine, application_engine], ids=["plain", "application"]
)
def test_batch_keeps_the_rows_of_child_tables(
    project: Project,
    sqlite: Database,
    engine: Callable[[Database], Engine],
    shares: str,
    fails: bool,
) -> None:
    """A table is copied without deleting its children; foreign keys are enforced again afterwards."""
    sqlite.run(*FAMILY)
    project.revision("a1", lines(COPY_PARENT, FAIL if fails else "pass"))
    shared = engine(sqlite)

    def upgrade(given: object) -> None:
        config = project.config(connection=given)
        if fails:
            with pytest.raises(RuntimeError, match="^the revision fails$"):
                command.upgrade(config, "head")
        else:
            command.upgrade(config, "head")

    if shares == "engine":
        upgrade(shared)
    with shared.connect() as connection:
        if shares == "connection":
            upgrade(connection)
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    shared.dispose()
    assert sqlite.rows("SELECT * FROM child") == [(1, 1), (2, 1)]
    length = {True: "10", False: "20"}[fails]
    assert sqlite.rows("SELECT type FROM pragma_table_info('parent') WHERE name = 'name'") == [
        (f"VARCHAR({length})",)
    ]


def test_foreign_keys_stay_off_where_they_were_off(project: Project, sqlite: Database) -> None:
    """A connection that does not enforce foreign keys does not begin to."""
    project.revision("a1", CREATE_ONE)
    with sqlite.engine().connect() as connection:
        project.upgrade(connection)
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 0


BREAKS = (
    'The migration breaks foreign keys ("child" ("parent_id") = (1) has no row in "parent") '
    "and is not committed: fix the revision or the rows."
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_violation_made_by_a_revision_is_named(
    project: Project, sqlite: Database, way: Callable[[Project, Database], None]
) -> None:
    """A revision that takes a row's parent away fails; the row is named, and nothing stays."""
    sqlite.run(*FAMILY)
    project.revision("a1", lines(CREATE_ONE, "op.execute('DELETE FROM parent')"))
    with pytest.raises(CommandError) as raised:
        way(project, sqlite)
    assert str(raised.value) == BREAKS
    assert sqlite.tables() == {"parent", "child"}
    assert sqlite.rows("SELECT * FROM parent") == [(1, "a")]


@pytest.mark.parametrize("level_of", ["engine", "connection"])
def test_transaction_of_the_caller_at_autocommit(
    project: Project, sqlite: Database, level_of: str
) -> None:
    """At AUTOCOMMIT a caller's transaction is none; the lock file keeps other runs out."""
    project.revision("a1", CREATE_ONE)
    level = {"isolation_level": "AUTOCOMMIT"}
    engine = create_engine(sqlite.url, **(level if level_of == "engine" else {}))
    with engine.connect() as connection:
        if level_of == "connection":
            connection.execution_options(**level)
        with connection.begin():
            command.upgrade(project.config(connection=connection), "head")
    assert sqlite.versions() == {"a1"}
    assert not list(Path(str(sqlite.url.database)).parent.glob("*.lock"))


def test_violation_of_one_of_two_foreign_keys(project: Project, sqlite: Database) -> None:
    """The columns and values are those of the foreign key that is broken, and of no other."""
    sqlite.run(
        "CREATE TABLE other (id INTEGER PRIMARY KEY)",
        "CREATE TABLE parent (a INTEGER, b INTEGER, PRIMARY KEY (a, b))",
        "CREATE TABLE child (a INTEGER, b INTEGER, other_id INTEGER REFERENCES other (id), "
        "FOREIGN KEY (a, b) REFERENCES parent (a, b))",
        "INSERT INTO other VALUES (3)",
        "INSERT INTO parent VALUES (1, 2)",
        "INSERT INTO child VALUES (1, 2, 3)",
    )
    project.revision("a1", "op.execute('DELETE FROM parent')")
    with pytest.raises(CommandError, match="breaks foreign keys") as raised:
        by_url(project, sqlite)
    assert '("child" ("a", "b") = (1, 2) has no row in "parent") and' in str(raised.value)


def test_many_violations_are_named_in_part(project: Project, sqlite: Database) -> None:
    """Of many violations five are named."""
    sqlite.run(
        *FAMILY[:2],
        "INSERT INTO parent VALUES (1, 'a'), (2, ''), (3, ''), (4, ''), (5, ''), (6, '')",
        "INSERT INTO child SELECT id, id FROM parent",
    )
    project.revision("a1", "op.execute('DELETE FROM parent')")
    with pytest.raises(CommandError) as raised:
        by_url(project, sqlite)
    named = "; ".join(
        f'"child" ("parent_id") = ({id}) has no row in "parent"' for id in range(1, 6)
    )
    assert str(raised.value) == (
        f"The migration breaks foreign keys ({named}; …) and is not committed: "
        "fix the revision or the rows."
    )


def test_violation_in_a_transaction_per_migration(project: Project, sqlite: Database) -> None:
    """With transaction_per_migration, the revision that breaks foreign keys is the one undone."""
    sqlite.run(*FAMILY)
    project.revision("a1", CREATE_ONE)
    project.revision("b2", lines(CREATE_TWO, "op.execute('DELETE FROM parent')"), down="a1")
    project.set(transaction_per_migration="true")
    with pytest.raises(CommandError) as raised:
        by_url(project, sqlite)
    assert str(raised.value) == BREAKS
    assert sqlite.tables() == {"alembic_version", "parent", "child", "one"}
    assert sqlite.versions() == {"a1"}
    assert sqlite.rows("SELECT * FROM parent") == [(1, "a")]


# Databases with violations of the time before: tables, the rows of child, what is copied.
OLD_VIOLATIONS = [
    pytest.param(
        [*FAMILY, "INSERT INTO child VALUES (3, 99)"],
        [(1, 1), (2, 1), (3, 99)],
        COPY_PARENT + COPY_CHILD,
        id="integer-key",
    ),
    pytest.param(
        [
            FAMILY[0],
            "CREATE TABLE child (id TEXT PRIMARY KEY, parent_id INTEGER REFERENCES parent (id))",
            "INSERT INTO child VALUES ('a', 97), ('b', 98), ('c', 99)",
            "DELETE FROM child WHERE id = 'a'",
        ],
        [("b", 98), ("c", 99)],
        COPY_PARENT + COPY_CHILD,
        id="renumbered-rowids",
    ),
    pytest.param(
        [
            FAMILY[0],
            (
                "CREATE TABLE child (id TEXT PRIMARY KEY, "
                "parent_id INTEGER REFERENCES parent (id)) WITHOUT ROWID"
            ),
            "INSERT INTO child VALUES ('a', 98), ('b', 99)",
        ],
        [("a", 98), ("b", 99)],
        COPY_PARENT + COPY_CHILD,
        id="without-rowid",
        marks=pytest.mark.since("sqlalchemy", "2.1"),  # 2.0 does not reflect it
    ),
    pytest.param(
        [
            FAMILY[0],
            "CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INTEGER REFERENCES missing (id))",
            "INSERT INTO child VALUES (1, 99)",
        ],
        [(1, 99)],
        COPY_PARENT,  # a table with such a foreign key cannot be reflected
        id="missing-table",
    ),
    pytest.param(
        [
            FAMILY[0],
            "CREATE TABLE child (id INTEGER PRIMARY KEY, name_of VARCHAR REFERENCES parent (name))",
            "INSERT INTO child VALUES (1, 'x')",
        ],
        [(1, "x")],
        COPY_PARENT + COPY_CHILD,
        id="foreign-key-mismatch",
    ),
    pytest.param(
        [
            FAMILY[0],
            'CREATE TABLE child (id INTEGER PRIMARY KEY, "a ""b" INTEGER REFERENCES parent (id))',
            "INSERT INTO child VALUES (1, 99)",
        ],
        [(1, 99)],
        COPY_PARENT + COPY_CHILD,
        id="quoted-names",
    ),
]


@pytest.mark.parametrize(("tables", "rows", "revision"), OLD_VIOLATIONS)
def test_old_violations_do_not_stop_a_migration(
    project: Project,
    sqlite: Database,
    tables: list[str],
    rows: list[tuple[object, ...]],
    revision: str,
) -> None:
    """Rows that had no parent before the run do not stop it, whatever table is copied."""
    sqlite.run(*tables)
    project.revision("a1", revision)
    by_url(project, sqlite)
    assert [row[:2] for row in sqlite.rows("SELECT * FROM child ORDER BY id")] == rows
    assert sqlite.versions() == {"a1"}


@pytest.mark.parametrize(
    "revision",
    [
        "op.rename_table('child', 'children')",
        "op.rename_table('parent', 'parents')",
        (
            "with op.batch_alter_table('child') as batch:\n"
            "    batch.alter_column('parent_id', new_column_name='of')"
        ),
        (
            "with op.batch_alter_table('child') as batch:\n"
            "    batch.alter_column('parent_id', type_=sa.String(9))"
        ),
    ],
    ids=["child", "parent", "column", "type"],
)
def test_old_violations_may_get_other_names(
    project: Project, sqlite: Database, revision: str
) -> None:
    """What is renamed is the same row without a parent; one more of its kind is named."""
    sqlite.run(*FAMILY, "INSERT INTO child VALUES (3, 99)")
    project.revision("a1", revision)
    by_url(project, sqlite)
    assert sqlite.versions() == {"a1"}
    table = "children" if "children" in revision else "child"
    project.revision("a2", f"op.execute('INSERT INTO {table} VALUES (4, 99)')", down="a1")
    with pytest.raises(CommandError, match="^The migration breaks foreign keys"):
        by_url(project, sqlite)
    assert sqlite.versions() == {"a1"}


def test_attached_databases_are_checked_as_well(
    project: Project, sqlite: Database, tmp_path: Path
) -> None:
    """Foreign keys are off in all databases of the connection during a run."""
    attached = Database("sqlite", URL.create("sqlite", database=str(tmp_path / "more.db")))
    attached.run(*FAMILY)
    engine = sqlite.engine()

    @event.listens_for(engine, "connect")
    def attach(driver: Any, _record: Any) -> None:
        driver.execute(f"ATTACH '{tmp_path / 'more.db'}' AS \"mo're\"")
        driver.execute("PRAGMA foreign_keys = ON")

    project.revision("a1", "op.execute('DELETE FROM \"mo\\'re\".parent')")
    with engine.connect() as connection, pytest.raises(CommandError) as raised:
        project.upgrade(connection)
    assert str(raised.value) == BREAKS
    assert attached.rows("SELECT count(*) FROM parent") != [(0,)]


def test_new_violation_beside_old_ones_is_named_alone(project: Project, sqlite: Database) -> None:
    """Where rows without a parent were there before, the new one alone is named."""
    sqlite.run(*FAMILY, "INSERT INTO child VALUES (3, 98), (4, 99)")
    project.revision("a1", lines(COPY_CHILD, "op.execute('DELETE FROM parent')"))
    with pytest.raises(CommandError) as raised:
        by_url(project, sqlite)
    assert str(raised.value) == BREAKS
    assert sqlite.rows("SELECT * FROM child") == [(1, 1), (2, 1), (3, 98), (4, 99)]


def test_transaction_of_the_caller_with_foreign_keys_is_refused(
    project: Project, sqlite: Database
) -> None:
    """Where foreign keys cannot be switched off, the run is refused before anything changes."""
    sqlite.run(*FAMILY)
    project.revision("a1", lines(CREATE_ONE, COPY_PARENT))
    engine = enforcing_engine(sqlite)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO child VALUES (3, 1)"))
        with pytest.raises(CommandError) as raised:
            project.upgrade(connection)
        assert set(inspect(connection).get_table_names()) == {"parent", "child"}
        connection.commit()
    engine.dispose()
    assert str(raised.value) == (
        "Foreign keys are on and cannot be switched off in a transaction that the caller has "
        "begun, so changing a table could delete the rows that refer to it: pass an Engine, a "
        "Connection without a transaction, or one with PRAGMA foreign_keys = OFF."
    )
    assert sqlite.tables() == {"parent", "child"}
    assert sqlite.rows("SELECT * FROM child") == [(1, 1), (2, 1), (3, 1)]


# The lock file


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize(
    ("option", "revision", "notes"),
    [
        pytest.param(None, NOTE, {(1, 0)}, id="one-transaction"),
        pytest.param("true", NOTE, {(1, 1)}, id="transaction-per-migration"),
        pytest.param(
            None,
            NOTE + "with op.get_context().autocommit_block():\n" + NOTE.replace("\n", "\n    "),
            {(1, 0), (0, 1)},
            id="autocommit-block",
        ),
    ],
)
def test_lock_file_stands_where_a_run_has_several_transactions(
    project: Project,
    sqlite: Database,
    option: str | None,
    revision: str,
    notes: set[tuple[int, int]],
    fails: bool,
) -> None:
    """The lock file stands beside the database where it is needed, and is removed afterwards."""
    sqlite.run("CREATE TABLE note (in_transaction INTEGER, lock_file INTEGER)")
    project.revision("a1", revision)
    project.revision("b2", FAIL if fails else "pass", down="a1")
    project.set(transaction_per_migration=option)
    if fails:
        with pytest.raises(RuntimeError, match="^the revision fails$"):
            by_url(project, sqlite)
    else:
        by_url(project, sqlite)
    if not fails or option:
        assert set(sqlite.rows("SELECT * FROM note")) == notes
    folder = Path(str(sqlite.url.database)).parent
    assert sorted(path.name for path in folder.glob("test.db*")) == ["test.db"]


def waited(sqlite: Database, seconds: int = 0) -> str:
    """Return the error of a run that has not got the lock."""
    return (
        f"Another process migrates this database: waited {seconds} seconds for the write lock of "
        f"{sqlite.url.database}; run the command again when it has finished, or raise lock_timeout."
    )


def test_lock_file_keeps_others_out_between_two_transactions(
    project: Project, sqlite: Database
) -> None:
    """With transaction_per_migration, nobody gets in when one revision is committed."""
    project.revision("a1", CREATE_ONE)
    project.revision("b2", CREATE_TWO, down="a1")
    project.set(transaction_per_migration="true")
    errors: list[str] = []
    with sqlite.engine().connect() as connection:
        # Listeners of a connection come before its engine's, in order: this one comes first.
        @event.listens_for(connection, "begin")
        def begin(_: object) -> None:
            if "one" in sqlite.tables() and not errors:
                url = ("-x", f"url={sqlite.text}")
                second = project.alembic("-x", "lock_timeout=0", *url, "upgrade", "head", ok=False)
                errors.append(second.stderr.splitlines()[-1])

        project.upgrade(connection)
    assert [error.partition("] ")[2] for error in errors] == [waited(sqlite)]
    assert sqlite.versions() == {"b2"}


BLOCK = f"""
op.execute("CREATE TABLE IF NOT EXISTS one (id INTEGER)")
import time
from pathlib import Path
folder = Path(__file__).parents[2]
with op.get_context().autocommit_block():
    (folder / "started").touch()
    deadline = time.monotonic() + 30
    while (folder / "hold").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
{CREATE_TWO}
"""


def test_lock_file_keeps_others_out_of_an_autocommit_block(
    project: Project, sqlite: Database
) -> None:
    """While a run is in an autocommit_block(), others wait; they get in when it is over."""
    project.revision("a1", BLOCK)
    hold = project.folder / "hold"
    hold.touch()
    holder = project.start("-x", f"url={sqlite.text}", "upgrade", "head")
    wait_for(project.folder / "started")
    config = project.config(sqlite.text)
    config.set_main_option("lock_timeout", "0")
    with pytest.raises(CommandError) as raised:
        command.upgrade(config, "head")
    hold.unlink()
    holder.communicate(timeout=30)
    assert holder.returncode == 0
    assert str(raised.value) == waited(sqlite)
    assert sqlite.tables() == {"alembic_version", "one", "two"}
    command.downgrade(config, "base")
    assert sqlite.versions() == set()


def test_lock_file_of_a_killed_process_is_no_obstacle(project: Project, sqlite: Database) -> None:
    """A lock file that a killed process has left holds nobody up, and goes with the next run."""
    project.revision("a1", BLOCK)
    lock_file = Path(f"{sqlite.url.database}-alembic_version.lock")
    hold = project.folder / "hold"
    hold.touch()
    holder = project.start("-x", f"url={sqlite.text}", "upgrade", "head")
    wait_for(project.folder / "started")
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)
    assert lock_file.exists()
    assert sqlite.versions() == set()
    hold.unlink()
    config = project.config(sqlite.text)
    config.set_main_option("lock_timeout", "0")
    command.upgrade(config, "head")
    assert sqlite.versions() == {"a1"}
    assert not lock_file.exists()


# Where the database is


@pytest.mark.parametrize("name", ["with space.db", "100%.db", "a%20b.db", 'a\'b "c".db'])
def test_path_with_special_characters(project: Project, tmp_path: Path, name: str) -> None:
    """A path with spaces, percent signs or quotes names the very file, from the ini file and -x."""
    project.revision("a1", lines(CREATE_ONE, VACUUM))
    project.revision("b2", CREATE_TWO, down="a1")
    folder = tmp_path / "50% of it"
    folder.mkdir()
    database = Database("sqlite", URL.create("sqlite", database=str(folder / name)))
    command.upgrade(project.config(database.text), "a1")
    project.alembic("-x", f"url={database.text}", "upgrade", "head")
    assert [path.name for path in folder.iterdir()] == [name]
    with closing(sqlite3.connect(folder / name)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("b2",)]


@pytest.mark.parametrize(
    "revision", [CREATE_ONE, lines(CREATE_ONE, VACUUM)], ids=["plain", "block"]
)
@pytest.mark.parametrize("option", [None, "true"], ids=["one", "per-migration"])
def test_memory_database_on_a_shared_connection(
    project: Project, monkeypatch: pytest.MonkeyPatch, revision: str, option: str | None
) -> None:
    """A memory database is migrated on the connection that it lives on; no file appears."""
    no_file = "from pathlib import Path\nassert not list(Path.cwd().glob('*.lock'))"
    project.revision("a1", lines(revision, no_file))
    project.revision("b2", lines(CREATE_TWO, FAIL), down="a1")
    project.set(transaction_per_migration=option)
    monkeypatch.chdir(project.folder)
    files = {path.name for path in project.folder.iterdir()}
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        project.upgrade(connection, "a1")
        with pytest.raises(RuntimeError, match="^the revision fails$"):
            project.upgrade(connection)
        assert set(inspect(connection).get_table_names()) == {"alembic_version", "one"}
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars()
        assert list(found) == ["a1"]
    engine.dispose()
    assert {path.name for path in project.folder.iterdir()} - {"__pycache__"} == files


def test_memory_database_of_aiosqlite_on_a_shared_connection(project: Project) -> None:
    """With aiosqlite too, a memory database's failing run is undone on its connection."""
    project.revision("a1", lines(CREATE_ONE, FAIL))

    async def upgrade() -> set[str]:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.connect() as connection:
            with pytest.raises(RuntimeError, match="^the revision fails$"):
                await connection.run_sync(project.upgrade)
            rows = await connection.execute(text("SELECT name FROM sqlite_master"))
            found = set(rows.scalars())
        await engine.dispose()
        return found

    assert asyncio.run(upgrade()) == set()


# Applications that begin by BEGIN IMMEDIATE, beside others that write


def immediate_engine(database: Database) -> Engine:
    """Return an engine that enforces foreign keys and sends BEGIN IMMEDIATE by itself."""
    return application_engine(database, statement="BEGIN IMMEDIATE", timeout=0)


class EndWriter(logging.Handler):
    """Ends the transaction of another connection as soon as a run says something."""

    def __init__(self, writer: sqlite3.Connection) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Commit what the other connection has written."""
        if self.writer.in_transaction:
            self.writer.execute("COMMIT")


def test_batch_keeps_child_rows_beside_a_writer(project: Project, sqlite: Database) -> None:
    """A run on an engine that sends BEGIN IMMEDIATE waits for a writer, with foreign keys off."""
    sqlite.run(*FAMILY)
    project.revision("a1", COPY_PARENT)
    engine = immediate_engine(sqlite)
    writer = sqlite3.connect(str(sqlite.url.database), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    handler = EndWriter(writer)
    log = logging.getLogger("alembic.env")
    log.addHandler(handler)
    try:
        project.upgrade(engine)
    finally:
        log.removeHandler(handler)
        writer.close()
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    engine.dispose()
    assert sqlite.rows("SELECT * FROM child") == [(1, 1), (2, 1)]
    assert sqlite.versions() == {"a1"}


def test_begin_immediate_of_an_application_waits_for_the_lock_timeout(
    project: Project, sqlite: Database
) -> None:
    """Where the application's engine sends BEGIN IMMEDIATE, a busy database is one sentence."""
    project.revision("a1", CREATE_ONE)
    engine = immediate_engine(sqlite)
    config = project.config(connection=engine)
    config.set_main_option("lock_timeout", "0")
    with closing(sqlite3.connect(str(sqlite.url.database), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(CommandError) as raised:
            command.upgrade(config, "head")
    assert str(raised.value) == waited(sqlite)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE own (id INTEGER)"))
    command.upgrade(config, "head")
    engine.dispose()
    assert sqlite.tables() == {"alembic_version", "own", "one"}


def test_transaction_per_migration_on_an_engine_that_begins_immediately(
    project: Project, sqlite: Database
) -> None:
    """With several transactions too, an engine that sends BEGIN IMMEDIATE is all or nothing."""
    project.revision("a1", lines(CREATE_ONE, VACUUM))
    project.revision("b2", lines(CREATE_TWO, FAIL), down="a1")
    project.set(transaction_per_migration="true")
    engine = immediate_engine(sqlite)
    with pytest.raises(RuntimeError, match="^the revision fails$"):
        project.upgrade(engine)
    engine.dispose()
    assert sqlite.tables() == {"alembic_version", "one"}
    assert sqlite.versions() == {"a1"}


DENY = """
import sqlite3
def judge(action, name, value, *_):
    denied = action == sqlite3.SQLITE_PRAGMA and name == "foreign_keys" and value == "ON"
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK
op.get_bind().connection.driver_connection.set_authorizer(judge)
"""


def test_connection_without_foreign_keys_is_given_up(project: Project, sqlite: Database) -> None:
    """Where foreign keys cannot be switched on again, the pool does not keep the connection."""
    sqlite.run(*FAMILY)
    project.revision("a1", lines(DENY, FAIL))
    engine = enforcing_engine(sqlite)
    with pytest.raises(RuntimeError, match="^the revision fails$"):
        project.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    engine.dispose()


def test_foreign_keys_that_stay_on_stop_the_run(project: Project, sqlite: Database) -> None:
    """Where foreign keys cannot be switched off, nothing is run."""
    sqlite.run(*FAMILY)
    project.revision("a1", COPY_PARENT)
    engine = enforcing_engine(sqlite)

    def judge(action: int, name: str, value: str, *_: object) -> int:
        ignored = action == sqlite3.SQLITE_PRAGMA and name == "foreign_keys" and value == "OFF"
        return sqlite3.SQLITE_IGNORE if ignored else sqlite3.SQLITE_OK

    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver
        driver.set_authorizer(judge)
        with pytest.raises(CommandError, match="^Foreign keys could not be switched off"):
            project.upgrade(connection)
    engine.dispose()
    assert sqlite.rows("SELECT * FROM child") == [(1, 1), (2, 1)]
    assert sqlite.tables() == {"parent", "child"}


@pytest.mark.parametrize("shares", ["engine", "connection"])
@pytest.mark.parametrize(
    "engine", [enforcing_engine, application_engine, immediate_engine], ids=lambda e: e.__name__
)
def test_run_that_breaks_foreign_keys_leaves_nothing(
    project: Project, sqlite: Database, engine: Callable[[Database], Engine], shares: str
) -> None:
    """What is said not to be committed is not, on engines that enforce foreign keys as well."""
    sqlite.run(*FAMILY)
    project.revision("a1", lines(CREATE_ONE, "op.execute('DELETE FROM parent')"))
    shared = engine(sqlite)
    with pytest.raises(CommandError) as raised:
        if shares == "engine":
            project.upgrade(shared)
        else:
            with shared.connect() as connection:
                project.upgrade(connection)
    with shared.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    shared.dispose()
    assert str(raised.value) == BREAKS
    assert sqlite.tables() == {"parent", "child"}
    assert sqlite.rows("SELECT * FROM parent") == [(1, "a")]


def test_violation_at_autocommit_is_said_to_be_committed(
    project: Project, sqlite: Database
) -> None:
    """What stands at isolation level AUTOCOMMIT although it breaks foreign keys is said to stand."""
    sqlite.run(*FAMILY)
    project.revision("a1", "op.execute('DELETE FROM parent')")
    engine = create_engine(sqlite.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with pytest.raises(CommandError) as raised:
        project.upgrade(engine)
    assert str(raised.value) == BREAKS.replace("is not committed", "is already committed")
    assert sqlite.rows("SELECT * FROM parent") == []
