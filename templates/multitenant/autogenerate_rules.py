"""What `alembic revision --autogenerate` writes and leaves out, by the option autogenerate_rules.

The rules come from Alembic's cookbook (https://alembic.sqlalchemy.org/en/latest/cookbook.html).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Column, MetaData
from sqlalchemy.schema import SchemaItem

log = logging.getLogger("alembic.env")

DEFAULT = "skip_empty skip_views"


def hooks(
    option: str | list[str] | None, metadata: MetaData | list[MetaData] | None
) -> dict[str, Any]:
    """Return the arguments of context.configure that apply the rules which the option names."""
    option = DEFAULT if option is None else option
    names = option.split() if isinstance(option, str) else option
    known = ["skip_views", "keep_unknown_tables", *REWRITES]
    for name in names:
        if name not in known:
            raise CommandError(
                f"Option autogenerate_rules names {name!r}: expected some of {', '.join(known)}."
            )
    tables = [
        table
        for each in ([metadata] if isinstance(metadata, MetaData) else metadata or [])
        for table in each.tables.values()
    ]
    views = {(table.schema, table.name) for table in tables if table.info.get("is_view")}
    schemas = {None, *(table.schema for table in tables)}

    def include_name(name: str | None, type_: str, _parents: Any) -> bool:
        return type_ != "schema" or name in schemas

    def include_object(
        item: Any, _name: str | None, type_: str, reflected: bool, compare_to: Any
    ) -> bool:
        if type_ != "table":
            return True
        if "skip_views" in names and (item.schema, item.name) in views:
            return False
        return not ("keep_unknown_tables" in names and reflected and compare_to is None)

    def process_revision_directives(
        context: MigrationContext, _revision: Any, directives: list[ops.MigrationScript]
    ) -> None:
        if context.opts["revision_context"].command_args["autogenerate"]:
            for name, rewrite in REWRITES.items():
                if name in names:
                    rewrite(context, directives)

    return {
        # Without it, each table of another schema that the models name would be created again.
        "include_schemas": len(schemas) > 1,
        "include_name": include_name,
        "include_object": include_object,
        "process_revision_directives": process_revision_directives,
    }


def drop_table_alone(_context: MigrationContext, directives: list[ops.MigrationScript]) -> None:
    """Do not drop the indexes of a table that is dropped as well."""
    for container in containers(directives):
        dropped = [
            (op.schema, op.table_name) for op in container.ops if isinstance(op, ops.DropTableOp)
        ]
        kept: list[ops.MigrateOperation] = []
        for op in container.ops:
            if isinstance(op, ops.ModifyTableOps) and (op.schema, op.table_name) in dropped:
                op.ops = [each for each in op.ops if not isinstance(each, ops.DropIndexOp)]
                if op.is_empty():
                    continue
            elif isinstance(op, ops.DropIndexOp) and (op.schema, op.table_name) in dropped:
                continue
            kept.append(op)
        container.ops = kept


def sort_columns(_context: MigrationContext, directives: list[ops.MigrationScript]) -> None:
    """Write the primary key of a new table first, then what was declared, then the timestamps.

    Only the order of the operation's columns changes: a copied column would bring a second copy of
    its constraints.
    """

    def place(item: SchemaItem) -> int:
        if not isinstance(item, Column):
            return 3
        if item.primary_key:
            return 0
        return 2 if item.name in {"created_at", "updated_at"} else 1

    for container in containers(directives):
        for op in container.ops:
            if isinstance(op, ops.CreateTableOp):
                op.columns = sorted(op.columns, key=place)


def if_exists(context: MigrationContext, directives: list[ops.MigrationScript]) -> None:
    """Write IF EXISTS and IF NOT EXISTS where tables and indexes are created and dropped.

    MySQL has it for tables alone, and a table that batch mode copies has it for none of its indexes.
    """
    mysql = context.dialect.name == "mysql" and not getattr(context.dialect, "is_mariadb", False)

    def mark(operations: Sequence[ops.MigrateOperation]) -> None:
        for op in operations:
            if isinstance(op, ops.CreateTableOp) or (
                isinstance(op, ops.CreateIndexOp) and not mysql
            ):
                op.if_not_exists = True
            elif isinstance(op, ops.DropTableOp) or (isinstance(op, ops.DropIndexOp) and not mysql):
                op.if_exists = True
            elif isinstance(op, ops.ModifyTableOps) and (
                not context.opts["render_as_batch"]
                or all(isinstance(each, ops.CreateIndexOp | ops.DropIndexOp) for each in op.ops)
            ):
                mark(op.ops)

    for container in containers(directives):
        mark(container.ops)


def skip_empty(context: MigrationContext, directives: list[ops.MigrationScript]) -> None:
    """Write no revision file when nothing changed.

    `alembic check` reads the directives afterwards, so that only those of `revision` are taken away.
    """
    if context.opts["fn"].__qualname__.startswith("revision.") and all(
        container.is_empty() for container in containers(directives)
    ):
        directives.clear()
        log.info("The models and the database agree: no revision is written.")


def containers(directives: list[ops.MigrationScript]) -> Iterable[ops.OpContainer]:
    """Return the operations of each upgrade and downgrade."""
    return [
        container
        for script in directives
        for container in [*script.upgrade_ops_list, *script.downgrade_ops_list]
    ]


# In the order in which they apply: what is empty is known last.
REWRITES: dict[str, Callable[[MigrationContext, list[ops.MigrationScript]], None]] = {
    "drop_table_alone": drop_table_alone,
    "sort_columns": sort_columns,
    "if_exists": if_exists,
    "skip_empty": skip_empty,
}
