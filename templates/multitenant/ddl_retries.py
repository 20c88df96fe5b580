"""What a run does if a table is not free: it gives way, and tries again.

If a DDL statement waits for a table, all later queries on that table wait behind it.
With ddl_lock_timeout the statement gives up, so that the application goes on; but the
deployment would end there. So the run rolls back, waits a while, and goes on from what
is committed, up to ddl_lock_retries times. It keeps the migration lock, and logs who
has the table. (The Ruby gems strong_migrations and safe-pg-migrations do the same.)

A revision is run again only if nothing of it is committed that must not be sent twice;
HARMLESS says what may. MySQL and MariaDB commit at each DDL statement: there, a
revision usually gets no second try after its first DDL statement.

An owner who sets no ddl_lock_timeout can delete this file.
"""

import logging
import math
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from . import migration_lock as locking
from .migration_lock import Run, T

log = logging.getLogger("alembic.env")

# The error of each server for a lock that was not free in time: lock_not_available and
# ER_LOCK_WAIT_TIMEOUT. A statement with NOWAIT gets it, too, and on MySQL and MariaDB
# one that has waited for a row; neither has to do with ddl_lock_timeout.
DDL = r"(?si)\s*(ALTER|CREATE|DROP|RENAME|TRUNCATE|OPTIMIZE)\b"
LOCK_TIMEOUT = {
    "postgresql": ("55P03", r"(?si)(?!.*\bNOWAIT\b)"),
    "mysql": ("1205", DDL),
    "mariadb": ("1205", DDL),
}

# What may be sent again although it is committed: it changes nothing the second time.
# The only SELECTs here are the checks of the lock, since a function may do anything.
# The DO is that of the rule concurrent_indexes, or LEFTOVER. is_harmless() first
# removes literals, quoted names and what stands in parentheses.
HARMLESS = re.compile(
    r"(?si)\s*(?:SELECT pg_try_advisory_xact_lock"
    r"|SELECT IS_USED_LOCK = CONNECTION_ID, DATABASE"
    r"|(?:SHOW|DESCRIBE|COMMENT ON)\b[^;]*|SET\b[^;@]*"
    r"|(?:CREATE|DROP)\s+(?:\w+\s+){1,3}?IF\s+(?:NOT\s+)?EXISTS\b[^;]*"
    r"|ALTER\s+(?:TABLE|TYPE)\s+(?:IF\s+EXISTS\s+)?[\w.]+\s+"
    r"(?:ADD|DROP)\s+(?:\w+\s+){0,2}?IF\s+(?:NOT\s+)?EXISTS\b[^;,]*"
    r"|ALTER TABLE [\w.]+ ALTER COLUMN \w+ (?!.*\bUSING\b)"
    r"(?:TYPE|SET|DROP (?:DEFAULT|NOT NULL))\b[^;,]*"
    r"|DO \$\w*\$ BEGIN\s+(?:LOCK TABLE [\w.$]+ IN SHARE UPDATE EXCLUSIVE MODE;\s+)?"
    r"IF EXISTS\s+THEN DROP INDEX [\w.$]+; END IF; END \$\w*\$"
    r");?\s*"
)
LITERAL = re.compile(r"'[^'\\]*'|\"[^\"]*\"|`[^`]*`")
PARENTHESES = re.compile(r"\((?:[^()]|\([^()]*\))*\)")

# Signs of a comment, or of a literal of another kind, in which anything may stand.
UNCLEAR = re.compile(r"(?si)--|/\*|[#'\"`\\]|^(?!\s*DO\b).*\$")

# The names in a CREATE INDEX CONCURRENTLY: the index, and the schema and its table.
NAME = r'("(?:[^"]|"")+"|[\w$]+)'
CONCURRENT_INDEX = re.compile(
    r"(?si)\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    rf"{NAME}\s+ON\s+(?:ONLY\s+)?(?:{NAME}\.)?{NAME}(?=[\s(])"
)

# Drops an index if it is not valid. Names that are looked for are literals.
LEFTOVER = (
    "DO $_$ BEGIN IF EXISTS (SELECT FROM pg_index WHERE NOT indisvalid "
    "AND indexrelid = to_regclass({index_text}) AND indrelid = to_regclass({table_text})"
    ") THEN DROP INDEX {index}; END IF; END $_$"
)

# Who has locks on tables of this database: the process, its state, the age of its
# transaction in seconds, the table and its schema, and whether the table is found
# without its schema. MySQL and MariaDB do not tell the tables of a transaction.
HOLDERS = {
    "postgresql": (
        "SELECT DISTINCT l.pid, a.state, "
        "extract(epoch FROM clock_timestamp() - a.xact_start)::int, "
        "c.relname, n.nspname, pg_table_is_visible(c.oid) "
        "FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
        "JOIN pg_namespace n ON n.oid = c.relnamespace "
        "LEFT JOIN pg_stat_activity a ON a.pid = l.pid "
        "WHERE l.granted AND n.nspname <> 'pg_catalog' AND l.database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND l.pid IS DISTINCT FROM pg_backend_pid()"
    ),
    "mysql": (
        "SELECT p.id, p.command, timestampdiff(SECOND, t.trx_started, now()), "
        "NULL, NULL, false FROM information_schema.innodb_trx t "
        "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
        "WHERE p.db = database() AND p.id <> connection_id()"
    ),
}


def retried(run: Run, work: Callable[[], T]) -> T:
    """Call `work` in a transaction, and again if a table is not free; return its result.

    Raises the statement's error after ddl_lock_retries more calls, and at once if a
    revision is half committed. It calls `work` only once on a database that has no such
    timeout, in a transaction of the caller, and behind a pooler, where nothing holds
    the lock between two transactions.
    """
    if run.connection.dialect.name not in LOCK_TIMEOUT:
        return locking.in_one_transaction(run, work)
    left = retries = run.settings.ddl_lock_retries
    progress = Progress(run)
    with progress:
        while True:
            try:
                with locking.cleaned_up(run.migrations):
                    return locking.in_one_transaction(run, work)
            except Exception as error:
                if not (left and progress.may_go_on(error)):
                    progress.drop_leftover()
                    raise
                locking.roll_back(run.connection)
                delay = min(10.0, 0.5 * 2.0 ** (retries - left))
                delay *= random.uniform(0.5, 1)
                log_retry(run, error, delay, left)
            left -= 1
            run.settings.sleep(delay)


class Progress:
    """How much of a run is committed.

    `plan` has the steps of the command if they are known beforehand. `done` of them are
    committed, and with the next commit `applied` more will be. `is_dirty` says that the
    revision that runs has changed something, and `is_half_done` that a part of it is
    committed that must not be sent again. While a COMMIT is under way, `undone` has
    the values that `done` and `is_half_done` get back if it fails. `leftover` is the
    statement that drops an index which PostgreSQL may have left unfinished.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.connection = run.connection
        self.migrations = run.migrations
        self.dialect = run.connection.dialect.name
        self.steps_of = run.migrations._migrations_fn
        self.plan: list[Any] | None = None
        self.done = 0
        self.applied = 0
        self.is_dirty = False
        self.is_half_done = False
        self.undone: tuple[int, bool] | None = None
        self.leftover = ""

    def __enter__(self) -> None:
        """Watch the run.

        `_migrations_fn` is private. If Alembic renamed it, the tests of relative
        revisions such as `downgrade -2` would fail.
        """
        self.migrations._migrations_fn = self.steps
        self.migrations.on_version_apply_callbacks += (self.on_version,)
        event.listen(self.connection, locking.BEFORE_STATEMENT, self.before_statement)
        event.listen(self.connection, "after_cursor_execute", self.on_statement)
        event.listen(self.connection, "commit", self.on_commit)
        event.listen(self.connection, "rollback", self.on_rollback)

    def __exit__(self, *_error: object) -> None:
        event.remove(self.connection, locking.BEFORE_STATEMENT, self.before_statement)
        event.remove(self.connection, "after_cursor_execute", self.on_statement)
        event.remove(self.connection, "commit", self.on_commit)
        event.remove(self.connection, "rollback", self.on_rollback)

    def steps(self, heads: Any, migrations: MigrationContext) -> Iterable[Any]:
        """Give the steps of the command that are not committed yet.

        The plan is made once: what `-2` means would change with each committed step.
        """
        steps: Iterable[Any] | None = self.plan
        if steps is None:
            assert self.steps_of is not None
            steps = self.steps_of(heads, migrations)
            self.plan = steps if isinstance(steps, list) else None
        for step in steps if self.plan is None else self.plan[self.done :]:
            self.is_dirty = self.is_half_done = False
            yield step

    def before_statement(
        self, connection: Connection, _: Any, sent: str, *_more: Any
    ) -> None:
        """Drop the index that an earlier CREATE INDEX CONCURRENTLY has not finished.

        It exists, is not valid, and would be an error, or with IF NOT EXISTS be taken
        for the index (PostgreSQL manual, "Building Indexes Concurrently").
        """
        self.undone = None
        names = CONCURRENT_INDEX.match(sent)
        if not names or self.run.has_callers_transaction:
            return
        if locking.commits_each_statement(connection):
            schema = f"{names[2]}." if names[2] else ""
            index, table = schema + names[1], schema + names[3]
            index_text, table_text = (
                "'" + each.replace("'", "''") + "'" for each in (index, table)
            )
            self.leftover = LEFTOVER.format(
                index=index, index_text=index_text, table_text=table_text
            )
            connection.exec_driver_sql(self.leftover)

    def on_statement(
        self, connection: Connection, _: Any, sent: str, *_more: Any
    ) -> None:
        """Note that a statement has changed something, or has finished an index."""
        if CONCURRENT_INDEX.match(sent):
            self.leftover = ""
        if is_harmless(sent):
            return
        commits = self.dialect != "postgresql"  # or the next DDL statement does
        if commits or locking.commits_each_statement(connection):
            self.is_half_done = True
        else:
            self.is_dirty = True

    def on_version(self, **_: Any) -> None:
        """Note that a revision is complete, with the version in the same transaction."""
        self.applied += 1
        self.is_dirty = self.is_half_done = False

    def on_commit(self, _: Connection) -> None:
        """Note that all so far is committed, such as by autocommit_block().

        SQLAlchemy says so before it sends COMMIT, in which a deferred foreign key may
        wait for a row in vain.
        """
        self.undone = self.done, self.is_half_done
        self.done += self.applied
        self.applied = 0
        self.is_half_done = self.is_half_done or self.is_dirty
        self.is_dirty = False

    def on_rollback(self, _: Connection) -> None:
        """Note that all since the last commit is undone."""
        self.applied = 0
        self.is_dirty = False

    def may_go_on(self, error: Exception) -> bool:
        """Tell whether a statement has waited in vain, and may be sent again.

        If it has waited in vain and may not be sent again, a warning says why.
        """
        code, pattern = LOCK_TIMEOUT[self.dialect]
        if code not in codes_of(error) or not re.match(pattern, statement_of(error)):
            return False
        if self.undone is not None:
            self.done, self.is_half_done = self.undone
        reason = ""
        if self.run.has_callers_transaction:
            reason = "the caller has begun the transaction"
        elif self.connection.info.get("alembic_behind_pooler"):
            reason = "a pooler stands before the server"
        elif self.is_half_done:
            reason = "it is half committed, and a second run could trip over that"
        if reason:
            place = place_of(self.run, error)
            log.warning("%s is not tried again, since %s.", place, reason)
        return not reason

    def drop_leftover(self) -> None:
        """Drop the index that the run has left unfinished, after the last try.

        If its table is still not free, a warning says so, and the next run drops it.
        """
        if self.leftover:
            with locking.errors_logged("drop the index that is not finished"):
                locking.roll_back(self.connection)
                self.connection.exec_driver_sql(self.leftover)
                self.connection.commit()


def is_harmless(statement: str) -> bool:
    """Tell whether a statement may be sent again although it is committed."""
    rest = LITERAL.sub("x", statement)
    if UNCLEAR.search(rest):
        return False
    return HARMLESS.fullmatch(PARENTHESES.sub("", rest)) is not None


def codes_of(error: Exception) -> set[str]:
    """Return the codes of a server's error, wherever the driver keeps them."""
    origin: Any = getattr(error, "orig", None) or error
    names = ("sqlstate", "pgcode", "errno")
    return {str(getattr(origin, name, "")) for name in names} | {
        str(each) for each in origin.args[:1]
    }


def statement_of(error: Exception) -> str:
    """Return the statement that has failed, and '' if SQLAlchemy did not send it."""
    return (isinstance(error, DBAPIError) and error.statement) or ""


def log_retry(run: Run, error: Exception, delay: float, left: int) -> None:
    """Log which revision has waited in vain, who has the table, and what comes next."""
    timeout = run.settings.ddl_lock_timeout or 0.0
    if run.connection.dialect.name != "postgresql":
        timeout = math.ceil(timeout)  # as mysql_lock.py sets it
    log.warning(
        "%s has waited %g seconds for a table that is held by %s: rolled back, tried "
        "again in %.1f seconds, and up to %d times.",
        place_of(run, error),
        timeout,
        holders(run.connection, statement_of(error)),
        delay,
        left,
    )


def place_of(run: Run, error: Exception) -> str:
    """Return which revision, of which tenant, has raised an error."""
    places = [
        f"Revision {name} (line {line})" for name, line in locking.revisions_in(error)
    ]
    tenant = "" if run.tenant is None else f"Tenant {run.tenant!r}: "
    return tenant + (places or ["A statement"])[0]


def holders(connection: Connection, statement: str) -> str:
    """Return text that names the processes with locks on the tables of a statement.

    If they are not known, such as for CREATE INDEX CONCURRENTLY, which waits for old
    transactions on other tables, all with locks on tables of this database are named.
    """

    def is_named(row: Any) -> bool:
        names = [row[3]] if row[5] else [row[3], row[4]]
        words = [rf"(?<!\w){re.escape(str(name))}(?!\w)" for name in names]
        return all(re.search(word, statement) for word in words)

    with locking.errors_logged("ask who holds the table"):
        query = HOLDERS.get(connection.dialect.name, HOLDERS["mysql"])
        rows = connection.exec_driver_sql(query).all()
        found = {row[0]: row for row in [row for row in rows if is_named(row)] or rows}
        texts = [
            f"process {pid} ({state or 'state unknown'}, its transaction is "
            f"{'of unknown age' if age is None else f'{age} seconds old'})"
            for pid, state, age, *_ in found.values()
        ]
        connection.rollback()
        if connection.dialect.name == "postgresql":
            texts = texts or ["a process that has ended since"]
        # On MySQL and MariaDB it may also be one whose own database is another one.
        return ", ".join(texts) or "an unknown process"
    locking.roll_back(connection)
    return "an unknown process"
