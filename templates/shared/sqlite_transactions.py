"""A run on SQLite: its write lock, transactions that undo DDL, and foreign keys off.

Python's driver begins no transaction before DDL, so a revision that fails would leave
tables behind (SQLAlchemy manual, "Transactions with SQLite and the sqlite3 driver").
Here each transaction begins with BEGIN IMMEDIATE, which takes the write lock (SQLite
documentation, "Transaction"). That happens on this connection alone, and not by an
event of the engine: a second connection that a revision opens would wait for the first
in vain. If a run has several transactions, a lock file keeps other runs out between
them.

To change a table, batch mode copies it and drops the old one. With foreign keys on,
that would delete the rows of other tables that refer to it. So they are off during a
run, and checked before each commit, as the SQLite documentation says ("ALTER TABLE",
"Making Other Kinds Of Table Schema Changes").

An owner without SQLite can delete this file.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from . import migration_lock as locking
from .migration_lock import BEFORE_STATEMENT, Run, listening


@contextmanager
def hold(run: Run) -> Iterator[None]:
    """Hold the write lock while the command runs, in transactions that undo DDL.

    A run that only reads takes no lock. Raises LockNotAvailable if another process has
    the lock for too long, and CommandError before a commit that would break foreign
    keys.
    """
    if run.reads_only:
        with locking.ended_transaction(run):
            yield
        return
    lock = SqliteLock(run)
    held = lock.in_own_transactions
    if run.has_callers_transaction:
        held = lock.in_callers_transaction
    try:
        with held():
            lock.count_before_revisions()
            lock.has_begun = True
            yield
    finally:
        lock.file.release()


class SqliteLock:
    """The write lock of one run, with its transactions and its foreign keys.

    `violations` counts the broken foreign keys that the database had before the run; it
    is None as long as nothing has to be compared with it. `has_begun` says that
    revisions may have run. `application_begins` says that an event of the application
    has sent a BEGIN of its own.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.connection = run.connection
        query = "SELECT file FROM pragma_database_list WHERE name = 'main'"
        self.database: str = driver_value(run.connection, query) or ""
        self.file = LockFile(self.database, run.migrations.version_table)
        self.violations: Counter[Violation] | None = None
        self.has_begun = False
        self.application_begins = False
        self.block_before = run.migrations.autocommit_block

    @contextmanager
    def in_callers_transaction(self) -> Iterator[None]:
        """Hold the lock in the transaction that the caller has begun.

        Foreign keys cannot be switched off inside a transaction. So the run is refused
        if they are on, before anything changes.
        """
        if driver_value(self.connection, "PRAGMA foreign_keys"):
            raise CommandError(
                "Foreign keys are on and cannot be switched off in a transaction that "
                "the caller has begun, so changing a table could delete the rows that "
                "refer to it: pass an Engine, a Connection without a transaction, or "
                "one with PRAGMA foreign_keys = OFF."
            )
        self.wait()
        if self.autocommits():
            self.file.take()
            self.connection.exec_driver_sql("COMMIT")
        yield
        self.check_foreign_keys()

    @contextmanager
    def in_own_transactions(self) -> Iterator[None]:
        """Hold the lock in transactions that are begun and committed here.

        The listeners are on this connection alone: what others do with the engine stays
        as it is.
        """
        connection = self.connection
        connection.rollback()
        with (
            no_implicit_transactions(self.run),
            foreign_keys_off(self.run),
            listening(connection, BEFORE_STATEMENT, self.leave_out_begin, retval=True),
            listening(connection, "commit", self.check_foreign_keys),
            locking.at_each_start(connection, self.begin),
            locking.ended_transaction(self.run),
        ):
            locking.scalar(connection, "SELECT 1")  # begins the first transaction
            self.prepare_autocommit_block()
            yield

    def prepare_autocommit_block(self) -> None:
        """Prepare for several transactions; between two of them, the lock file is held.

        The file is taken now if it is known that there will be several, and otherwise
        in autocommit_block(). At AUTOCOMMIT, that block has nothing to do.
        """
        migrations = self.run.migrations
        if self.autocommits():
            self.wait()
            self.file.take()
            self.connection.exec_driver_sql("COMMIT")
            migrations.autocommit_block = nullcontext  # type: ignore[method-assign, assignment]
            return
        migrations.autocommit_block = self.autocommit_block  # type: ignore[method-assign]
        if migrations.opts["transaction_per_migration"]:
            self.file.take()

    @contextmanager
    def autocommit_block(self) -> Iterator[None]:
        """Do what the block before does, with the lock file held; then begin again."""
        self.file.take()
        with self.block_before():
            yield
        locking.scalar(self.connection, "SELECT 1")  # begins the next transaction

    def leave_out_begin(
        self, _c: Connection, _u: Any, statement: str, parameters: Any, *_more: Any
    ) -> tuple[str, Any]:
        """Replace the BEGIN of an application's begin event by one without effect.

        Such an event is SQLAlchemy's own recipe for SQLite. Its BEGIN would not wait
        for lock_timeout; ours follows with the first statement.
        """
        in_event = self.connection.get_transaction() is None
        if in_event and statement.upper().startswith("BEGIN"):
            self.application_begins = True
            return "SELECT 1", ()
        return statement, parameters

    def autocommits(self) -> bool:
        """Tell whether the connection is at isolation level AUTOCOMMIT.

        It is called when SQLAlchemy has begun a transaction. The level may have been
        set for the connection, for the engine, or on the driver. The driver looks the
        same if an event of the application sends BEGIN: `application_begins` tells.
        """
        level = self.connection.get_execution_options().get("isolation_level")
        if level is not None or self.application_begins:
            return bool(level == "AUTOCOMMIT")
        driver = driver_of(self.connection)
        # With autocommit=True (Python 3.12), commit() does nothing.
        is_set = getattr(driver, "autocommit", None) is True
        return is_set or (driver.isolation_level is None and not driver.in_transaction)

    def begin(self) -> None:
        """Begin a transaction in the database, before its first statement is sent.

        At AUTOCOMMIT no transaction is begun, and the lock file keeps other runs out.
        """
        if not self.autocommits():
            self.wait()

    def wait(self) -> None:
        """Wait for the write lock, with which a transaction begins.

        Raises LockNotAvailable if that takes too long.
        """
        name = f"the write lock of {self.database or 'the database'}"
        locking.wait(self.run, self.take, lambda: name, has_begun=self.has_begun)

    def take(self) -> bool:
        """Try to take the write lock, and return whether this run has it.

        The lock may be free while another run is between two of its transactions. The
        lock file tells that, and the write lock is given back.
        """
        had_begun = driver_of(self.connection).in_transaction
        if not take_write_lock(self.connection):
            return False
        if not self.file.is_taken_by_another():
            return True
        if not had_begun:
            driver_value(self.connection, "ROLLBACK")
        return False

    def count_before_revisions(self) -> None:
        """Count the broken foreign keys before the first revision runs.

        If there is none to run, no row is read. Alembic begins each revision by
        begin_transaction(_per_migration=True), which is replaced on the instance for
        that. If it passed this another way, the tests of foreign keys would fail. What
        gives Alembic no revisions, such as a function of a program, is counted at once.
        """
        migrations = self.run.migrations
        opts, begin_transaction = migrations.opts, migrations.begin_transaction
        if "destination_rev" not in opts or opts.get("dont_mutate"):
            self.violations = foreign_key_violations(self.connection)
            return

        def count_and_begin(**for_a_revision: bool) -> Any:
            if for_a_revision and self.violations is None:
                self.violations = foreign_key_violations(self.connection)
            return begin_transaction(**for_a_revision)

        migrations.begin_transaction = count_and_begin  # type: ignore[method-assign, assignment]

    def check_foreign_keys(self, *_: Any) -> None:
        """Raise CommandError if a row has lost its parent since the run began.

        It is called before each commit. Rows that had no parent before the run are the
        owner's business, and do not stop a migration.
        """
        if self.violations is None:
            return
        found = foreign_key_violations(self.connection)
        # A row that has only another table, column or type now is not a new one.
        before, after = (
            Counter(each.values for each in some.elements())
            for some in (self.violations, found)
        )
        grown = after - before
        new = [each.sentence for each in found - self.violations if grown[each.values]]
        if new:
            more = "; …" if len(new) > 5 else ""
            committed = "already" if self.autocommits() else "not"
            raise CommandError(
                f"The migration breaks foreign keys ({'; '.join(new[:5])}{more}) and "
                f"is {committed} committed: fix the revision or the rows."
            )


class LockFile:
    """A file beside the database that one run holds between two of its transactions.

    It is an empty database of SQLite, so that its lock is SQLite's own: it works on
    each system, and ends with the process even if that is killed. A database in memory
    is seen by one process alone, and has no such file.
    """

    def __init__(self, database: str, version_table: str) -> None:
        self.path = Path(f"{database}-{version_table}.lock") if database else None
        self.held: sqlite3.Connection | None = None

    def take(self) -> None:
        """Take the file; it is free, since this run has the write lock."""
        if self.held is None and self.path is not None:
            self.held = locked_file(self.path)

    def is_taken_by_another(self) -> bool:
        """Tell whether a living process holds the file; a killed one unlocks it."""
        if self.held is not None or self.path is None or not self.path.exists():
            return False
        probe = locked_file(self.path)
        if probe is not None:
            probe.close()
        return probe is None

    def release(self) -> None:
        """Remove the file, and unlock it after that, if this run holds it.

        In the other order, another run could take the file before it is removed.
        """
        if self.held is not None and self.path is not None:
            with locking.errors_logged("remove the lock file"):
                self.path.unlink(missing_ok=True)
            self.held.close()


def locked_file(path: Path) -> sqlite3.Connection | None:
    """Lock a file; return the connection that holds the lock, None if another has it.

    The lock ends when that connection is closed.
    """
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        # Without this, a journal would stand beside the file.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" not in str(error):
            raise
        return None
    return connection


def driver_of(connection: Connection) -> Any:
    """Return the connection of sqlite3 or of aiosqlite itself.

    SQLAlchemy's adapter of aiosqlite has no `in_transaction`.
    """
    return connection.connection.driver_connection


def driver_value(connection: Connection, statement: str) -> Any:
    """Run a statement on the driver itself; return the first value of its first row.

    SQLAlchemy and an application's events do not see it, and begin no transaction for
    it: in one, PRAGMA foreign_keys would have no effect.
    """
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
        return row and row[0]


def take_write_lock(connection: Connection) -> bool:
    """Try to take the write lock, and return whether this connection has it.

    The driver's busy timeout is switched off meanwhile: it would block the event loop,
    and wait for another time than lock_timeout.
    """
    statement = "BEGIN IMMEDIATE"
    if driver_of(connection).in_transaction:
        # The caller's transaction may have no write lock yet. To write the number that
        # is there already takes the lock, and changes nothing.
        version = driver_value(connection, "PRAGMA user_version")
        statement = f"PRAGMA user_version = {version}"
    busy_timeout = driver_value(connection, "PRAGMA busy_timeout")
    try:
        driver_value(connection, "PRAGMA busy_timeout = 0")
        connection.exec_driver_sql(statement)
    except OperationalError as error:
        if "locked" not in str(error.orig):
            raise
        return False
    finally:
        try:
            driver_value(connection, f"PRAGMA busy_timeout = {busy_timeout}")
        except BaseException:
            connection.invalidate()
            raise
    return True


@contextmanager
def no_implicit_transactions(run: Run) -> Iterator[None]:
    """Stop a driver from beginning transactions by itself, and let it do so again.

    With autocommit=False (Python 3.12) it begins them at once, without the write lock,
    and foreign keys could never be switched off.
    """
    driver = driver_of(run.connection)
    if getattr(driver, "autocommit", None) is not False:
        yield
        return
    set_back = partial(setattr, driver, "autocommit", False)
    with locking.put_back(run, set_back, "put the driver's autocommit mode back"):
        driver.autocommit = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL
        run.connection.connection.rollback()
        yield


@contextmanager
def foreign_keys_off(run: Run) -> Iterator[None]:
    """Switch foreign keys off, and on again at the end, if they were on.

    If they cannot be switched off, nothing runs. If they cannot be switched on again,
    the session is ended: an application must not go on without its foreign keys.
    """
    if not driver_value(run.connection, "PRAGMA foreign_keys"):
        yield
        return
    switch_on = partial(set_foreign_keys, run.connection, on=True)
    with locking.put_back(run, switch_on, "switch foreign keys on again"):
        set_foreign_keys(run.connection, on=False)
        yield


def set_foreign_keys(connection: Connection, *, on: bool) -> None:
    """Switch foreign keys on or off, and read them back.

    Raises CommandError if they are not as wanted: inside a transaction, SQLite ignores
    the PRAGMA without an error (SQLite documentation, "PRAGMA foreign_keys").
    """
    state = "ON" if on else "OFF"
    driver_value(connection, f"PRAGMA foreign_keys = {state}")
    if bool(driver_value(connection, "PRAGMA foreign_keys")) != on:
        raise CommandError(
            f"Foreign keys could not be switched {state.lower()} on this connection: "
            "migrate on a connection without a transaction."
        )


@dataclass(frozen=True)
class Violation:
    """A row without its parent: a sentence that names it, and the values of its key."""

    sentence: str
    values: str = ""


def foreign_key_violations(connection: Connection) -> Counter[Violation]:
    """Count the rows without the parent that they refer to, in all attached databases.

    Each table with a foreign key is asked by itself: SQLite raises an error for one
    whose foreign key names a column that does not exist. That is counted as well.
    """
    found: Counter[Violation] = Counter()
    quote = connection.dialect.identifier_preparer.quote_identifier
    databases = connection.exec_driver_sql("SELECT name FROM pragma_database_list")
    for name in databases.scalars().all():
        database = quote(name)
        query = (
            f"SELECT DISTINCT t.name FROM {database}.sqlite_master t, "
            "pragma_foreign_key_list(t.name, ?)"
        )
        for table in connection.exec_driver_sql(query, (name,)).scalars().all():
            check = f"PRAGMA {database}.foreign_key_check({quote(table)})"
            try:
                rows = connection.exec_driver_sql(check).all()
            except OperationalError as error:
                found[Violation(f"{table}: {error.orig}")] += 1
            else:
                found.update(orphan(connection, database, row) for row in rows)
    return found


def orphan(connection: Connection, database: str, row: Any) -> Violation:
    """Return a row without its parent, by a row of PRAGMA foreign_key_check.

    It has the row's values, since the copy of a table may give it another rowid. A
    table WITHOUT ROWID has no number to find the row by.
    """
    table, rowid, parent, key = row
    quote = connection.dialect.identifier_preparer.quote_identifier
    keys = connection.exec_driver_sql(
        f"PRAGMA {database}.foreign_key_list({quote(table)})"
    )
    columns = ", ".join(quote(each[3]) for each in keys if each[0] == key)
    values: list[Any] = []
    if rowid is not None:
        query = (
            f"SELECT {columns} FROM {database}.{quote(table)} WHERE _rowid_ = {rowid}"
        )
        values = list(connection.exec_driver_sql(query).one())
    return Violation(
        f"{quote(table)} ({columns}) = ({', '.join(map(repr, values))}) has no row in "
        f"{quote(parent)}",
        str(list(map(str, values))),
    )
