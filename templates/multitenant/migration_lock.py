"""Who may migrate now: one process at a time, in one transaction that undoes what fails.

PostgreSQL, MySQL and MariaDB have locks that a session takes and that end with it. SQLite has its
write lock, taken by BEGIN IMMEDIATE; with it come the transactions that its Python driver does not
begin by itself, and the foreign keys, which are off while tables are copied.
"""

import hashlib
import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, OperationalError

log = logging.getLogger("alembic.env")


@contextmanager
def migration_lock(
    connection: Connection, *, timeout: float, ddl_timeout: float | None
) -> Iterator[None]:
    """Hold the lock while the command runs on `connection`; commands that only read take none.

    Waits up to `timeout` seconds for another process, then raises CommandError. A DDL statement
    waits up to `ddl_timeout` seconds for a table, or as long as the server says where it is None.
    Where the caller's transaction has begun, it is left to the caller. Else the connection is left
    without one, and with the settings that it had.
    """
    migrations = context.get_context()
    callers = connection.in_transaction()
    if callers:
        migrations.autocommit_block = refuse_autocommit_block  # type: ignore[method-assign]
    with ExitStack() as stack:
        if only_reads(migrations):
            # Without this, Alembic creates its version table in an empty database.
            migrations.opts["dont_mutate"] = True
        else:
            lock = LOCKS.get(connection.dialect.name)
            if lock is not None:
                stack.enter_context(lock(connection, migrations, callers, timeout))
            if ddl_timeout is not None:
                stack.enter_context(ddl_lock_timeout(connection, callers, ddl_timeout))
        if not callers:
            stack.enter_context(ended_transaction(connection))
            if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
                # Alembic's would leave the connection at the server's default level.
                migrations.autocommit_block = nullcontext  # type: ignore[assignment, method-assign]
        yield


def only_reads(migrations: MigrationContext) -> bool:
    """Tell whether the command is one of Alembic's that do not migrate: current, check, ….

    Those that migrate have a destination. What a command of another package does is not known,
    unless it says `dont_mutate` as `current` does.
    """
    opts = migrations.opts
    alembics = opts["fn"].__module__ == "alembic.command"
    return "destination_rev" not in opts and (alembics or bool(opts.get("dont_mutate")))


def refuse_autocommit_block() -> NoReturn:
    """Stand in for MigrationContext.autocommit_block, which asserts that it owns the transaction."""
    raise CommandError(
        "A revision uses autocommit_block(), which must commit, in a transaction that the caller "
        "has begun: pass an Engine, or a Connection without a transaction."
    )


@contextmanager
def ended_transaction(connection: Connection) -> Iterator[None]:
    """Leave no transaction open: a SELECT that Alembic sends between two of its own begins one."""
    try:
        yield
        connection.commit()
    except BaseException:
        with logged("roll back"):
            connection.rollback()
        raise


@contextmanager
def logged(action: str) -> Iterator[None]:
    """Log what fails while a run ends: raised, it would hide the error that ended the run."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the first error counts
        log.warning("Could not %s: %s", action, error)


class LockNotAvailable(CommandError):
    """Another process has the lock; `timeout` is the time in seconds that a run may wait for it."""

    def __init__(self, message: str, timeout: float) -> None:
        super().__init__(message)
        self.timeout = timeout


def wait(
    take: Callable[[], bool], what: Callable[[], str], timeout: float, *, begun: bool = False
) -> None:
    """Call `take` until it returns true, for `timeout` seconds; then raise LockNotAvailable.

    It polls: in PostgreSQL a statement that waits for a lock holds a snapshot, on which a
    CREATE INDEX CONCURRENTLY of the lock's holder would wait in turn. A series of commands that
    takes turns with other threads waits by itself, after each try, until its run has begun: from
    then on it could not start anew, since a part may be committed.
    """
    deadline = time.monotonic() + timeout
    delay = 0.02
    while not take():
        takes_turns = context.config.attributes.get("takes_turns") and not begun
        if takes_turns or time.monotonic() >= deadline:
            raise LockNotAvailable(
                f"Another process migrates this database: waited {timeout:g} seconds for {what()}; "
                "run the command again when it has finished, or raise lock_timeout.",
                timeout,
            )
        if delay == 0.02:
            log.info("Waiting up to %g seconds for %s", timeout, what())
        time.sleep(min(delay, max(0.0, deadline - time.monotonic())))
        delay = min(delay * 2, 0.5)


def scalar(connection: Connection, statement: str) -> Any:
    """Return the first value of the first row of a statement, or None."""
    return connection.exec_driver_sql(statement).scalar()


def digest(schema: str | None, migrations: MigrationContext) -> bytes:
    """Make the lock's key of the version table's schema and name, so that only runs on one wait."""
    return hashlib.sha256(f"alembic {schema}.{migrations.version_table}".encode()).digest()


@contextmanager
def postgresql_lock(
    connection: Connection, migrations: MigrationContext, callers: bool, timeout: float
) -> Iterator[None]:
    """Hold an advisory lock (PostgreSQL manual, 13.3.5): of the session, or of the caller's transaction.

    A session's lock survives each COMMIT of the run and ends with the process. A transaction's lock
    is kept until the caller commits what the run did.
    """
    schema = migrations.version_table_schema or scalar(connection, "SELECT current_schema()")
    key = int.from_bytes(digest(schema, migrations)[:8], "big", signed=True)

    # At AUTOCOMMIT the caller's transaction is none of the server's, and would hold no lock.
    transaction = callers and not getattr(connection.connection, "autocommit", False)

    def take() -> bool:
        if transaction:
            return bool(scalar(connection, f"SELECT pg_try_advisory_xact_lock({key})"))
        taken = bool(scalar(connection, f"SELECT pg_try_advisory_lock({key})"))
        if not callers:
            connection.commit()
        return taken

    def what() -> str:
        pid = scalar(
            connection,
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted "
            f"AND (classid::bigint << 32 | objid::bigint) = {key}",
        )
        if not callers:
            connection.commit()
        return (
            f"the advisory lock {key} of {schema}.{migrations.version_table}, "
            f"held by server process {pid}"
        )

    wait(take, what, timeout)
    try:
        yield
    finally:
        if not transaction:
            release(connection, f"SELECT pg_advisory_unlock({key})", commit=not callers)


@contextmanager
def mysql_lock(
    connection: Connection, migrations: MigrationContext, callers: bool, timeout: float
) -> Iterator[None]:
    """Hold a lock of GET_LOCK (MySQL manual, 14.14), which each COMMIT of DDL leaves alone.

    Such locks are the server's, so the name says which database it is for. It ends with the run,
    and a caller's transaction may go on: a version that is not committed yet is waited for as well.
    """
    schema = migrations.version_table_schema or scalar(connection, "SELECT DATABASE()")
    name = f"alembic-{digest(schema, migrations).hex()[:40]}"

    def take() -> bool:
        taken = scalar(connection, f"SELECT GET_LOCK('{name}', 0)")
        if taken is None:
            raise CommandError(f"The server could not take the lock {name}: see its error log.")
        if taken and not mysql_version_is_settled(connection, migrations):
            scalar(connection, f"SELECT RELEASE_LOCK('{name}')")
            taken = 0
        if not callers:
            connection.commit()
        return bool(taken)

    def what() -> str:
        thread = scalar(connection, f"SELECT IS_USED_LOCK('{name}')")
        if not callers:
            connection.commit()
        holder = f"connection {thread}" if thread else "a transaction that is not committed"
        return f"the lock {name} of {schema}.{migrations.version_table}, held by {holder}"

    wait(take, what, timeout)
    try:
        yield
    finally:
        release(connection, f"SELECT RELEASE_LOCK('{name}')", commit=not callers)


def mysql_version_is_settled(connection: Connection, migrations: MigrationContext) -> bool:
    """Tell whether no other transaction has changed the version and not yet committed it."""
    names = [migrations.version_table_schema, migrations.version_table]
    quote = connection.dialect.identifier_preparer.quote_identifier
    table = ".".join(quote(name) for name in names if name)
    try:
        connection.exec_driver_sql(f"SELECT version_num FROM {table} FOR UPDATE NOWAIT").all()
    except DBAPIError as error:
        code = getattr(error.orig, "errno", None) or (error.orig and error.orig.args[0])
        if code in {1205, 3572}:  # locked, in MariaDB's words and in MySQL's
            return False
        if code not in {1146, 1064}:  # no such table; MySQL before 8.0, which has no NOWAIT
            raise
    return True


def release(connection: Connection, unlock: str, *, commit: bool = True) -> None:
    """Give a lock back. Where that fails, the session must end, since a pool would keep it open."""
    if connection.invalidated:
        return  # the session has ended, and the lock with it
    with logged("release the migration lock"):
        try:
            released = scalar(connection, unlock)
            if commit:
                connection.commit()
        except Exception:
            connection.invalidate()
            raise
        if not released:
            log.warning(
                "The migration lock was not held to the end: the server or a pooler such as "
                "PgBouncer has changed the session; migrate on a direct connection."
            )


@contextmanager
def ddl_lock_timeout(connection: Connection, callers: bool, seconds: float) -> Iterator[None]:
    """Let a DDL statement wait `seconds` for a table lock, as other queries queue up behind it."""
    if connection.dialect.name == "postgresql":
        # 0 would turn the timeout off. A setting of the caller's transaction ends with it.
        value = f"{max(1, round(seconds * 1000))}ms"
        read = "SELECT current_setting('lock_timeout')"
        write = f"SELECT set_config('lock_timeout', '%s', {str(callers).lower()})"
    elif connection.dialect.name in {"mysql", "mariadb"}:
        value = str(math.ceil(seconds))
        read = "SELECT @@SESSION.lock_wait_timeout"
        write = "SET SESSION lock_wait_timeout = %s"
    else:
        yield
        return

    def set_to(value: str) -> None:
        connection.exec_driver_sql(write % value)
        if not callers:
            connection.commit()

    before = str(scalar(connection, read))
    set_to(value)
    try:
        yield
    finally:
        if not connection.invalidated:
            with logged("put the lock timeout of DDL back"):
                set_to(before)


@contextmanager
def sqlite_lock(
    connection: Connection, migrations: MigrationContext, callers: bool, timeout: float
) -> Iterator[None]:
    """Hold SQLite's write lock, in transactions that undo DDL, with foreign keys off and checked.

    The driver begins no transaction before DDL, so each one is begun here, on this connection
    alone: a second one that a revision opens need not wait for the first. At isolation level
    AUTOCOMMIT none is begun. Where the run has several, a lock file holds between them.
    """
    file = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
    lock_file = Path(f"{file}-{migrations.version_table}.lock") if file else None
    held: list[sqlite3.Connection] = []
    before: Counter[str] | None = None

    def take() -> bool:
        """Take the write lock, unless another run is between two of its transactions."""
        begins = not sqlite_driver(connection).in_transaction
        if not sqlite_write_lock(connection):
            return False
        if held or lock_file is None or not is_locked(lock_file):
            return True
        if begins:
            connection.exec_driver_sql("ROLLBACK")
        return False

    def what() -> str:
        return f"the write lock of {file or 'the database'}"

    def hold() -> None:
        """Take the lock file, with the write lock held: no other run is between transactions."""
        if lock_file is not None and not held:
            held.extend(take_lock_file(lock_file))

    begun = runs = False

    def begin(_: Connection) -> None:
        nonlocal begun
        begun = True

    def before_statement(_: Connection, _cursor: Any, statement: str, *_more: Any) -> None:
        """Begin a transaction in earnest, at its first statement: after the engine's own events."""
        nonlocal begun
        if begun and statement.upper() not in {"BEGIN", "BEGIN DEFERRED"}:
            begun = False
            autocommits = sqlite_autocommits(connection)
            if sqlite_driver(connection).in_transaction:
                # A plain BEGIN of the application's own begin event, or of the driver.
                connection.exec_driver_sql("COMMIT")
            if not autocommits:
                wait(take, what, timeout, begun=runs)

    def check(_: Connection) -> None:
        if before is not None:
            check_foreign_keys(connection, before)

    autocommit_block = migrations.autocommit_block

    @contextmanager
    def held_autocommit_block() -> Iterator[None]:
        hold()
        driver = sqlite_driver(connection)
        # With autocommit=False (Python 3.12) the isolation level has no effect.
        implicit = getattr(driver, "autocommit", None) is False
        with autocommit_block():
            if implicit:
                driver.autocommit = True
            try:
                yield
            finally:
                if implicit:
                    driver.autocommit = False
        scalar(connection, "SELECT 1")  # the statement with which the next transaction begins

    enforced = scalar(connection, "PRAGMA foreign_keys")
    if callers and enforced:
        raise CommandError(
            "Foreign keys are on and cannot be switched off in a transaction that the caller has "
            "begun, so changing a table could delete the rows that refer to it: pass an Engine, a "
            "Connection without a transaction, or one with PRAGMA foreign_keys = OFF."
        )
    with ExitStack() as stack:
        stack.callback(drop_lock_file, held, lock_file)
        if not callers:
            connection.rollback()
            if enforced:
                sqlite_setting(connection, "PRAGMA foreign_keys = OFF")
                stack.callback(sqlite_setting, connection, "PRAGMA foreign_keys = ON")
            listeners: dict[str, Callable[..., None]] = {
                "begin": begin,
                "before_cursor_execute": before_statement,
                "commit": check,
            }
            for name, listener in listeners.items():
                event.listen(connection, name, listener)
                stack.callback(event.remove, connection, name, listener)
            stack.enter_context(ended_transaction(connection))
            scalar(connection, "SELECT 1")
            migrations.autocommit_block = held_autocommit_block  # type: ignore[method-assign]
        if sqlite_autocommits(connection):
            wait(take, what, timeout)
            hold()
            connection.exec_driver_sql("COMMIT")
        elif callers:
            wait(take, what, timeout)
        elif migrations.opts["transaction_per_migration"]:
            hold()
        if runs_revisions(migrations):
            before = foreign_key_violations(connection)
        runs = True
        yield
        if callers:
            check(connection)


def sqlite_driver(connection: Connection) -> Any:
    """Return the sqlite3 connection, or aiosqlite's, whose adapter does not tell in_transaction."""
    return connection.connection.driver_connection


def sqlite_autocommits(connection: Connection) -> bool:
    """Tell whether a connection whose transaction has begun is at isolation level AUTOCOMMIT."""
    driver = sqlite_driver(connection)
    if getattr(driver, "autocommit", None) is True:  # Python 3.12: its commit() does nothing
        return True
    level = connection.get_execution_options().get("isolation_level")
    if level is not None:
        return bool(level == "AUTOCOMMIT")
    return driver.isolation_level is None and not driver.in_transaction


def sqlite_write_lock(connection: Connection) -> bool:
    """Try to take the write lock, without the wait of the driver's busy timeout."""
    statement = "BEGIN IMMEDIATE"
    if sqlite_driver(connection).in_transaction:
        # The caller's transaction may have read only; a write that changes nothing locks as well.
        statement = f"PRAGMA user_version = {scalar(connection, 'PRAGMA user_version')}"
    busy_timeout = scalar(connection, "PRAGMA busy_timeout")
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    try:
        connection.exec_driver_sql(statement)
    except OperationalError as error:
        if "locked" not in str(error.orig):
            raise
        return False
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {busy_timeout}")
    return True


def sqlite_setting(connection: Connection, pragma: str) -> None:
    """Run a PRAGMA that has no effect in a transaction, even where BEGIN comes with every begin."""
    with logged(f"run {pragma}"), connection.begin():
        begun = sqlite_driver(connection).in_transaction
        if begun:
            connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql(pragma)
        if begun:
            connection.exec_driver_sql("BEGIN")


def take_lock_file(file: Path) -> list[sqlite3.Connection]:
    """Lock a file until its connection closes or its process ends; empty where another has it."""
    connection = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = OFF")  # else a journal stands beside the file
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" not in str(error):
            raise
        return []
    return [connection]


def is_locked(file: Path) -> bool:
    """Tell whether a living process holds the lock file; a killed one leaves it unlocked."""
    if not file.exists():
        return False
    probe = take_lock_file(file)
    drop_lock_file(probe, None)
    return not probe


def drop_lock_file(held: list[sqlite3.Connection], file: Path | None) -> None:
    """Remove the lock file, if this run holds it, and unlock it after: it is of no use by then."""
    for connection in held:
        with logged("remove the lock file"):
            if file is not None:
                file.unlink(missing_ok=True)
        connection.close()


def runs_revisions(migrations: MigrationContext) -> bool:
    """Tell whether the command has revisions to run, since a look at all rows would be for nothing."""
    opts = migrations.opts
    if "destination_rev" not in opts or opts.get("dont_mutate"):
        return True  # its function does the work, and is called once
    return bool(list(opts["fn"](migrations.get_current_heads(), migrations)))


def foreign_key_violations(connection: Connection) -> Counter[str]:
    """Count the rows without the parent that they refer to, each told by its values.

    Its rowid would not do: the copy of a table may give it another.
    """
    quote = connection.dialect.identifier_preparer.quote_identifier
    found: Counter[str] = Counter()
    try:
        rows = list(connection.exec_driver_sql("PRAGMA foreign_key_check"))
    except OperationalError:  # a key refers to columns that are none: the tables, one by one
        rows = []
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")
        for table in tables.scalars().all():
            try:
                rows += connection.exec_driver_sql(f"PRAGMA foreign_key_check({quote(table)})")
            except OperationalError as error:
                found[f"{table}: {error.orig}"] += 1
    for table, rowid, parent, number in rows:
        keys = connection.exec_driver_sql(f"PRAGMA foreign_key_list({quote(table)})")
        columns = ", ".join(quote(key[3]) for key in keys if key[0] == number)
        values = ""
        if rowid is not None:  # a table WITHOUT ROWID has none
            info = connection.exec_driver_sql(f"PRAGMA table_info({quote(table)})")
            names = {column[1].lower() for column in info}
            alias = next(each for each in ("rowid", "_rowid_", "oid") if each not in names)
            row = connection.exec_driver_sql(
                f"SELECT {columns} FROM {quote(table)} WHERE {alias} = {rowid}"
            ).one()
            values = ", ".join(map(repr, row))
        found[f"{quote(table)} ({columns}) = ({values}) has no row in {quote(parent)}"] += 1
    return found


def check_foreign_keys(connection: Connection, before: Counter[str]) -> None:
    """Raise CommandError where a row has lost its parent since `before`."""
    new = foreign_key_violations(connection) - before
    if new:
        raise CommandError(
            f"The migration breaks foreign keys ({'; '.join(list(new)[:5])}"
            f"{'; …' if len(new) > 5 else ''}) and is not committed: mend the revision or the rows."
        )


LOCKS = {
    "postgresql": postgresql_lock,
    "mysql": mysql_lock,
    "mariadb": mysql_lock,
    "sqlite": sqlite_lock,
}
