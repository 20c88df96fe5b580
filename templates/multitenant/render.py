"""The Python code that creates the tables of a database, for a first revision.

It is what `Migrations.render()` returns; the technique is that of "Print Python Code to
Generate Particular Database Tables" in Alembic's cookbook. The code, run on an empty
database, makes the same tables. What SQLAlchemy does not reflect is missing in it:
domains, sequences that no column owns, exclusion constraints, and expressions in
SQLite's indexes. So compare the two databases before you rely on it.

Most projects need it once, when they begin to use Alembic on a database that exists.
This file can be deleted after that.
"""

import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from alembic.autogenerate import render_python_code
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import (
    Connection,
    MetaData,
    Table,
    TextClause,
    event,
    inspect,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import sort_tables_and_constraints


def render_tables(
    connection: Connection, context: MigrationContext, tables: Sequence[str]
) -> str:
    """Return the code that creates the named tables, or all if no table is named.

    The version table is never among them: Alembic creates it. Raises CommandError for a
    table that does not exist.
    """
    known = set(inspect(connection).get_table_names()) - {context.version_table}
    unknown = sorted(set(tables) - known)
    if unknown:
        raise CommandError(
            f"There is no table {', '.join(unknown)}: expected some of "
            f"{', '.join(sorted(known)) or 'none, since the database is empty'}."
        )
    metadata = MetaData()
    event.listen(metadata, "column_reflect", context.impl.autogen_column_reflect)
    wanted = sorted(tables or known)
    metadata.reflect(connection, only=wanted)
    operations = creations([metadata.tables[name] for name in wanted], context)
    code = render_python_code(
        ops.UpgradeOps(operations),
        render_item=render_enum,
        # The context of env.py would be that of a command which compares models.
        migration_context=text_context(connection),
    )
    dialect = "mysql" if context.dialect.name == "mariadb" else context.dialect.name
    head = (
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        f"from sqlalchemy.dialects import {dialect}\n\n"
    )
    # All lines of the code but the first are indented.
    return head + textwrap.dedent(f"    {code}\n")


def text_context(connection: Connection) -> MigrationContext:
    """Return a context that writes the SQL of defaults and checks as text() reads it.

    Without it, a colon in a default such as '12:30' would become a parameter.
    `render_ddl_sql_expr` of Alembic is replaced on the instance, since the public
    `render_item` is not called for expressions.
    """
    context = MigrationContext.configure(connection)
    original = context.impl.render_ddl_sql_expr

    def render_ddl_sql_expr(expression: Any, **options: Any) -> str:
        if isinstance(expression, TextClause):
            return as_text(expression.text)
        return as_text(unescaped(original(expression, **options), context))

    context.impl.render_ddl_sql_expr = render_ddl_sql_expr  # type: ignore[method-assign, assignment]
    return context


def creations(
    tables: list[Table], context: MigrationContext
) -> list[ops.MigrateOperation]:
    """Return the operations that create reflected tables, in an order that works.

    A table comes after those that its foreign keys refer to.
    """
    sort: Any = sort_tables_and_constraints  # it has no types
    order = list(sort(tables))
    # If tables refer to each other in a cycle, some keys are created at the end. SQLite
    # cannot add a key later, and accepts one to a table that does not exist yet.
    later = set() if context.dialect.name == "sqlite" else set(order[-1][1])
    created: list[ops.MigrateOperation] = []
    for table in [table for table, _ in order if table is not None]:
        table.constraints -= later
        created.append(ops.CreateTableOp.from_table(table))
        created += indexes_of(table, context)
    created += [ops.CreateForeignKeyOp.from_constraint(key) for key in later]
    return [*enums_of(tables, context), *created]


def enums_of(
    tables: list[Table], context: MigrationContext
) -> list[ops.MigrateOperation]:
    """Return the operations that create PostgreSQL's enums, each of them once."""
    found: dict[str, ops.MigrateOperation] = {}
    for column in [column for table in tables for column in table.columns]:
        kind = getattr(column.type, "item_type", column.type)
        if isinstance(kind, postgresql.ENUM):
            create_type: Any = postgresql.CreateEnumType  # it has no types
            sql = str(create_type(kind).compile(dialect=context.dialect)).strip()
            name = f"{kind.schema}.{kind.name}"
            found[name] = ops.ExecuteSQLOp(as_text(unescaped(sql, context)))
    return list(found.values())


def indexes_of(table: Table, context: MigrationContext) -> list[ops.MigrateOperation]:
    """Return the operations that create a table's indexes.

    MySQL creates an index with the name of a foreign key by itself; a second one of
    that name would fail.
    """
    keys: set[tuple[Any, ...]] = set()
    if context.dialect.name in {"mysql", "mariadb"}:
        keys = {(key.name, *key.column_keys) for key in table.foreign_key_constraints}
    return [
        ops.CreateIndexOp.from_index(index)
        for index in sorted(table.indexes, key=lambda index: str(index.name))
        if (index.name, *index.columns.keys()) not in keys
    ]


def render_enum(type_: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Render an enum of PostgreSQL; its type is created once, not by each column."""
    if type_ != "type" or not isinstance(item, postgresql.ENUM):
        return False
    schema = f", schema={item.schema!r}" if item.schema else ""
    values = ", ".join(map(repr, item.enums))
    name = f"name={str(item.name)!r}{schema}, create_type=False"
    return f"postgresql.ENUM({values}, {name})"


def unescaped(sql: str, context: MigrationContext) -> str:
    """Return compiled SQL in which % stands once.

    SQLAlchemy doubles it for drivers whose parameters are written as %s.
    """
    # Private, since the paramstyle does not tell it: pg8000 doubles none.
    is_doubled = context.dialect.identifier_preparer._double_percents
    return sql.replace("%%", "%") if is_doubled else sql


def as_text(sql: str) -> str:
    r"""Return SQL for sqlalchemy.text(), which takes `:name` for a parameter.

    A cast such as `::text` is left alone, and so is `\:`.
    """
    return re.sub(r"(?<![:\w\\]):(\w+)(?!:)", r"\\:\1", sql)
