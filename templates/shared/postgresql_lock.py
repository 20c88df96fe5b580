"""A run on PostgreSQL: an advisory lock, and settings that end with the run.

The session holds the lock from the beginning of the run to its end, whatever a revision
commits, and the server frees it if the process is killed (PostgreSQL manual, 13.3.5,
"Advisory Locks").

A pooler may give each transaction of the run another session. A revision would then run
unprotected, and in the schema of another tenant. So each transaction takes the same
lock again, which succeeds only in the session that has it. If a pooler is found, the
run has one transaction and no more. There, and in a transaction of the caller, lock and
settings belong to the transaction and end with it.

An owner without PostgreSQL can delete this file.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NoReturn

from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from . import migration_lock as locking
from .migration_lock import Run

# The next tenant on a connection of ours must not find what a revision has set on the
# session. DISCARD ALL (PostgreSQL manual) would not do: it cannot be sent in a
# transaction, and it drops the statements that a driver has prepared.
NEW_SESSION = (
    "DO 'BEGIN RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; DISCARD TEMP; END'"
)

# The search path of such a session between two tenants. No schema can have this name,
# so that what follows a rollback in a revision cannot reach the tenant before.
NOWHERE = "pg_no_tenant"
IS_NOWHERE = f"current_setting('search_path') = '{NOWHERE}'"
LEAVE = f"set_config('search_path', '{NOWHERE}', false)"

# The key in Connection.info that keeps the answer of is_behind_pooler().
BEHIND_POOLER = "alembic_behind_pooler"


@contextmanager
def hold(run: Run) -> Iterator[None]:
    """Hold the lock and make the settings of the server that the run needs.

    A run that only reads takes no lock, and makes settings only if it needs some.
    Raises LockNotAvailable if another process has the lock for too long.
    """
    lock = PostgresqlLock(run)
    with (
        locking.put_back(run, lock.close, "release the lock"),
        locking.ended_transaction(run),
    ):
        if run.reads_only and not lock.settings:
            yield
            return
        lock.open()
        if not lock.is_tried_again:
            run.at_end.append(lock.release)
        with lock.checked():
            yield


class PostgresqlLock:
    """The lock of one run, and the parameters of the server that the run sets.

    `settings` has these parameters and their values, and `before` the values that they
    had before; it is None until the lock is taken. `is_in_transaction` says that lock
    and settings belong to a transaction, and not to the session. `is_new` says that the
    session is ours and serves one tenant after the other: it is reset before each, and
    not put back. `is_tried_again` says that a transaction may be rolled back and another
    one begun, with the lock and the settings of the first. `is_held` says that the
    session has the lock. `key` is the number of the lock, and `table` names the version
    table for people.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.connection = run.connection
        self.settings = wanted_settings(run)
        self.is_in_transaction = False
        is_ours = run.tenant is not None and run.settings.connection is None
        self.is_new = is_ours and not run.reads_only
        self.is_tried_again = "lock_timeout" in self.settings
        self.is_held = False
        self.before: dict[str, str] | None = None
        self.key = 0
        self.table = ""

    def open(self) -> None:
        """Wait for the lock, and make the settings.

        They are those of the session, unless a pooler may change the session, or the
        caller has begun the transaction. Raises LockNotAvailable, and CommandError
        behind a pooler for what needs more than one transaction.
        """
        run, connection = self.run, self.connection
        schema = run.migrations.version_table_schema
        schema = schema or locking.scalar(connection, "SELECT current_schema()")
        self.table = f"{schema}.{run.migrations.version_table}"
        number = locking.lock_key(schema, run.migrations.version_table)[:8]
        self.key = int.from_bytes(number, "big", signed=True)
        # At AUTOCOMMIT each statement is a transaction, and a lock that belongs to it
        # would be released at once.
        autocommits = locking.commits_each_statement(connection)
        # A pooler keeps one session for a transaction, so a caller's transaction has
        # the same session to its end.
        self.is_in_transaction = run.has_callers_transaction and not autocommits
        if not self.is_in_transaction and is_behind_pooler(connection):
            self.is_in_transaction = True
            self.refuse_several_transactions(autocommits)
        if not run.has_callers_transaction:
            connection.rollback()
        if self.is_new and not (self.is_in_transaction or NOWHERE in connection.info):
            connection.exec_driver_sql(f"SET search_path TO {NOWHERE}")
            connection.commit()
            connection.info[NOWHERE] = True
        locking.wait(run, self.take, self.describe)

    def refuse_several_transactions(self, autocommits: bool) -> None:
        """Raise CommandError behind a pooler if the run has more than one transaction.

        Another run could come between them, since no lock can be held there. A block in
        a revision is refused when the revision begins it.
        """
        migrations = self.run.migrations
        if autocommits:
            refuse_behind_pooler("a connection at isolation level AUTOCOMMIT")
        if migrations.opts["transaction_per_migration"] and not self.run.reads_only:
            refuse_behind_pooler("option transaction_per_migration")
        refuse = partial(refuse_behind_pooler, "autocommit_block()")
        migrations.autocommit_block = refuse  # type: ignore[method-assign]

    def take(self) -> bool:
        """Try to take the lock and make the settings; return whether that worked.

        It is one statement, so that a fleet sends one and not three for each tenant,
        and the revisions may follow in the same transaction. After a failure no
        transaction stays open: while this run waits, its snapshot would stop the other
        one (see migration_lock.wait).
        """
        parameters: dict[str, Any] = dict(self.settings)
        if not self.run.reads_only:
            parameters["lock_key"] = self.key
        try:
            if self.is_new:
                self.connection.exec_driver_sql(NEW_SESSION)
            row = self.connection.execute(text(self.statement()), parameters).one()
        except BaseException:
            if not self.is_in_transaction:  # the session may have the lock
                locking.end_session(self.run)
            raise
        taken, may_go_on = bool(row[0]), bool(row[1])
        if taken:
            self.before = dict(zip(self.settings, row[2:], strict=False))
            self.is_held = not (self.run.reads_only or self.is_in_transaction)
        goes_on = taken and (self.is_in_transaction or (self.is_held and may_go_on))
        if not (self.run.has_callers_transaction or goes_on):
            end = self.connection.commit if taken else self.connection.rollback
            end()
        return taken

    def statement(self) -> str:
        """Return the statement that takes the lock and then makes the settings.

        Its row has whether the lock was taken, whether revisions may follow in the same
        transaction, and the values of the settings before. They may not if its snapshot
        is older than the lock, if it began with what the session's last user has set,
        or if a rollback would undo the settings, unless release() finds that. The
        functions are in the PostgreSQL manual under "System Administration Functions".
        The key is a parameter, so that SQLAlchemy compiles the statement once for all
        tenants.
        """
        name = "pg_try_advisory_lock"
        if self.is_in_transaction:
            name = "pg_try_advisory_xact_lock"
        lock = f"{name}(CAST(:lock_key AS bigint))"
        inner = ["true AS taken" if self.run.reads_only else f"{lock} AS taken"]
        may_go_on = (
            "current_setting('transaction_isolation') = 'read committed' "
            "AND current_setting('transaction_read_only') = 'off'"
        )
        if self.is_tried_again or (self.settings and not self.is_new):
            may_go_on = "false"
        outer = ["taken", may_go_on, *self.settings]
        for each in self.settings:
            inner.append(f"current_setting('{each}') AS {each}")
            outer.append(f"CASE WHEN taken THEN {self.set_config(each)} END")
        # OFFSET 0 keeps the planner from merging the two SELECTs: the inner one has to
        # read each setting before the outer one changes it.
        return (
            f"SELECT {', '.join(outer)} "
            f"FROM (SELECT {', '.join(inner)} OFFSET 0) AS session"
        )

    def set_config(self, name: str) -> str:
        """Return the call that sets a parameter, in the transaction or the session."""
        is_local = "true" if self.is_in_transaction else "false"
        return f"set_config('{name}', :{name}, {is_local})"

    def checked(self) -> AbstractContextManager[None]:
        """Make sure in the block that the run holds the lock whenever it works."""
        connection = self.connection
        if self.is_in_transaction:
            before = locking.BEFORE_STATEMENT
            return locking.listening(connection, before, self.require_transaction)
        return locking.at_each_start(connection, self.check)

    def check(self) -> None:
        """Raise CommandError if a later transaction of the run is in another session.

        That one cannot take the lock, which belongs to the session that has it. What a
        rollback in a revision has undone is set again.
        """
        if self.run.reads_only:
            return
        question = f"SELECT pg_try_advisory_xact_lock({self.key})"
        if self.is_new and not self.is_tried_again:
            again = self.set_config("search_path")
            question += f", CASE WHEN {IS_NOWHERE} THEN {again} END"
        if not self.connection.execute(text(question), self.settings).scalar():
            locking.refuse_other_session()

    def require_transaction(self, *_: Any) -> None:
        """Raise CommandError if a revision has ended the transaction and the lock.

        The driver is asked, since SQLAlchemy does not see that op.execute("COMMIT")
        ends a transaction. What follows would run without the lock.
        """
        if not is_in_transaction(self.connection):
            raise CommandError(
                "A revision has ended the transaction that it runs in, such as by "
                "COMMIT, and the run with it: pass a Connection without a transaction, "
                "and migrate on a direct connection if a pooler such as PgBouncer "
                "stands before the server."
            )

    def release(self) -> None:
        """Let the lock end with the last transaction of the run.

        The transaction takes it over from the session until it is committed. Thus a
        fleet needs no transaction of its own for that. A lock that was not held any
        more is logged. Raises CommandError if a revision has undone the settings, by a
        rollback that was not seen, such as one that the driver was told.
        """
        if self.is_held and self.connection.in_transaction():
            locks = f"pg_try_advisory_xact_lock({self.key})"
            columns = [f"{locks} AND pg_advisory_unlock({self.key})"]
            if self.is_new:
                columns += [IS_NOWHERE, LEAVE]
            query = f"SELECT {', '.join(columns)}"
            row = self.connection.exec_driver_sql(query).one()
            self.is_held = False
            if self.is_new and row[1]:
                locking.refuse_rolled_back()
            if not row[0]:
                locking.warn_of_lost_lock()

    def close(self) -> None:
        """Release the lock and put the settings back.

        What belongs to a transaction of ours has ended with it, and needs nothing here.
        A lock that was not held any more is logged.
        """
        run = self.run
        ends_by_itself = self.is_in_transaction and not run.has_callers_transaction
        if self.before is None or ends_by_itself:
            return
        calls = [] if self.is_new else [self.set_config(each) for each in self.before]
        releases = self.is_held
        if releases:
            calls += [LEAVE] if self.is_new else []
            calls.append("pg_advisory_unlock(CAST(:lock_key AS bigint))")
        if not calls:
            return
        parameters = {**self.before, "lock_key": self.key}
        try:
            statement = text(f"SELECT {', '.join(calls)}")
            row = self.connection.execute(statement, parameters).one()
        except DBAPIError as error:
            # in_failed_sql_transaction: the caller's rollback puts the settings back.
            # psycopg2 calls it pgcode.
            state = getattr(error.orig, "sqlstate", getattr(error.orig, "pgcode", None))
            if self.is_in_transaction and state == "25P02":
                return
            raise
        if releases and not row[-1]:
            locking.warn_of_lost_lock()

    def describe(self) -> str:
        """Return text that says which lock it is, and which process has it.

        pg_locks shows the locks of all databases, and splits the key in two columns
        (PostgreSQL manual, "pg_locks"). A wrong process must not be named: an operator
        may end it.
        """
        pid = locking.scalar(
            self.connection,
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted "
            "AND objsubid = 1 AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database()) "
            f"AND (classid::bigint << 32 | objid::bigint) = {self.key}",
        )
        if not self.run.has_callers_transaction:
            self.connection.rollback()
        held_by = f", held by server process {pid}" if pid else ""
        return f"the advisory lock {self.key} of {self.table}{held_by}"


def wanted_settings(run: Run) -> dict[str, str]:
    """Return the parameters of the server that the run needs, with their values.

    The search path has the schema of the tenant alone, so that no table of another
    schema is found by mistake ("Rudimental Schema-Level Multi Tenancy for PostgreSQL
    Databases" in Alembic's cookbook).
    """
    wanted: dict[str, str] = {}
    if run.tenant is not None:
        quoted = run.tenant.replace('"', '""')
        wanted["search_path"] = f'"{quoted}"'
    timeout = run.settings.ddl_lock_timeout
    if timeout is not None:
        # In milliseconds. The server takes 0 for no timeout, and would wait for ever.
        wanted["lock_timeout"] = f"{max(1, round(timeout * 1000))}ms"
    return wanted


def is_in_transaction(connection: Connection) -> bool:
    """Tell whether the driver knows of an open transaction; True if it cannot say."""
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "is_in_transaction"):  # asyncpg
        return bool(driver.is_in_transaction())
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    return status != 0  # psycopg's IDLE


def is_behind_pooler(connection: Connection) -> bool:
    """Tell whether a pooler such as PgBouncer stands between the driver and the server.

    When it connects, the driver is told the id of a server process; a pooler makes one
    up. A pooler in session mode, or another proxy, looks the same as one that gives
    each transaction another session. If yours keeps one session for the connection,
    return False here. The answer is kept while the connection is open.
    """
    if BEHIND_POOLER not in connection.info:
        driver: Any = connection.connection.driver_connection
        if hasattr(driver, "get_server_pid"):  # asyncpg
            told = driver.get_server_pid()
        else:
            told = getattr(getattr(driver, "info", None), "backend_pid", None)
        answers = locking.scalar(connection, "SELECT pg_backend_pid()")
        connection.info[BEHIND_POOLER] = told is not None and told != answers
    return bool(connection.info[BEHIND_POOLER])


def refuse_behind_pooler(what: str) -> NoReturn:
    """Raise CommandError for what needs one session for several transactions.

    `what` begins the second half of the sentence.
    """
    raise CommandError(
        f"A pooler such as PgBouncer stands before the server, and {what} needs one "
        "session for several transactions: migrate on a direct connection."
    )
