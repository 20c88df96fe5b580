"""A run on MySQL or MariaDB: a lock of GET_LOCK, and the version that is committed.

A commit does not release such a lock (MySQL manual, 14.14, "Locking Functions"), and
here each DDL statement commits (15.3.3, "Statements That Cause an Implicit Commit").
All databases of a server share the names of these locks, so the name of the lock is
made of the name of the database.

The lock ends with the run. If the caller has begun the transaction, the version that
the run has written is committed only later, by the caller. So a run also waits until no
other transaction has an uncommitted version. Without this, the transactions of two
callers would both run the same revision.

An owner without MySQL and MariaDB can delete this file.
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from . import migration_lock as locking
from .migration_lock import Run

# The key in Connection.info that keeps the transaction of the caller in which a run has
# written the version.
WROTE_VERSION = "alembic_version_written_in"

# The key in Connection.info that keeps a second Connection; see other_connection().
SAME_CONNECTION = "alembic_same_connection"

# Error numbers of the servers: a row is locked (MariaDB, MySQL); the table does not
# exist, or the server does not know NOWAIT (MySQL before 8.0).
ROW_IS_LOCKED = {1205, 3572}
NOTHING_TO_LOCK = {1146, 1064}


@contextmanager
def hold(run: Run) -> Iterator[None]:
    """Hold the lock while the command runs, with the timeout for DDL statements.

    A run that only reads takes no lock. Raises LockNotAvailable if another process has
    the lock for too long, and CommandError if the connection is in no database.
    """
    if run.connection.dialect.default_schema_name is None:
        raise CommandError(
            "The connection is in no database: name one at the end of the URL, as in "
            "mysql+pymysql://user@host/name."
        )
    if run.has_callers_transaction:
        read_committed_version(run)
    if run.reads_only:
        with locking.ended_transaction(run):
            yield
        return
    lock = MysqlLock(run)
    with (
        ddl_lock_timeout(run),
        locking.put_back(run, lock.close, "release the lock"),
        locking.ended_transaction(run),
    ):
        lock.open()
        with (
            locking.at_each_start(run.connection, lock.check),
            failed_revision_named(),
        ):
            yield


class MysqlLock:
    """The lock of one run on a database, which these servers also call a schema.

    `is_taken` says that the lock may be held, and has to be released. `name` is that of
    the lock; it has at most 64 characters.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.connection = run.connection
        self.is_taken = False
        self.schema = ""
        self.name = ""

    def open(self) -> None:
        """Wait for the lock; raise LockNotAvailable if that takes too long."""
        migrations = self.run.migrations
        self.schema = migrations.version_table_schema or database(self.connection)
        key = locking.lock_key(self.schema, migrations.version_table)
        self.name = f"alembic-{key.hex()[:40]}"
        locking.wait(self.run, self.take, self.describe)

    def take(self) -> bool:
        """Try to take the lock, and return whether the run has it.

        The run does not get it while another transaction has an uncommitted version.
        Raises CommandError if the server itself fails.
        """
        self.is_taken = True  # so that `close` releases it if the answer is lost
        taken = locking.scalar(self.connection, f"SELECT GET_LOCK('{self.name}', 0)")
        if taken is None:
            raise CommandError(
                f"The server could not take the lock {self.name}: see its error log."
            )
        self.is_taken = bool(taken)
        if taken and not self.version_is_committed():
            locking.scalar(self.connection, f"SELECT RELEASE_LOCK('{self.name}')")
            self.is_taken = False
        if not self.is_taken and not self.run.has_callers_transaction:
            self.connection.rollback()
        return self.is_taken

    def version_is_committed(self) -> bool:
        """Tell whether no other transaction has an uncommitted version.

        In a transaction of the caller, a second connection asks. The question locks
        rows, which would stay locked until the caller ends the transaction.
        """
        table = self.run.migrations.version_table
        if not self.run.has_callers_transaction or wrote_version(self.connection):
            return no_row_is_locked(self.connection, self.schema, table)
        with other_connection(self.connection) as other:
            return no_row_is_locked(other, self.schema, table)

    def check(self) -> None:
        """Raise CommandError if this session lacks the lock, or is in another database.

        It is asked in each transaction, before the first statement of a revision. A
        pooler may have changed the session, and a revision may have sent USE.
        """
        question = f"SELECT IS_USED_LOCK('{self.name}') = CONNECTION_ID(), DATABASE()"
        has_lock, current = self.connection.exec_driver_sql(question).one()
        if not has_lock:
            locking.refuse_other_session()
        tenant = self.run.tenant
        if tenant is not None and current != tenant:
            raise CommandError(
                f"This transaction runs in database {current!r}, and nothing of it is "
                f"committed: expected {tenant!r}; a revision has sent USE, or a pooler "
                "stands between."
            )

    def close(self) -> None:
        """Release the lock; log that it was not held any more, if that is so."""
        query = f"SELECT RELEASE_LOCK('{self.name}')"
        if self.is_taken and not locking.scalar(self.connection, query):
            locking.warn_of_lost_lock()

    def describe(self) -> str:
        """Return text that says which lock it is, and which connection has it."""
        thread = locking.scalar(self.connection, f"SELECT IS_USED_LOCK('{self.name}')")
        if not self.run.has_callers_transaction:
            self.connection.rollback()
        holder = "a transaction that is not committed"
        if thread:
            holder = f"connection {thread}"
        table = f"{self.schema}.{self.run.migrations.version_table}"
        return f"the lock {self.name} of {table}, held by {holder}"


def database(connection: Connection) -> str:
    """Return the name of the database that the session is in."""
    return str(locking.scalar(connection, "SELECT DATABASE()"))


@contextmanager
def ddl_lock_timeout(run: Run) -> Iterator[None]:
    """Let a DDL statement wait at most ddl_lock_timeout seconds for a table.

    While it waits, new queries on the table wait behind it, and the application stands
    still (MySQL manual, "Metadata Locking"). The session's own value is put back.
    """
    timeout = run.settings.ddl_lock_timeout
    if timeout is None:
        yield
        return
    connection, name = run.connection, "@@SESSION.lock_wait_timeout"
    with locking.ended_transaction(run):
        before = locking.scalar(connection, f"SELECT {name}")
    set_back = partial(connection.exec_driver_sql, f"SET {name} = {before}")
    with locking.put_back(run, set_back, "put lock_wait_timeout back"):
        with locking.ended_transaction(run):
            connection.exec_driver_sql(f"SET {name} = {math.ceil(timeout)}")
        yield


def read_committed_version(run: Run) -> None:
    """Let a run in a transaction of the caller read the version that is committed.

    At isolation level REPEATABLE READ, the default, a transaction sees the version as
    it was at its first SELECT (MySQL manual, "Consistent Nonlocking Reads"). Another
    run may have finished since, and its revisions would be run again. So a second
    connection reads the version. Once this transaction has written a version itself,
    its own view is the right one.

    It replaces MigrationContext.get_current_heads on the instance, which is public.
    """
    connection, migrations = run.connection, run.migrations
    read_heads = migrations.get_current_heads

    def get_current_heads() -> tuple[str, ...]:
        if not wrote_version(connection):
            schema = migrations.version_table_schema or database(connection)
            table = migrations.version_table
            opts = {"version_table": table, "version_table_schema": schema}
            with other_connection(connection) as other:
                if no_row_is_locked(other, schema, table):
                    committed = MigrationContext.configure(other, opts=opts)
                    return committed.get_current_heads()
        return read_heads()

    migrations.get_current_heads = get_current_heads  # type: ignore[method-assign]
    migrations.on_version_apply_callbacks += (note_version,)
    if migrations.purge:  # `stamp --purge` empties the table before any callback
        note_version(migrations)


def note_version(ctx: MigrationContext, **_: Any) -> None:
    """Note on the connection that its open transaction has written the version.

    The reference is weak, so that the note ends with the transaction.
    """
    assert ctx.connection is not None
    info = ctx.connection.info
    info[WROTE_VERSION] = weakref.ref(ctx.connection.get_transaction())


def wrote_version(connection: Connection) -> bool:
    """Tell whether the transaction that is open has written the version."""
    noted = connection.info.get(WROTE_VERSION, lambda: None)()
    return noted is not None and noted is connection.get_transaction()


@contextmanager
def other_connection(connection: Connection) -> Iterator[Connection]:
    """Give a new connection to the same database, made as the engine's pool makes one.

    A pool of its own is used, since that of the caller may have no connection left. The
    caller's engine may have a `creator` that returns one and the same driver connection
    to all; then `connection` itself is given.
    """
    if SAME_CONNECTION in connection.info:
        yield connection
        return
    engine = connection.engine
    pool = engine.pool.recreate()
    other = Engine(pool, engine.dialect, engine.url).connect()
    mine = connection.connection.dbapi_connection
    if other.connection.dbapi_connection is mine:
        connection.info[SAME_CONNECTION] = other  # closing it would close the caller's
        yield connection
        return
    try:
        with other:
            yield other
    finally:
        pool.dispose()


def no_row_is_locked(connection: Connection, schema: str, table: str) -> bool:
    """Tell whether no other transaction has locked a row of a table; lock all rows.

    NOWAIT makes the server answer at once (MySQL manual, "Locking Reads"). A table that
    does not exist has no locked row.
    """
    quote = connection.dialect.identifier_preparer.quote_identifier
    name = f"{quote(schema)}.{quote(table)}"
    query = f"SELECT version_num FROM {name} FOR UPDATE NOWAIT"
    try:
        connection.exec_driver_sql(query).all()
    except DBAPIError as error:
        arguments = getattr(error.orig, "args", None) or [None]
        code = getattr(error.orig, "errno", None) or arguments[0]
        if code in ROW_IS_LOCKED:
            return False
        if code not in NOTHING_TO_LOCK:
            raise
    return True


@contextmanager
def failed_revision_named() -> Iterator[None]:
    """Add to an error of the database which revision failed, and what to do.

    Each DDL statement commits, so that a failed revision may have left a half behind
    that no rollback removes.
    """
    try:
        yield
    except DBAPIError as error:
        for revision, line in locking.revisions_in(error)[:1]:
            error.add_detail(
                f"Revision {revision} failed in line {line}. MySQL and MariaDB commit "
                "at each DDL statement, so what stands before it may have been "
                "committed: undo that by hand, or complete the revision by hand and "
                "stamp it, before you run the command again."
            )
        raise
