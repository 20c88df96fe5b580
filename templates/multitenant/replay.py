"""Replay: the statements of an upgrade, rendered once and run on many tenants.

They come from Alembic's offline mode
(https://alembic.sqlalchemy.org/en/latest/offline.html), with the dialect of a live
connection, so that each literal is written as this server reads it. A revision that
cannot be rendered exactly is not replayed: its tenants run the revisions themselves,
and a line says why. What Python computes in a revision, such as a uuid4(), is the same
for all tenants in a replay. An owner without replay=true can delete this file.

Alembic offers no way to take the statements one by one, so this file replaces private
parts of it: `_version`, `impl._exec` and `context.is_offline_mode`. If Alembic renamed
one of them, the tests of replay would find rows or tables missing, or a wrong script.
"""

import datetime
import decimal
import logging
import math
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alembic import context
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import JSON, Connection, Dialect, TypeDecorator, text
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.schema import DDLElement

from .fleet import Fleet
from .fleet_servers import server_of
from .migration_lock import cleaned_up
from .tenants import Script, Tenant

log = logging.getLogger("alembic.env")

# In a script it stands for the schema of the tenant, whose name replaces it. No
# revision contains it by chance.
PLACE = "schema_of_the_tenant_0b8e1d"

# Types whose SQL literal means exactly what the bound parameter would.
LITERALS = (
    bool,
    int,
    float,
    str,
    decimal.Decimal,
    datetime.date,
    datetime.time,
    uuid.UUID,
)


def render_scripts(
    fleet: Fleet, tenants: list[Tenant], connection: Connection | None
) -> list[Tenant]:
    """Return the tenants, each with its script.

    A script is rendered once for all tenants that are at the same version. If it cannot
    be rendered, the tenants are returned without one, and a line in the log says why.
    """
    firsts = {script_key(each): each for each in reversed(tenants)}
    scripts: dict[Any, Script] = {}
    for key, tenant in firsts.items():
        if tenant.heads is None:
            continue
        rendering = partial(render, fleet, tenant)
        try:
            if connection is None or tenant.url is not None:
                scripts[key] = fleet.on_tenant(tenant, rendering)
            else:
                scripts[key] = rendering(connection)
        except CommandError as error:
            start = " ".join(tenant.heads) or "base"
            log.info("From %s nothing is replayed: %s.", start, error)
    return [replace(each, script=scripts.get(script_key(each))) for each in tenants]


def script_key(tenant: Tenant) -> Any:
    """Return what tenants with the same script have in common.

    A server's settings change how it reads a literal, and a driver may need a % twice.
    """
    driver = tenant.url and tenant.url.drivername
    return server_of(tenant.url), driver, tenant.heads


class Recording:
    """Takes what Alembic sends and writes while a command is rendered.

    It stands in for Alembic's output buffer. `step` names the revision that is
    rendered, for errors. What a revision asks the database is noted in `asked`, since
    the revision may catch the error and go on without the answer.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.statements: list[list[str]] = []
        self.target = ""
        self.step = "the command"
        self.dialect = dialect
        self.asked: list[str] = []

    def write(self, output: str) -> None:
        """Take text that is no statement: the name of a revision, or a COMMIT.

        Raises CommandError for a COMMIT, as of autocommit_block().
        """
        if not output.startswith("-- Running"):
            reason = f"it writes {output.strip()!r}, which ends the transaction"
            raise CommandError(reason)
        self.step = output.strip().removeprefix("-- Running ")
        self.statements.append([])

    def on_version_apply(self, *, heads: set[str], **_more: Any) -> None:
        """Note the revisions that a tenant is at after a step."""
        self.target = " ".join(sorted(heads))

    def flush(self) -> None:
        """Do nothing: Alembic calls it, since its output may be a file."""

    def execute(self, construct: Any, *_options: Any, **_more: Any) -> None:
        """Take a statement before Alembic writes it, which would change its tabs."""
        statement = rendered(construct, self.dialect)
        # In one message with others, it would not be seen.
        if found := re.search(r"(?i)\b(ROLLBACK|ABORT)\b", statement):
            raise CommandError(f"it may send {found[0]}")
        self.statements[-1].append(statement)

    def is_offline_mode(self) -> bool:
        """Answer a revision or a function that it calls, and note that it has asked."""
        self.asked.append("is_offline_mode")
        return True


class NoConnection:
    """Stands in for the connection of a command that is rendered, and answers nothing.

    `mock` is Alembic's own stand-in, which a table needs to create the types of its
    columns.
    """

    def __init__(self, recording: Recording, mock: Any) -> None:
        self._asked = recording.asked
        self._run_ddl_visitor = mock._run_ddl_visitor
        self.dialect = recording.dialect

    def __getattr__(self, name: str) -> Any:
        self._asked.append(name)
        raise CommandError(f"it asks the connection for {name}")


def render(fleet: Fleet, tenant: Tenant, connection: Connection) -> Script:
    """Return the statements of the command for the tenants that are where this one is.

    Nothing is run; `connection` only gives the dialect. Raises CommandError with the
    reason if a revision asks the database, ends the transaction, or has a value that
    cannot be written exactly.
    """
    before, heads = fleet.migrations, tenant.heads
    recording = Recording(connection.dialect)
    opts = {
        "as_sql": True,
        "starting_rev": heads,
        "version_table_schema": None if tenant.url else PLACE,
        "on_version_apply": (recording.on_version_apply,),
    }
    migrations = MigrationContext.configure(
        connection,
        environment_context=before.environment_context,
        opts={**before.opts, **opts},
    )
    try:
        if migrations.opts["transaction_per_migration"]:
            raise CommandError("transaction_per_migration commits after each revision")
        with recorded(migrations, recording):
            for each in migrations.opts["fn"](heads, migrations):
                recording.step = each.short_log
                refuse_branches(Path(each.revision.path))
            migrations.run_migrations()
        if recording.asked:
            raise CommandError(f"a revision asks for {recording.asked[0]}")
    except Exception as error:
        kind = "" if isinstance(error, CommandError) else f"{type(error).__name__}: "
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise CommandError(f"{recording.step}: {kind}{reason}") from error
    return Script(recording.statements, recording.target)


@contextmanager
def recorded(migrations: MigrationContext, recording: Recording) -> Iterator[None]:
    """Let a context send and write to a recording alone.

    What belongs to the environment is put back at the end; the rest ends with the
    context.
    """
    environment: Any = migrations.environment_context
    is_offline_mode, current = context.is_offline_mode, environment._migration_context
    # The version table exists when the script is run, and is kept.
    migrations._version.create = lambda *_, **__: None  # type: ignore[method-assign]
    migrations._version.drop = lambda *_, **__: None  # type: ignore[method-assign]
    output: Any = recording
    nothing: Any = NoConnection(recording, migrations.connection)
    migrations.impl._exec = recording.execute  # type: ignore[method-assign]
    migrations.impl.output_buffer = migrations.output_buffer = output
    migrations.connection = migrations.impl.connection = nothing
    context.is_offline_mode = recording.is_offline_mode
    environment._migration_context = migrations
    try:
        with cleaned_up(migrations), Operations.context(migrations):
            yield
    finally:
        context.is_offline_mode = is_offline_mode
        environment._migration_context = current


def refuse_branches(file: Path) -> None:
    """Raise CommandError for a revision that may do something else offline.

    Its source is read, since a branch that is not taken leaves no trace.
    """
    source = file.read_text(encoding="utf-8")
    found = re.search(r"\b(get_bind|is_offline_mode|as_sql)\b", source)
    if found:
        raise CommandError(f"it uses {found[0]}")


def rendered(construct: Any, dialect: Dialect) -> str:
    """Return the SQL of a statement with its values written into it.

    Raises CommandError if a value would change, and if the name of the tenant's schema
    is used as anything but a part of a table's name.
    """
    construct = text(construct) if isinstance(construct, str) else construct
    if isinstance(construct, DDLElement):
        compiled: Any = construct.compile(dialect=dialect)
    else:
        literals = {"literal_binds": True}
        compiled = exact_compiler(dialect)(dialect, construct, compile_kwargs=literals)
        defaults = ("insert_prefetch", "update_prefetch")
        if any(getattr(compiled, each, ()) for each in defaults):
            raise CommandError(
                "it inserts or updates a column with a default of Python"
            )
    statement = str(compiled).strip()
    if statement.count(PLACE) != statement.count(f"{PLACE}."):
        raise CommandError(f"it uses the name of the tenant's schema in {statement!r}")
    return statement


def exact_compiler(dialect: Dialect) -> Any:
    """Return the dialect's compiler as a class that refuses values it would change."""
    base: Any = dialect.statement_compiler

    class ExactCompiler(base):  # type: ignore[misc]
        def render_literal_bindparam(self, bind: Any, **options: Any) -> Any:
            refuse_value(bind, dialect.name)
            return super().render_literal_bindparam(bind, **options)

    return ExactCompiler


def refuse_value(bind: Any, dialect: str) -> None:
    """Raise CommandError for a value that may mean something else as a literal.

    A driver sends parameters with their types; a literal has only the text.
    """
    value = bind.effective_value
    if bind.required and value is None:
        raise CommandError(f"it gives no value to the parameter {bind.key}")
    values = value if bind.expanding and isinstance(value, list | tuple) else [value]
    has_zone = dialect == "postgresql" and getattr(bind.type, "timezone", False)
    for each in values:
        if (
            isinstance(bind.type, TypeDecorator | JSON)
            or not (each is None or isinstance(each, LITERALS))
            or (isinstance(each, float | decimal.Decimal) and not math.isfinite(each))
            or (getattr(each, "tzinfo", None) is not None and not has_zone)
        ):
            kind = f"{type(each).__name__} for {type(bind.type).__name__}"
            raise CommandError(f"it has a value, {kind}, without an exact literal")


def run_script(
    connection: Connection, migrations: MigrationContext, tenant: Tenant
) -> None:
    """Run the script of a tenant, in the transaction that has begun.

    PostgreSQL gets the whole script at once. On MySQL and MariaDB each DDL statement
    commits, so the version is committed after each revision: a script that fails leaves
    the version of the last complete revision.
    """
    if tenant.schema is None:  # else it was created with the schema
        migrations._ensure_version_table()
    preparer = connection.dialect.identifier_preparer
    schema = preparer.quote_identifier(tenant.schema or "")
    filled = [
        [each.replace(PLACE, schema) for each in statements]
        for statements in (tenant.script.statements if tenant.script else [])
    ]
    if connection.dialect.name == "postgresql":
        # A statement may end with a comment, so each semicolon has a line of its own.
        run_as_one(connection, "\n;\n".join(each for some in filled for each in some))
        return
    for statements in filled:
        # As Alembic begins each revision, which sqlite_transactions.py waits for.
        with migrations.begin_transaction(_per_migration=True):
            for statement in statements:
                connection.exec_driver_sql(statement)


def run_as_one(connection: Connection, script: str) -> None:
    """Send several statements to PostgreSQL in one message: it waits for one answer."""
    driver = connection.connection.dbapi_connection
    if connection.dialect.driver == "asyncpg" and isinstance(driver, AdaptedConnection):
        # SQLAlchemy's adapter prepares what it runs, and only one statement can be
        # prepared.
        driver.run_async(lambda asyncpg: asyncpg.execute(script))
    else:
        connection.exec_driver_sql(script)
