"""Rule concurrent_indexes: on PostgreSQL, an index is built while the application works.

CREATE INDEX stops all writes to its table until it is built. With CONCURRENTLY it does
not, but it cannot run in a transaction. If it is killed, it leaves an index that is not
valid, and that IF NOT EXISTS takes for the index (PostgreSQL manual, CREATE INDEX,
"Building Indexes Concurrently"). So this rule moves the indexes of tables that exist
into an autocommit block, and writes code that can be run again after a run was killed.

The block commits what comes before it in the revision. So only what an index may need
comes first, in a form that can be run again. All else comes after the block, in one
transaction with the version.

autogenerate_rules.py uses this file, and an owner can delete it.
"""

from collections.abc import Iterable
from typing import Any

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Dialect, text

from .autogenerate_rules import (  # type: ignore[import,unused-ignore]
    flattened,
)


class ConcurrentIndexes(ops.OpContainer):
    """Operations on indexes that run in an autocommit block."""


def build_concurrently(
    context: MigrationContext, containers: Iterable[ops.OpContainer], shared: set[Any]
) -> None:
    """Move the indexes of tables that exist into an autocommit block.

    A table that the same container creates or drops keeps its indexes, and so does one
    with partitions, for which PostgreSQL has no CONCURRENTLY. An index also stays if
    something else has to go before it, or before its name is free: `shared` has the
    names that something else has as well.
    """
    if context.dialect.name != "postgresql":
        return
    for container in containers:
        operations = list(flattened(container.ops))
        indexes = on_existing_tables(operations)
        frees = any(frees_indexes(each) for each in operations)
        block = [
            each
            for each in indexes
            if not has_to_wait(each, shared, frees)
            and not has_partitions(context, *table_of(each))
        ]
        # An index whose name something else gives up comes last.
        late = [
            each
            for each in indexes
            if isinstance(each, ops.CreateIndexOp) and each.index_name in shared
        ]
        indexed = {table_of(each) for each in block}
        first = [each for each in operations if is_needed_first(each, indexed)]
        moved = [*first, *block]
        mark(moved)
        rest = [each for each in operations if each not in [*moved, *late]]
        if block:
            container.ops = [*first, ConcurrentIndexes(block), *rest, *late]
        elif late:
            container.ops = [*rest, *late]


def on_existing_tables(
    operations: list[ops.MigrateOperation],
) -> list[ops.CreateIndexOp | ops.DropIndexOp]:
    """Return the operations on indexes of tables that are neither created nor dropped."""
    tables = (ops.CreateTableOp, ops.DropTableOp)
    own = {table_of(each) for each in operations if isinstance(each, tables)}
    return [
        each
        for each in operations
        if isinstance(each, ops.CreateIndexOp | ops.DropIndexOp)
        and table_of(each) not in own
    ]


def mark(operations: Iterable[ops.MigrateOperation]) -> None:
    """Mark operations outside of the transaction so that they can be run again."""
    for each in operations:
        if isinstance(each, ops.AddColumnOp | ops.CreateIndexOp):
            each.if_not_exists = True
        if isinstance(each, ops.DropIndexOp):
            each.if_exists = True
        if isinstance(each, ops.CreateIndexOp | ops.DropIndexOp):
            each.kw["postgresql_concurrently"] = True


def frees_indexes(operation: ops.MigrateOperation) -> bool:
    """Tell whether an operation drops a foreign key, which needs a unique index."""
    is_key = getattr(operation, "constraint_type", None) == "foreignkey"
    return is_key or isinstance(operation, ops.DropTableOp)


def has_to_wait(
    operation: ops.CreateIndexOp | ops.DropIndexOp, shared: set[Any], frees: bool
) -> bool:
    """Tell whether something else may have to go before an operation on an index.

    A name in `shared` may not be free yet. A unique index may be needed by a foreign
    key that goes (`frees`), or by its rows until a constraint of its name is there.
    """
    is_shared = operation.index_name in shared
    if isinstance(operation, ops.CreateIndexOp):
        return is_shared
    return bool(operation.reverse().unique) and (is_shared or frees)


def table_of(operation: Any) -> tuple[str, str | None]:
    """Return the name of the table of an operation, and its schema."""
    return operation.table_name, operation.schema


def is_needed_first(
    operation: ops.MigrateOperation, tables: set[tuple[str, str | None]]
) -> bool:
    """Tell whether an index of one of these tables may need an operation first."""
    is_column = isinstance(operation, ops.AddColumnOp | ops.AlterColumnOp)
    return is_column and table_of(operation) in tables


def has_partitions(context: MigrationContext, table: str, schema: str | None) -> bool:
    """Tell whether a table of the database is divided into partitions."""
    preparer = context.dialect.identifier_preparer
    names = [preparer.quote(name) for name in (schema, table) if name]
    query = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:name)"
    assert context.connection is not None
    answer = context.connection.execute(
        text(query), {"name": single_percents(context.dialect, ".".join(names))}
    )
    return bool(answer.scalar())


@renderers.dispatch_for(ConcurrentIndexes)
def render_block(context: AutogenContext, block: ConcurrentIndexes) -> list[str]:
    """Return the lines of an autocommit block with its indexes."""
    lines = ["with op.get_context().autocommit_block():"]
    for each in block.ops:
        if isinstance(each, ops.CreateIndexOp):
            lines += drop_of_leftover(context, each)
        lines += render_op(context, each)
    # The empty line ends the block.
    return [*lines, ""]


def drop_of_leftover(context: AutogenContext, create: ops.CreateIndexOp) -> list[str]:
    """Return the lines that drop an index which a killed run has not finished.

    The lock waits for a session that still builds the index. The condition is a part of
    the statement, so that it is asked where the statement runs, also with `--sql`.
    """
    assert context.dialect is not None
    preparer = context.dialect.identifier_preparer
    index = create.to_index()
    assert index.table is not None
    schema = f"{preparer.quote_schema(create.schema)}." if create.schema else ""
    table = schema + preparer.quote(index.table.name)
    name = schema + str(preparer.format_index(index))
    table, name = (single_percents(context.dialect, each) for each in (table, name))
    statements = [
        "DO $$ BEGIN",
        f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE;",
        "IF EXISTS (SELECT FROM pg_index WHERE NOT indisvalid",
        f"AND indexrelid = to_regclass({literal(name)})",
        f"AND indrelid = to_regclass({literal(table)})",
        f") THEN DROP INDEX {name}; END IF; END $$",
    ]
    # A colon before a word would make it a parameter.
    texts = [repr(each.replace(":", r"\:") + "\n") for each in statements]
    return [
        "# Drop what a killed run may have left unfinished.",
        "op.execute(",
        *texts,
        ")",
    ]


def single_percents(dialect: Dialect, quoted: str) -> str:
    """Return a quoted name without the percent signs that its driver needs twice.

    text() doubles them, and so does the name of an identifier for some drivers.
    """
    doubles = dialect.identifier_preparer.quote("%") == '"%%"'
    return quoted.replace("%%", "%") if doubles else quoted


def literal(value: str) -> str:
    """Return text as a literal of SQL."""
    return "'" + value.replace("'", "''") + "'"
