"""Option ddl_lock_retries: a run gives way to who has the table, and tries again."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from conftest import DRIVERS, OTHER_DRIVERS, Database, Project, imported, kind_of, reached_by
from sqlalchemy import Connection, create_engine, inspect
from sqlalchemy.exc import DBAPIError

SERVERS = ["postgresql", "mariadb"]

# Seconds after which a statement gives up; on MariaDB the unit is a second.
TIMEOUT = {"postgresql": "0.2", "mariadb": "1"}


class Holder(logging.Handler):
    """A transaction that has read the table `busy`, and ends with the nth warning of a run.

    `warnings` are those that the run has logged, and `seen` what `look` returned at each.
    """

    def __init__(self, database: Database, until: int, schema: str = "") -> None:
        super().__init__(logging.WARNING)
        self.database = database
        self.connection = database.engine().connect()
        self.connection.exec_driver_sql(f"SELECT * FROM {schema}busy").all()
        pid = {"postgresql": "pg_backend_pid()", "mariadb": "connection_id()"}[database.kind]
        self.pid = self.connection.exec_driver_sql(f"SELECT {pid}").scalar()
        self.until = until
        self.warnings: list[str] = []
        self.look: Callable[[], Any] = lambda: None
        self.seen: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a warning, and end the transaction if it is time."""
        self.warnings.append(record.getMessage())
        self.seen.append(self.look())
        if len(self.warnings) == self.until:
            self.connection.rollback()


@contextmanager
def holder_of(database: Database, until: int, schema: str = "") -> Iterator[Holder]:
    """Give a holder of the table that hears the warnings of a run."""
    holder = Holder(database, until, schema)
    logging.getLogger("alembic.env").addHandler(holder)
    try:
        yield holder
    finally:
        logging.getLogger("alembic.env").removeHandler(holder)
        holder.connection.close()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Database:
    """An empty database of each server, with a table `busy` that has a row."""
    return with_busy(request.getfixturevalue(request.param))


def with_busy(database: Database) -> Database:
    """Create the table that is not free."""
    database.run("CREATE TABLE busy (id INTEGER)", "INSERT INTO busy VALUES (1)")
    return database


def columns(database: Database) -> list[str]:
    """Return the names of the columns of the table."""
    return [each["name"] for each in inspect(database.engine()).get_columns("busy")]


def add(name: str) -> str:
    """Return the code that adds a column to the table."""
    return f"op.add_column('busy', sa.Column({name!r}, sa.Integer))"


def config_of(project: Project, database: Database, **options: str) -> Config:
    """Return the Config of a program, with a timeout and these options."""
    config = project.config(database.text)
    settings = {"ddl_lock_timeout": TIMEOUT.get(database.kind, "1"), **options}
    for name, value in settings.items():
        config.set_main_option(name, value)
    return config


@pytest.mark.parametrize("each", ["false", "true"], ids=["one-transaction", "a-transaction-each"])
@pytest.mark.parametrize("driver", [*DRIVERS["postgresql"], *DRIVERS["mariadb"]])
def test_a_run_goes_on_when_the_table_is_free(
    driver: str,
    each: str,
    project: Project,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """The run is tried again until the table is free, and goes on from what is committed."""
    database = with_busy(request.getfixturevalue(kind_of(driver)))
    project.revision("a1", "op.create_table('first', sa.Column('id', sa.Integer))")
    project.revision("a2", add("more"), down="a1")
    project.revision("a3", "op.create_table('last', sa.Column('id', sa.Integer))", down="a2")
    config = config_of(project, database, transaction_per_migration=each)
    config.set_main_option("sqlalchemy.url", database.url_for(driver).replace("%", "%%"))
    caplog.set_level(logging.INFO, "alembic.runtime.migration")
    with holder_of(database, until=2) as holder:
        command.upgrade(config, "head")
    assert columns(database) == ["id", "more"]
    assert database.versions() == {"a3"}
    assert database.tables() == {"busy", "first", "last", "alembic_version"}
    steps = [found[1] for text in caplog.messages if (found := re.search(r"-> (a\d)", text))]
    commits = each == "true" or database.kind == "mariadb"
    assert steps == (
        ["a1", "a2", "a2", "a2", "a3"] if commits else ["a1", "a2", "a1", "a2", "a1", "a2", "a3"]
    )
    assert len(holder.warnings) == 2
    for left, warning in zip((10, 9), holder.warnings, strict=True):
        assert re.fullmatch(
            rf"Revision a2 \(line \d+\) has waited {TIMEOUT[database.kind]} seconds for a table that "
            rf"is held by process {holder.pid} \([\w ]+, its transaction is \d+ seconds old\): rolled "
            rf"back, tried again in \d\.\d seconds, and up to {left} times\.",
            warning,
        )


@pytest.mark.parametrize("each", ["false", "true"], ids=["one-transaction", "a-transaction-each"])
def test_a_commit_that_waits_is_tried_again(
    each: str, project: Project, postgresql: Database
) -> None:
    """COMMIT waits for the row of a deferred key: the revision is not done, and the lock is held."""
    database = with_busy(postgresql)
    deferred = "INTEGER REFERENCES busy DEFERRABLE INITIALLY DEFERRED"
    database.run("ALTER TABLE busy ADD PRIMARY KEY (id)", f"CREATE TABLE child (busy {deferred})")
    project.revision("a1", "op.execute('INSERT INTO child VALUES (1)')")
    config = config_of(project, database, transaction_per_migration=each)
    with holder_of(database, until=2) as holder:
        holder.connection.exec_driver_sql("SELECT * FROM busy FOR UPDATE").all()
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        of_this = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        holder.look = lambda: database.rows(f"{locks} AND {of_this}")
        command.upgrade(config, "head")
    assert holder.seen == [[(1,)], [(1,)]]
    assert database.versions() == {"a1"}
    assert database.rows("SELECT * FROM child") == [(1,)]


@pytest.mark.parametrize(
    "driver",
    ["postgresql+psycopg", "postgresql+asyncpg", "mysql+pymysql", *OTHER_DRIVERS.values()],
)
def test_a_connection_without_a_transaction_is_left_as_it_was(
    driver: str, project: Project, request: pytest.FixtureRequest
) -> None:
    """On a connection of the caller that has no transaction, it is tried again as well."""
    if driver in OTHER_DRIVERS.values():
        database = with_busy(reached_by(driver, request))
    else:
        database = with_busy(request.getfixturevalue(kind_of(driver)))
    project.revision("a1", add("more"))
    config = config_of(project, database)

    def upgrade(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        assert not connection.in_transaction()

    with holder_of(database, until=1) as holder:
        if "asyncpg" in driver:
            asyncio.run(on_async(database.url_for(driver), upgrade))
        else:
            engine = create_engine(database.url_for(driver))
            with engine.connect() as connection:
                upgrade(connection)
            engine.dispose()
    assert columns(database) == ["id", "more"]
    assert len(holder.warnings) == 1


async def on_async(url: str, work: Callable[[Connection], None]) -> None:
    """Call a function with a connection of an async engine."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.run_sync(work)
    await engine.dispose()


def test_a_series_lets_other_tasks_work(project: Project, postgresql: Database) -> None:
    """While a series waits to try again, a task of its event loop can end the transaction."""
    from sqlalchemy.ext.asyncio import create_async_engine

    with_busy(postgresql)
    project.revision("a1", add("more"))
    project.set(ddl_lock_timeout="0.2")

    async def main() -> None:
        engine = create_async_engine(postgresql.url_for("postgresql+asyncpg"))
        migrations = imported(project.folder / "migrations").Migrations
        with holder_of(postgresql, until=-1) as holder:
            warned = asyncio.Event()
            holder.look = warned.set

            async def release() -> None:
                await warned.wait()
                holder.connection.rollback()

            async with engine.connect() as connection:
                upgrade = connection.run_sync(lambda c: migrations(c).upgrade())
                await asyncio.gather(upgrade, release())
        await engine.dispose()

    asyncio.run(main())
    assert columns(postgresql) == ["id", "more"]


def test_a_run_ends_after_so_many_tries(project: Project, server: Database) -> None:
    """After ddl_lock_retries tries more the server's error is raised, and nothing is changed."""
    project.revision("a1", add("more"))
    config = config_of(project, server, ddl_lock_retries="2")
    with (
        holder_of(server, until=-1) as holder,
        pytest.raises(DBAPIError, match="(?i)lock (wait )?timeout"),
    ):
        command.upgrade(config, "head")
    assert len(holder.warnings) == 2
    assert columns(server) == ["id"]
    if server.kind == "mariadb":  # where DDL commits
        assert server.versions() == set()
    else:
        assert server.tables() == {"busy"}


def test_other_errors_are_not_tried_again(project: Project, server: Database) -> None:
    """A statement that asks not to wait, and one that is wrong, fail at once."""
    server.run("CREATE TABLE locked (id INTEGER PRIMARY KEY)", "INSERT INTO locked VALUES (1)")
    config = config_of(project, server)
    for number, code in enumerate(
        ("op.execute('SELECT nosuch')", "op.execute('SELECT * FROM locked FOR UPDATE NOWAIT')")
    ):
        project.revision("a1", code)
        with holder_of(server, until=-1) as holder:
            holder.connection.exec_driver_sql("SELECT * FROM locked FOR UPDATE").all()
            with pytest.raises(DBAPIError):
                command.upgrade(config, "head")
        assert holder.warnings == [], number


def test_nothing_is_tried_again_on_sqlite(project: Project, sqlite: Database) -> None:
    """A database without such a timeout runs a revision once, whatever it raises."""
    runs = project.folder / "runs"
    code = f"with open({str(runs)!r}, 'a') as file:\n    file.write('x')\nraise RuntimeError('it fails')"
    project.revision("a1", code)
    with pytest.raises(RuntimeError, match="it fails"):
        command.upgrade(config_of(project, sqlite), "head")
    assert runs.read_text() == "x"


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql", *OTHER_DRIVERS.values()])
def test_a_callers_transaction_is_not_tried_again(
    driver: str, project: Project, request: pytest.FixtureRequest
) -> None:
    """In a transaction of the caller the error is raised at once: only the caller can roll back."""
    server = with_busy(reached_by(driver, request))
    project.revision("a1", add("more"))
    config = config_of(project, server)
    with holder_of(server, until=-1) as holder, server.engine().connect() as connection:
        config.attributes["connection"] = connection
        with connection.begin(), pytest.raises(DBAPIError, match="(?i)lock (wait )?timeout"):
            command.upgrade(config, "head")
    (warning,) = holder.warnings
    assert re.fullmatch(
        r"Revision a1 \(line \d+\) is not tried again, since the caller has begun the transaction\.",
        warning,
    )


def test_nothing_is_tried_again_without_the_timeout(project: Project, server: Database) -> None:
    """A timeout that the application itself has set is not ours."""
    project.revision("a1", add("more"))
    config = project.config(server.text)
    own = {"postgresql": "SET lock_timeout = '100ms'", "mariadb": "SET lock_wait_timeout = 1"}
    with holder_of(server, until=-1) as holder, server.engine().connect() as connection:
        connection.exec_driver_sql(own[server.kind])
        connection.commit()
        config.attributes["connection"] = connection
        with pytest.raises(DBAPIError, match="(?i)lock (wait )?timeout"):
            command.upgrade(config, "head")
    assert holder.warnings == []


def assert_said_to_be_half_done(holder: Holder) -> None:
    """Fail unless the one warning of a run says why it is not tried again."""
    (warning,) = holder.warnings
    assert re.fullmatch(
        r"Revision a1 \(line \d+\) is not tried again, since it is half committed, and a second run "
        r"could trip over that\.",
        warning,
    )


@pytest.mark.parametrize("first", ["add_column", "insert"])
def test_a_revision_that_is_half_committed_is_not_run_again(
    first: str, project: Project, mariadb: Database
) -> None:
    """On MariaDB a second statement that waits in vain is the error that names the revision."""
    with_busy(mariadb)
    mariadb.run("CREATE TABLE other (id INTEGER)")
    code = {
        "add_column": "op.add_column('other', sa.Column('more', sa.Integer))",
        "insert": "op.execute('INSERT INTO other VALUES (1)')",
    }[first]
    project.revision("a1", f"{code}\n{add('more')}")
    config = config_of(project, mariadb)
    with (
        holder_of(mariadb, until=-1) as holder,
        pytest.raises(DBAPIError, match=r"Revision a1 failed in line \d+\. MySQL and MariaDB"),
    ):
        command.upgrade(config, "head")
    assert_said_to_be_half_done(holder)
    assert len(mariadb.rows("SELECT * FROM other")) == (first == "insert")
    assert mariadb.versions() == set()


def test_a_holder_in_another_database_is_unknown(project: Project, mariadb: Database) -> None:
    """On MariaDB no process that is not known is said to have ended; the wait is in whole seconds."""
    with_busy(mariadb)
    project.revision("a1", add("more"))
    config = config_of(project, mariadb, ddl_lock_timeout="0.5")
    with holder_of(mariadb, until=1) as holder:
        holder.connection.exec_driver_sql("USE information_schema")
        command.upgrade(config, "head")
    (warning,) = holder.warnings
    assert " has waited 1 seconds for a table that is held by an unknown process: " in warning
    assert columns(mariadb) == ["id", "more"]


def test_what_may_be_repeated_is(project: Project, mariadb: Database) -> None:
    """A revision whose committed statements say IF NOT EXISTS is run again, as of if_exists."""
    with_busy(mariadb)
    project.revision(
        "a1",
        f"op.create_table('other', sa.Column('id', sa.Integer), if_not_exists=True)\n{add('more')}",
    )
    with holder_of(mariadb, until=1) as holder:
        command.upgrade(config_of(project, mariadb), "head")
    assert len(holder.warnings) == 1
    assert columns(mariadb) == ["id", "more"]


def test_relative_steps_are_counted_once(project: Project, server: Database) -> None:
    """`downgrade -2` and `upgrade +2` take two steps, also where one of them was tried again."""
    for number, down in enumerate([None, "a0", "a1", "a2", "a3"]):
        drop = f"op.drop_column('busy', 'c{number}')"
        bodies = [add(f"c{number}"), drop] if number % 2 else ["pass", "pass"]
        project.revision(f"a{number}", *bodies, down=down)
    config = config_of(project, server, transaction_per_migration="true")
    command.upgrade(config, "head")
    # The first of two steps is committed when the second one waits.
    with holder_of(server, until=1) as holder:
        command.downgrade(config, "-2")
    assert len(holder.warnings) == 1
    assert server.versions() == {"a2"}
    command.downgrade(config, "-1")
    with holder_of(server, until=1) as holder:
        command.upgrade(config, "+2")
    assert len(holder.warnings) == 1
    assert server.versions() == {"a3"}


def test_an_index_that_was_not_finished_is_dropped(project: Project, postgresql: Database) -> None:
    """CREATE INDEX CONCURRENTLY that waits in vain leaves an index, which is made anew."""
    with_busy(postgresql)
    project.revision(
        "a1",
        "with op.get_context().autocommit_block():\n"
        "    op.create_index('ix \"busy\"', 'busy', ['id'], postgresql_concurrently=True,\n"
        "                    if_not_exists=True)",
    )
    valid = "SELECT indisvalid FROM pg_index WHERE indrelid = 'busy'::regclass"
    with holder_of(postgresql, until=2) as holder:
        # It is the writer that the first phase waits for.
        holder.connection.exec_driver_sql("UPDATE busy SET id = 2")
        holder.look = lambda: postgresql.rows(valid)
        command.upgrade(config_of(project, postgresql), "head")
    assert holder.seen == [[(False,)], [(False,)]]
    assert postgresql.rows(valid) == [(True,)]
    assert postgresql.versions() == {"a1"}


@pytest.mark.parametrize("retries", ["0", "1"])
def test_an_index_that_is_given_up_is_made_by_the_next_run(
    retries: str, project: Project, postgresql: Database
) -> None:
    """What the last try has left is said, and is not taken for the index by the next run."""
    with_busy(postgresql)
    postgresql.run("CREATE SCHEMA other", "CREATE TABLE other.free (id int)")
    # An index of the same name on another table is none of ours.
    postgresql.run('CREATE INDEX "I x" ON other.free (id)')
    postgresql.run("UPDATE pg_index SET indisvalid = false WHERE indrelid = 'other.free'::regclass")
    project.revision(
        "a1",
        "with op.get_context().autocommit_block():\n"
        "    op.execute('create index concurrently if not exists \"I x\" on busy (id)')",
    )
    config = config_of(project, postgresql, ddl_lock_retries=retries)
    index = "SELECT indrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid IN \
        ('busy'::regclass, 'other.free'::regclass) ORDER BY 1"
    with (
        holder_of(postgresql, until=-1) as holder,
        pytest.raises(DBAPIError, match="lock timeout"),
    ):
        holder.connection.exec_driver_sql("UPDATE busy SET id = 2")
        command.upgrade(config, "head")
    assert len(holder.warnings) == 1 + int(retries)
    assert holder.warnings[-1].startswith("Could not drop the index that is not finished: ")
    assert 'DROP INDEX "I x"' in holder.warnings[-1]
    assert postgresql.rows(index) == [("busy", False), ("other.free", False)]
    command.upgrade(config, "head")
    assert postgresql.rows(index) == [("busy", True), ("other.free", False)]


def test_an_index_that_fails_is_dropped(project: Project, postgresql: Database) -> None:
    """A unique index of rows that are not leaves nothing behind that the next run would take."""
    with_busy(postgresql)
    postgresql.run("INSERT INTO busy VALUES (1)")
    project.revision(
        "a1",
        "with op.get_context().autocommit_block():\n"
        "    op.create_index('ix', 'busy', ['id'], unique=True, postgresql_concurrently=True,\n"
        "                    if_not_exists=True)",
    )
    for _ in range(2):
        with pytest.raises(DBAPIError, match="could not create unique index"):
            command.upgrade(config_of(project, postgresql), "head")
        assert postgresql.rows("SELECT * FROM pg_index WHERE indrelid = 'busy'::regclass") == []


def test_what_an_autocommit_block_has_committed_is_not_run_again(
    project: Project, postgresql: Database
) -> None:
    """A revision that has changed something before its autocommit block is not run again."""
    with_busy(postgresql)
    postgresql.run("CREATE TABLE other (id INTEGER)")
    project.revision(
        "a1",
        "op.add_column('other', sa.Column('more', sa.Integer))\n"
        "with op.get_context().autocommit_block():\n    " + add("more"),
    )
    with (
        holder_of(postgresql, until=-1) as holder,
        pytest.raises(DBAPIError, match="lock timeout"),
    ):
        command.upgrade(config_of(project, postgresql), "head")
    assert_said_to_be_half_done(holder)
    assert columns(postgresql) == ["id"]


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("select note()", 1),
        ("insert into log values ('checks if exists')", 1),
        ("with new as (insert into log values (1) returning 1) select * from new", 1),
        ("create table if not exists x (t text default $$'$$); insert into log values ('x')", 1),
        ("create table if not exists x (id int -- it's\n); insert into log select 'x'", 1),
        ("alter table if exists other add more int", 0),
        ("alter table other add column if not exists a numeric(10, 2), add more int", 0),
        ("alter table other alter column id type int using id + 1", 0),
    ],
)
def test_what_changes_something_is_sent_once(
    statement: str, rows: int, project: Project, postgresql: Database
) -> None:
    """In an autocommit block nothing is sent again that would do its work a second time."""
    with_busy(postgresql)
    postgresql.run(
        "CREATE TABLE log (what text)",
        "CREATE TABLE other (id int)",
        "INSERT INTO other VALUES (1)",
        "CREATE FUNCTION note() RETURNS void LANGUAGE sql AS 'INSERT INTO log VALUES (1)'",
    )
    project.revision(
        "a1",
        f"with op.get_context().autocommit_block():\n    op.execute({statement!r})\n"
        "    op.create_index('ix', 'busy', ['id'], postgresql_concurrently=True,\n"
        "                    if_not_exists=True)",
    )
    with (
        holder_of(postgresql, until=1) as holder,
        pytest.raises(DBAPIError, match="lock timeout"),
    ):
        holder.connection.exec_driver_sql("UPDATE busy SET id = 2")
        command.upgrade(config_of(project, postgresql), "head")
    assert_said_to_be_half_done(holder)
    assert len(postgresql.rows("SELECT * FROM log")) == rows
    assert postgresql.rows("SELECT id FROM other WHERE id > 2") == []
    assert postgresql.versions() == set()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE IF NOT EXISTS other (id INT DEFAULT (1 + 1), name TEXT DEFAULT 'a; b')",
        "DROP TABLE IF EXISTS other, another;",
        'ALTER TABLE public."more; x" ADD COLUMN IF NOT EXISTS a NUMERIC(10, 2) DEFAULT 1',
        'ALTER TABLE "more; x" ALTER COLUMN id TYPE NUMERIC(10, 2)',
        'ALTER TABLE "more; x" ALTER COLUMN id SET NOT NULL',
        "COMMENT ON TABLE busy IS 'it''s; in use'",
        "SET lock_timeout = '200ms'",
        # As rule concurrent_indexes writes it.
        (
            'DO $$ BEGIN\nLOCK TABLE "more; x" IN SHARE UPDATE EXCLUSIVE MODE;\n'
            "IF EXISTS (SELECT FROM pg_index WHERE NOT indisvalid\n"
            "AND indexrelid = to_regclass('\"I x\"')\nAND indrelid = to_regclass('\"more; x\"')\n"
            ') THEN DROP INDEX "I x"; END IF; END $$\n'
        ),
    ],
)
def test_what_changes_nothing_more_is_sent_again(
    statement: str, project: Project, postgresql: Database
) -> None:
    """What an autocommit block commits may be repeated if a second time changes nothing."""
    with_busy(postgresql)
    postgresql.run('CREATE TABLE "more; x" (id int)')
    project.revision(
        "a1",
        f"with op.get_context().autocommit_block():\n    op.execute({statement!r})\n"
        "    " + add("more"),
    )
    with holder_of(postgresql, until=1) as holder:
        command.upgrade(config_of(project, postgresql), "head")
    assert len(holder.warnings) == 1
    assert columns(postgresql) == ["id", "more"]


def test_what_comes_after_an_autocommit_block_is_tried_again(
    project: Project, postgresql: Database
) -> None:
    """A revision is run again if what its autocommit block has committed may be repeated."""
    with_busy(postgresql)
    postgresql.run("CREATE TABLE other (id INTEGER)")
    project.revision(
        "a1",
        "with op.get_context().autocommit_block():\n"
        "    op.create_index('ix', 'other', ['id'], postgresql_concurrently=True,\n"
        "                    if_not_exists=True)\n" + add("more"),
    )
    with holder_of(postgresql, until=1) as holder:
        command.upgrade(config_of(project, postgresql), "head")
    assert len(holder.warnings) == 1
    assert columns(postgresql) == ["id", "more"]


def test_the_lock_is_held_while_a_run_waits(project: Project, postgresql: Database) -> None:
    """Between two tries no other run can have the migration lock, and no transaction is open."""
    with_busy(postgresql)
    project.revision("a1", add("more"))
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = \
        (SELECT oid FROM pg_database WHERE datname = current_database())"
    with holder_of(postgresql, until=1) as holder:
        holder.look = lambda: postgresql.rows(locks)
        command.upgrade(config_of(project, postgresql), "head")
    assert holder.seen == [[(1,)]]


def test_a_tenant_is_tried_again(fleet_project: Project, postgresql: Database) -> None:
    """In a fleet the tenant whose table is not free is tried again, with its own lock."""
    for name in ("one", "two"):
        postgresql.run(f"CREATE SCHEMA {name}", f"CREATE TABLE {name}.busy (id INTEGER)")
    fleet_project.revision("a1", add("more"))
    fleet_project.set(tenants="one two")
    config = config_of(fleet_project, postgresql)
    with holder_of(postgresql, until=1, schema="two.") as holder:
        command.upgrade(config, "head")
    assert len(holder.warnings) == 1
    assert holder.warnings[0].startswith("Tenant 'two': Revision a1 (line ")
    assert f"process {holder.pid} (" in holder.warnings[0]
    for name in ("one", "two"):
        assert postgresql.versions(f"{name}.alembic_version") == {"a1"}
        assert len(postgresql.rows(f"SELECT more FROM {name}.busy")) == 0


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", ""])
@pytest.mark.parametrize("source", ["x", "option"])
def test_a_wrong_number_is_an_error(
    value: str, source: str, project: Project, sqlite: Database
) -> None:
    """What is no whole number is one sentence."""
    project.set(sqlalchemy__url=sqlite.text)
    x = []
    if source == "x":
        x = ["-x", f"ddl_lock_retries={value}"]
    else:
        project.set(ddl_lock_retries=value)
    done = project.alembic(*x, "upgrade", "head", ok=False)
    assert f"ddl_lock_retries is {value!r}: expected a whole number, 0 or more." in done.stderr


def test_retries_without_a_timeout_are_said(
    project: Project, sqlite: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """ddl_lock_retries that has no effect is a warning, and its default is none."""
    config = project.config(sqlite.text)
    command.upgrade(config, "head")
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    config.set_main_option("ddl_lock_retries", "3")
    command.upgrade(config, "head")
    (warning,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert warning.getMessage() == (
        "ddl_lock_retries has no effect without ddl_lock_timeout: set that, too."
    )
    caplog.clear()
    config.set_main_option("ddl_lock_timeout", "3")
    command.upgrade(config, "head")
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
