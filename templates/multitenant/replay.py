"""Replay: the statements of an upgrade, rendered once and run on many tenants as one script.

They come from Alembic's offline mode (https://alembic.sqlalchemy.org/en/latest/offline.html), with
the dialect of a live connection, so that each literal is written as this server reads it. What
Python computes in a revision, a uuid4() or a now(), is then the same for all tenants.
"""

import datetime
import decimal
import math
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import JSON, Connection, Dialect, TypeDecorator, text
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.schema import DDLElement

# Stands for the schema of the tenant, in what is rendered for all of them.
PLACE = "schema_of_the_tenant_0b8e1d"

# Values of which the server reads a literal as it would read the parameter.
LITERALS = (bool, int, float, str, decimal.Decimal, datetime.date, datetime.time, uuid.UUID)

# The statements of one revision after the other.
Script = list[list[str]]


class Offline:
    """Stands for the connection while a revision is rendered: what it cannot answer, it notes down.

    `mock` is Alembic's own stand-in, by which a table creates the types of its columns.
    """

    def __init__(self, mock: Any) -> None:
        self._mock = mock
        self._asked: list[str] = []

    def is_offline_mode(self) -> bool:
        """Stand in for the question of a revision, or of what it calls."""
        self._asked.append("is_offline_mode")
        return True

    def __getattr__(self, name: str) -> Any:
        if name not in {"dialect", "_run_ddl_visitor"}:
            self._asked.append(name)
            raise CommandError(f"it asks the connection for {name}")
        return getattr(self._mock, name)


def render(
    configure: Callable[..., None],
    schema: str | None,
    heads: tuple[str, ...],
    connection: Connection,
) -> Script:
    """Return the statements of the command for the tenants that are at `heads`.

    `configure` is that of env.py, and `schema` PLACE, or None where each has its own database.
    Raises CommandError with the reason where a revision asks the database or ends the transaction.
    Nothing is run.
    """
    # Alembic keeps the options of all contexts in one dict, and would take these for the next one's.
    opts = context.get_context().opts
    before = dict(opts)
    is_offline_mode = context.is_offline_mode
    script: Script = []
    step = "the command"

    def write(output: str) -> None:
        """Take what Alembic writes beside statements: the name of each revision, or a COMMIT."""
        nonlocal step
        if not output.startswith("-- Running"):
            raise CommandError(f"it writes {output.strip()!r}, which ends the transaction")
        step = output.strip().removeprefix("-- Running ")
        script.append([])

    try:
        configure(
            connection.dialect.name,
            schema,
            connection=connection,
            as_sql=True,
            starting_rev=heads,
            output_buffer=SimpleNamespace(write=write, flush=lambda: None),
        )
        migrations = context.get_context()
        if migrations.opts["transaction_per_migration"]:
            raise CommandError("transaction_per_migration commits after each revision")

        def execute(construct: Any, *_options: Any, **_more: Any) -> None:
            """Take a statement as Alembic would run it; its own output changes tabs in literals."""
            script[-1].append(rendered(construct, connection.dialect))

        # The version table is there when the script runs, and stays; Alembic 1.16 would drop it.
        migrations._version.create = lambda *_, **__: None  # type: ignore[method-assign]
        migrations._version.drop = lambda *_, **__: None  # type: ignore[method-assign]
        migrations.impl._exec = execute  # type: ignore[method-assign]
        offline: Any = Offline(migrations.connection)
        migrations.connection = migrations.impl.connection = offline
        context.is_offline_mode = offline.is_offline_mode
        for each in migrations.opts["fn"](heads, migrations):
            step = each.short_log
            refuse_branches(Path(each.revision.path))
        context.run_migrations()
        if offline._asked:
            raise CommandError(f"a revision asks for {offline._asked[0]}")
    except Exception as error:
        kind = "" if isinstance(error, CommandError) else f"{type(error).__name__}: "
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise CommandError(f"{step}: {kind}{reason}") from error
    finally:
        context.is_offline_mode = is_offline_mode
        opts.clear()
        opts.update(before)
    return script


def refuse_branches(file: Path) -> None:
    """Raise CommandError for a revision that may do something else offline than online."""
    found = re.search(r"\b(get_bind|is_offline_mode|as_sql)\b", file.read_text(encoding="utf-8"))
    if found:
        raise CommandError(f"it uses {found[0]}")


def exact_compiler(dialect: Dialect) -> Any:
    """Return the dialect's compiler of statements, which here refuses values that it would change."""
    base: Any = dialect.statement_compiler

    def render_literal_bindparam(self: Any, bind: Any, **options: Any) -> Any:
        refuse_value(bind, dialect.name)
        return base.render_literal_bindparam(self, bind, **options)

    return type("ExactCompiler", (base,), {"render_literal_bindparam": render_literal_bindparam})


def rendered(construct: Any, dialect: Dialect) -> str:
    """Return a statement with its values in it; raise CommandError where they would not be the same."""
    construct = text(construct) if isinstance(construct, str) else construct
    if isinstance(construct, DDLElement):
        compiled: Any = construct.compile(dialect=dialect)
    else:
        literals = {"literal_binds": True}
        compiled = exact_compiler(dialect)(dialect, construct, compile_kwargs=literals)
        if getattr(compiled, "insert_prefetch", ()) or getattr(compiled, "update_prefetch", ()):
            raise CommandError("it inserts or updates a column with a default of Python")
    statement = str(compiled).strip()
    if statement.count(PLACE) != statement.count(f"{PLACE}."):
        raise CommandError(f"it uses the name of the tenant's schema in {statement!r}")
    return statement


def refuse_value(bind: Any, dialect: str) -> None:
    """Raise CommandError for a value that may be another one when it is written as a literal."""
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


def run(connection: Connection, script: Script, schema: str | None) -> None:
    """Run a script for a tenant, in the transaction that has begun.

    On PostgreSQL it is sent as one. On MySQL and MariaDB, where each DDL statement commits, the
    version of each revision is committed with it.
    """
    quoted = connection.dialect.identifier_preparer.quote_identifier(schema or "")
    filled = [[each.replace(PLACE, quoted) for each in statements] for statements in script]
    if connection.dialect.name != "postgresql":
        for statements in filled:
            for statement in statements:
                connection.exec_driver_sql(statement)
            if connection.dialect.name != "sqlite":
                connection.commit()
        return
    # A statement may end with a comment.
    whole = "\n;\n".join(statement for statements in filled for statement in statements)
    driver = connection.connection.dbapi_connection
    if connection.dialect.driver == "asyncpg" and isinstance(driver, AdaptedConnection):
        # Its adapter prepares what it runs, which takes one statement.
        driver.run_async(lambda asyncpg: asyncpg.execute(whole))
    else:
        connection.exec_driver_sql(whole)
