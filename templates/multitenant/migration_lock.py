"""Who may migrate now: one process at a time, which leaves the connection as it was.

Two deployments that migrate at once would both run the same revision. So a run takes a
lock of the database: postgresql_lock.py, mysql_lock.py and sqlite_transactions.py know
which one. An owner can delete the files of databases that are not used. This file has
what the three share: who waits and for how long, and what is put back at the end of a
run, whether it succeeds or fails.

For another database: add a module with a context manager `hold(run)`, and name it in
LOCKS.
"""

import hashlib
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn, TypeVar

from alembic import op
from alembic.runtime.migration import MigrationContext
from alembic.script.revision import ResolutionError
from alembic.util import CommandError, to_tuple
from sqlalchemy import Connection, event, inspect
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from .optional_files import is_here, require_file
from .settings import Settings, command_of

log = logging.getLogger("alembic.env")

T = TypeVar("T")

# SQLAlchemy's event that comes before each statement.
BEFORE_STATEMENT = "before_cursor_execute"

# A statement that rolls back a transaction, and not to a savepoint in it. A comment may
# stand before it.
ROLLBACK = re.compile(
    r"(?is)(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*(?:ROLLBACK|ABORT)\b"
    r"(?!\s+(?:(?:WORK|TRANSACTION)\s+)?(?:TO|PREPARED)\b)"
)

# For each dialect of SQLAlchemy, the module whose function `hold` holds the lock.
LOCKS = {
    "postgresql": "postgresql_lock",
    "mysql": "mysql_lock",
    "mariadb": "mysql_lock",
    "sqlite": "sqlite_transactions",
}


class LockNotAvailable(CommandError):
    """Another process has had the lock for longer than this run may wait.

    A caller can tell it from other errors, and leave the work to the other process.
    """


class TurnLost(CommandError):
    """The command has given its turn to another command, and could not have it again.

    See turns.py. Alembic's `op` and `context` belong to the other command then, so this
    one has to end without them.
    """


@dataclass
class Run:
    """What the lock has to know of one run of a command on one connection.

    `tenant` names the schema (on MySQL and MariaDB: the database) in which each
    transaction has to work; it is None if the run works in the schema that the
    connection has. `reads_only` says that the command does not migrate, and takes no
    lock. `has_callers_transaction` says that the caller has begun the transaction, and
    will end it. What is in `at_end` is called after the last revision, before its
    transaction is committed. `rolled_back` says that a revision has rolled back what
    the run has done.
    """

    connection: Connection
    migrations: MigrationContext
    settings: Settings
    tenant: str | None
    reads_only: bool
    has_callers_transaction: bool
    at_end: list[Callable[[], object]] = field(default_factory=list)
    rolled_back: bool = False


@contextmanager
def migration_lock(
    connection: Connection,
    migrations: MigrationContext,
    settings: Settings,
    tenant: str | None = None,
) -> Iterator[Run]:
    """Hold the lock while the command runs; a command that only reads takes no lock.

    `tenant` is the schema or database of a tenant, as in Run. A transaction that the
    caller has begun is left open for the caller. Otherwise the connection is left
    without a transaction, and with the settings that it had before. Raises
    LockNotAvailable if another process does not finish in lock_timeout seconds, and
    CommandError if the connection or the database cannot be migrated.
    """
    if connection.get_execution_options().get("schema_translate_map"):
        raise CommandError(
            "The connection has a schema_translate_map, which Alembic's version table "
            "does not follow: pass a connection without one, and set search_path or "
            "version_table_schema."
        )
    run = Run(
        connection,
        migrations,
        settings,
        tenant,
        reads_only=reads_only(migrations, settings),
        has_callers_transaction=connection.in_transaction(),
    )
    if run.reads_only:
        # Without this, Alembic creates its version table in an empty database.
        migrations.opts["dont_mutate"] = True
    set_autocommit_block(run)
    with version_errors(migrations), cleaned_up(migrations), lock_of(run):
        require_schema(connection, settings.version_table_schema)
        with nullcontext() if run.reads_only else rollbacks_refused(run):
            yield run


def reads_only(migrations: MigrationContext, settings: Settings) -> bool:
    """Tell whether the command runs no revision, such as current, check or revision.

    Alembic gives a destination to the commands that migrate. A function that a program
    runs by itself counts as migrating, unless it has set the option dont_mutate.
    """
    opts = migrations.opts
    is_alembics = command_of(settings, migrations) is not None
    return "destination_rev" not in opts and bool(
        is_alembics or opts.get("dont_mutate")
    )


def lock_of(run: Run) -> AbstractContextManager[None]:
    """Return the context manager that holds the lock of this kind of database.

    Only the file of that database is imported, since the others may have been deleted.
    A command that needs the lock raises CommandError if that file itself has been
    deleted, and logs a warning if there is no lock for the database: a run without it
    must not happen in silence. Then only transactions are ended, as on the others.
    """
    dialect = run.connection.dialect.name
    module = LOCKS.get(dialect)
    if module and not run.reads_only:
        require_file(module, f"the migration lock on {dialect}")
    if module and is_here(module):
        held: AbstractContextManager[None]
        held = import_module(f".{module}", __package__).hold(run)
        return held
    if not run.reads_only:
        log.warning(
            "There is no migration lock for %s: run migrations from one process at a "
            "time.",
            dialect,
        )
    return ended_transaction(run)


def require_schema(connection: Connection, schema: str | None) -> None:
    """Raise CommandError if the schema for the version table does not exist.

    Alembic would raise the server's error for its CREATE TABLE, without the option.
    """
    if schema and not inspect(connection).has_schema(schema):
        raise CommandError(
            f"Option version_table_schema names {schema!r}, and the database has no "
            "such schema: create it, or correct the option."
        )


@contextmanager
def version_errors(migrations: MigrationContext) -> Iterator[None]:
    """Say in one sentence that the database is at a revision that has no file here.

    Alembic says "Can't locate revision", and not that a newer deployment is the usual
    reason. Other errors pass through.
    """
    try:
        yield
    except CommandError as error:
        cause = error.__cause__
        # A revision that the command itself names is a mistake in the command.
        given = to_tuple(migrations.opts.get("destination_rev"), default=())
        named = re.split(r"[@:\s]", " ".join(given))
        named += [re.sub(r"[-+]\d+$", "", each) for each in named]
        if not isinstance(cause, ResolutionError) or cause.argument in named:
            raise
        raise CommandError(
            f"The database is at revision {cause.argument}, which this code does not "
            "know: a newer deployment has migrated it, or the file was deleted; run "
            "the command from the code that has this revision."
        ) from error


@contextmanager
def rollbacks_refused(run: Run) -> Iterator[None]:
    """Raise CommandError for a revision that rolls back what the run has done.

    ROLLBACK is refused before it is sent. What rolls back through SQLAlchemy is noted,
    and refused at the end of the revision, or when a statement after it fails: the
    table that it needs may be gone, the version table too.
    """
    run.migrations.on_version_apply_callbacks += (partial(require_no_rollback, run),)
    try:
        with (
            listening(run.connection, BEFORE_STATEMENT, refuse_rollback),
            listening(run.connection, "rollback", partial(note_rollback, run)),
        ):
            yield
    except DBAPIError:
        require_no_rollback(run)
        raise


def refuse_rollback(_c: Connection, _u: Any, statement: str, *_more: Any) -> None:
    """Raise CommandError for a revision that sends ROLLBACK.

    It would undo what the run has done and set, on PostgreSQL the schema of a tenant
    too, and the version would be written all the same.
    """
    if ROLLBACK.match(statement):
        refuse_rolled_back()


def note_rollback(run: Run, connection: Connection) -> None:
    """Note that a revision rolls back what the run has done, through SQLAlchemy.

    Nothing is undone at AUTOCOMMIT, which sqlite3 tells by its own `in_transaction`.
    And a revision may commit, begin another transaction and roll that back. So only
    Alembic's transaction and the caller's count. `_transaction`, which is Alembic's, is
    private. If it were renamed, the tests of a rollback would fail.
    """
    # Alembic itself rolls back after an error; no revision is being run then.
    in_revision = any(is_revision(frame) for frame, _ in traceback.walk_stack(None))
    if not in_revision or connection.invalidated or commits_each_statement(connection):
        return
    driver = connection.connection.driver_connection
    is_runs = connection.get_transaction() is run.migrations._transaction
    is_runs = is_runs or run.has_callers_transaction
    if is_runs and getattr(driver, "in_transaction", True):
        run.rolled_back = True


def require_no_rollback(run: Run, **_: Any) -> None:
    """Raise CommandError if a revision has rolled back, such as through SQLAlchemy.

    Alembic calls it when a revision has ended, with the version that it has written.
    """
    if run.rolled_back:
        refuse_rolled_back()


def refuse_rolled_back() -> NoReturn:
    """Raise CommandError for a revision that has rolled back or is about to do so."""
    raise CommandError(
        "A revision rolls its transaction back, after which the run would go on as if "
        "nothing were undone: raise an error to end the run, or try what may fail in "
        "op.get_bind().begin_nested()."
    )


def in_transaction(run: Run, work: Callable[[], T]) -> T:
    """Call `work` in a transaction, and again if a table is not free; return its result.

    Tables are waited for in ddl_retries.py. Raises CommandError if ddl_lock_timeout is
    set and that file has been deleted.
    """
    if run.settings.ddl_lock_timeout is None or run.reads_only:
        return in_one_transaction(run, work)
    require_file("ddl_retries", "ddl_lock_timeout")
    from .ddl_retries import retried  # type: ignore[import,unused-ignore]

    result: T = retried(run, work)
    return result


def in_one_transaction(run: Run, work: Callable[[], T]) -> T:
    """Call `work` and what ends the run in one transaction; return the result."""
    run.rolled_back = False  # of a try before
    with run.migrations.begin_transaction():
        result = work()
        for action in run.at_end:
            action()
    return result


def revisions_in(error: BaseException) -> list[tuple[str, int]]:
    """Return the name and the line of each place in a revision that raised an error."""
    return [
        (frame.f_globals["revision"], line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if is_revision(frame)
    ]


def is_revision(frame: FrameType) -> bool:
    """Tell whether a frame of the stack runs code of a revision's file."""
    return {"revision", "down_revision"} <= frame.f_globals.keys()


def wait(
    run: Run,
    take: Callable[[], bool],
    describe: Callable[[], str],
    *,
    has_begun: bool = False,
) -> None:
    """Call `take` until it returns true, up to lock_timeout seconds; log the wait once.

    It asks again and again, and does not wait in the server: on PostgreSQL a statement
    that waits holds a snapshot, CREATE INDEX CONCURRENTLY in the process with the lock
    waits for that snapshot, and both would wait for ever (PostgreSQL manual, CREATE
    INDEX, "Building Indexes Concurrently"). `describe` says which lock it is and who
    has it.
    Once revisions have run (`has_begun`), no other command of this process may have its
    turn during the wait, since a part of the work may be committed. Raises
    LockNotAvailable.
    """
    timeout = run.settings.lock_timeout
    sleep = time.sleep if has_begun else run.settings.sleep
    deadline = time.monotonic() + timeout
    delay = 0.02
    is_logged = False
    while not take():
        left = deadline - time.monotonic()
        if left <= 0:
            raise LockNotAvailable(
                f"Another process migrates this database: waited {timeout:g} "
                f"seconds for {describe()}; run the command again when it has "
                "finished, or raise lock_timeout."
            )
        if not is_logged:
            is_logged = True
            log.warning("Waiting up to %g seconds for %s", timeout, describe())
        sleep(min(delay, left))
        delay = min(delay * 2, 0.5)


def lock_key(schema: str | None, version_table: str) -> bytes:
    """Return the key of the lock, made of the schema and the name of the version table.

    Two environments in one database have two version tables, and do not wait for each
    other. Each kind of lock uses as many bytes of the key as it can hold.
    """
    return hashlib.sha256(f"alembic {schema}.{version_table}".encode()).digest()


def scalar(connection: Connection, statement: str) -> Any:
    """Return the first value of the first row of a statement, or None.

    The statement is sent as it is: a % or a colon in it has no meaning.
    """
    return connection.exec_driver_sql(statement).scalar()


@contextmanager
def listening(
    connection: Connection, name: str, listener: Callable[..., Any], **options: bool
) -> Iterator[None]:
    """Call a listener for an event of this connection alone, until the block ends.

    `options` are those of sqlalchemy.event.listen(), such as `retval`.
    """
    event.listen(connection, name, listener, **options)
    try:
        yield
    finally:
        event.remove(connection, name, listener)


@contextmanager
def at_each_start(connection: Connection, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` before the first statement of each transaction in the block.

    The lock is checked there, so that a transaction without the lock changes nothing.
    The begin event itself is too early: after an error in it, SQLAlchemy would begin no
    other transaction on the connection, and an application's own begin event may come
    later. The statements that the action sends itself are not looked at.
    """
    started = [connection.get_transaction()]

    def before_statement(*_: Any) -> None:
        transaction = connection.get_transaction()
        # It is None while an event of the application begins the transaction.
        if transaction is None or transaction is started[-1]:
            return
        started.append(transaction)
        try:
            action()
        except BaseException:
            started.pop()
            raise

    with listening(connection, BEFORE_STATEMENT, before_statement):
        yield


@contextmanager
def ended_transaction(run: Run) -> Iterator[None]:
    """Commit at the end, roll back on an error: Alembic's SELECTs open a transaction.

    Alembic does not end that transaction, in which a pool or a caller would go on. A
    transaction of the caller is left as it is.
    """
    if run.has_callers_transaction:
        yield
        return
    try:
        yield
        run.connection.commit()
    except BaseException:
        with errors_logged("roll back"):
            roll_back(run.connection)
        raise


def roll_back(connection: Connection) -> None:
    """Roll back, and end the session if that fails; then raise the error.

    After a COMMIT that failed before it was sent, SQLAlchemy sends no ROLLBACK, so the
    driver is told as well.
    """
    try:
        connection.rollback()
        if not connection.invalidated:
            connection.connection.rollback()
    except BaseException:
        connection.invalidate()
        connection.rollback()
        raise


def end_session(run: Run) -> None:
    """Close the session with the server, which then frees its locks and settings.

    It is the last resort if a lock or a setting cannot be put back: a pool would hand
    the session to others. The next statement opens a new session. In a transaction of
    the caller, SQLAlchemy first asks the caller for a rollback.
    """
    run.connection.invalidate()
    if not run.has_callers_transaction:
        run.connection.rollback()


@contextmanager
def errors_logged(action: str) -> Iterator[None]:
    """Log an error of a cleanup instead of raising it: it would hide the first error.

    `action` says in the log what could not be done.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the first error counts
        log.warning("Could not %s: %s", action, error)


@contextmanager
def put_back(run: Run, action: Callable[[], object], what: str) -> Iterator[None]:
    """Call `action` at the end of a run, whether the run succeeds or fails.

    `what` says in the log what `action` does. If `action` fails, the session is ended,
    and that is logged. In a transaction of the caller it is raised instead, unless the
    run has failed already: the caller must not go on as if all were well.
    """
    try:
        yield
    except BaseException:
        with errors_logged(what):
            do_or_end_session(run, action)
        raise
    with nullcontext() if run.has_callers_transaction else errors_logged(what):
        do_or_end_session(run, action)


def do_or_end_session(run: Run, action: Callable[[], object]) -> None:
    """Call `action` and commit what it has done; if that fails, end the session.

    Nothing is left to be done in a session that has ended already.
    """
    if run.connection.invalidated:
        return
    try:
        action()
        if not run.has_callers_transaction:
            run.connection.commit()
    except BaseException:
        end_session(run)
        raise


@contextmanager
def cleaned_up(migrations: MigrationContext) -> Iterator[None]:
    """Clean up after Alembic if a revision fails.

    Alembic removes the proxy behind `op` only after a success. And if a connection is
    lost in autocommit_block(), Alembic uses it once more, and the second error hides
    the first one, which is raised here. `_proxy` and `_remove_proxy` are private. If
    Alembic renamed them, a program that calls `op` after a failed run would get no
    error, and a test shows that.
    """
    handled = sys.exc_info()[1]
    try:
        yield
    except PendingRollbackError as error:
        first = error.__context__
        if first is None or first is handled:
            raise
        raise first from None
    finally:
        left = getattr(op, "_proxy", None)
        if left is not None and left.migration_context is migrations:
            left._remove_proxy()


def set_autocommit_block(run: Run) -> None:
    """Replace autocommit_block() of this run by one that suits the connection.

    In a transaction of the caller it raises CommandError. On a connection that commits
    each statement anyway, it does nothing. Otherwise it is Alembic's, and the isolation
    level is put back also if the block fails. It is replaced on the instance, where
    a revision calls it (op.get_context().autocommit_block()).
    """
    connection, original = run.connection, run.migrations.autocommit_block

    @contextmanager
    def autocommit_block() -> Iterator[None]:
        if run.has_callers_transaction:
            raise CommandError(
                "A revision uses autocommit_block(), which must commit, in a "
                "transaction that the caller has begun: pass an Engine, or a "
                "Connection without a transaction."
            )
        # Here Alembic's own block would leave the connection at the server's default
        # level, and what the caller writes later would not be committed.
        if commits_each_statement(connection):
            yield
            return
        level = connection.get_isolation_level()
        try:
            with original():
                yield
        except BaseException:
            # Alembic stays at AUTOCOMMIT if the last commit of its block fails.
            if not connection.invalidated and commits_each_statement(connection):
                with errors_logged("put the isolation level back"):
                    roll_back(connection)
                    connection.execution_options(isolation_level=level)
            raise

    run.migrations.autocommit_block = autocommit_block  # type: ignore[method-assign]


def commits_each_statement(connection: Connection) -> bool:
    """Tell whether the driver of a server is in autocommit mode, whoever has set it so.

    The driver is asked first: SQLAlchemy's execution options do not show an isolation
    level that was given to create_engine(), or set on the driver itself.
    """
    driver = connection.connection.driver_connection
    ask = getattr(driver, "get_autocommit", None)  # the drivers of MySQL
    adapted = connection.connection.dbapi_connection
    value = ask() if ask else getattr(adapted, "autocommit", None)
    if isinstance(value, bool):
        return value
    level = connection.get_execution_options().get("isolation_level")
    return bool(level == "AUTOCOMMIT")


def refuse_other_session() -> NoReturn:
    """Raise CommandError for a transaction in a session that does not hold the lock.

    The error rolls the transaction back: another run may be working on the database.
    """
    raise CommandError(
        "The session that holds the migration lock is not the one that this "
        "transaction runs in, and this transaction is rolled back: a pooler in "
        "transaction mode, such as PgBouncer, stands between; migrate on a direct "
        "connection."
    )


def warn_of_lost_lock() -> None:
    """Log that the lock was lost on the way, so that two runs may have overlapped."""
    log.warning(
        "The migration lock was not held to the end: the server or a pooler such as "
        "PgBouncer has changed the session; migrate on a direct connection."
    )
