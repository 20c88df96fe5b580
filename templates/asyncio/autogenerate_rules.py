"""What `alembic revision --autogenerate` writes and leaves out, by autogenerate_rules.

The rules come from Alembic's cookbook
(https://alembic.sqlalchemy.org/en/latest/cookbook.html). Without them, autogenerate
proposes to create a table for each view that has a model, and writes revisions in which
nothing happens. The README lists the rules with their effects.

To add a rule that changes what was found, write a function such as sort_columns, and
name it in REWRITES. An owner who needs no rules can delete this file.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Column, Constraint, Table
from sqlalchemy.schema import SchemaItem

from .optional_files import is_here, require_file
from .settings import Settings, command_of

log = logging.getLogger("alembic.env")

# The rules that have a file of their own, which an owner can delete.
MODULES = ["import_types", "concurrent_indexes"]

# The rules that apply if the option autogenerate_rules is not set.
DEFAULT = ["skip_empty", "skip_views", "import_types"]

Directives = list[ops.MigrationScript]


def rules(settings: Settings, tables: list[Table]) -> dict[str, Any]:
    """Return the arguments of context.configure that apply the rules of the settings.

    `tables` are those of the models; `info={"is_view": True}` tells that one is a view.
    Raises CommandError for a name that is not that of a rule.
    """
    names = settings.autogenerate_rules
    names = DEFAULT if names is None else names
    known = ["skip_views", "keep_unknown_tables", *REWRITES, *MODULES, "skip_empty"]
    for name in names:
        if name not in known:
            raise CommandError(
                f"Option autogenerate_rules names {name!r}: expected some of "
                f"{', '.join(known)}."
            )
        if name in MODULES and settings.autogenerate_rules:
            require_file(name, "option autogenerate_rules")
    views = {(each.schema, each.name) for each in tables if each.info.get("is_view")}
    applied = Rules(settings, names, views)
    hooks: dict[str, Any] = {
        "include_object": applied.include_object,
        "process_revision_directives": applied.process_revision_directives,
    }
    if "import_types" in names and is_here("import_types"):
        from .import_types import (  # type: ignore[import,unused-ignore]
            render_item,
        )

        hooks["render_item"] = render_item
    return hooks


@dataclass(frozen=True)
class Rules:
    """The rules in use, as the two functions that Alembic calls.

    `views` has the schema and the name of each table of the models that is a view.
    """

    settings: Settings
    names: list[str]
    views: set[tuple[str | None, str]]

    def include_object(
        self, item: Any, _name: Any, type_: str, reflected: bool, compare_to: Any
    ) -> bool:
        """Tell whether autogenerate compares a table; other objects it always compares.

        See "Don't emit CREATE TABLE statements for Views" in the cookbook. `reflected`
        says that the table was found in the database, and `compare_to` is then the one
        of the models, None if they have none.
        """
        if type_ != "table":
            return True
        if "skip_views" in self.names and (item.schema, item.name) in self.views:
            return False
        is_unknown = reflected and compare_to is None
        return not ("keep_unknown_tables" in self.names and is_unknown)

    def process_revision_directives(
        self, context: MigrationContext, _revision: Any, directives: Directives
    ) -> None:
        """Change what autogenerate has found, before it is written to a file.

        A revision without --autogenerate is left alone: it is meant to be empty.
        """
        if not context.opts["revision_context"].command_args["autogenerate"]:
            return
        for name, rewrite in REWRITES.items():
            if name in self.names:
                rewrite(context, directives)
        if "concurrent_indexes" in self.names and is_here("concurrent_indexes"):
            from .concurrent_indexes import (  # type: ignore[import,unused-ignore]
                build_concurrently,
            )

            shared = shared_names(directives)
            build_concurrently(context, containers(directives), shared)
        # `check` reads the list afterwards, and fails if it is empty.
        is_revision = command_of(self.settings, context) == "revision"
        if "skip_empty" in self.names and is_revision:
            skip_empty(directives)


def drop_table_alone(_context: MigrationContext, directives: Directives) -> None:
    """Do not drop the indexes of a table that is dropped as well.

    DROP TABLE drops them. MySQL refuses to drop an index alone if a foreign key needs
    it ("Don't emit DROP INDEX when the table is to be dropped as well" in the
    cookbook).
    """
    for container in containers(directives):
        dropped = {
            (each.schema, each.table_name)
            for each in container.ops
            if isinstance(each, ops.DropTableOp)
        }
        kept: list[ops.MigrateOperation] = []
        for each in container.ops:
            if isinstance(each, ops.DropIndexOp):
                if (each.schema, each.table_name) in dropped:
                    continue
            elif isinstance(each, ops.ModifyTableOps) and each.ops:
                if (each.schema, each.table_name) in dropped:
                    each.ops = without_drop_index(each.ops)
                if each.is_empty():
                    continue
            kept.append(each)
        container.ops = kept


def without_drop_index(
    operations: Sequence[ops.MigrateOperation],
) -> list[ops.MigrateOperation]:
    """Return the operations that are no DROP INDEX."""
    return [each for each in operations if not isinstance(each, ops.DropIndexOp)]


def sort_columns(_context: MigrationContext, directives: Directives) -> None:
    """Write a new table's primary key first, and its timestamps last.

    The cookbook ("Apply Custom Sorting to Table Columns within CREATE TABLE") copies
    the columns. Here only the order changes, since a copied column would bring a second
    copy of its constraints.
    """
    for container in containers(directives):
        for each in container.ops:
            if isinstance(each, ops.CreateTableOp):
                each.columns = sorted(each.columns, key=place_of)


def place_of(item: SchemaItem) -> int:
    """Return the place of a column in CREATE TABLE; constraints come last."""
    if not isinstance(item, Column):
        return 4
    if item.primary_key:
        return 0
    return {"created_at": 2, "updated_at": 3}.get(item.name, 1)


def if_exists(context: MigrationContext, directives: Directives) -> None:
    """Write IF EXISTS and IF NOT EXISTS for tables and indexes.

    A migration that stopped halfway can then be run again, also on a database that has
    committed a part of it.
    """
    shared = shared_names(directives)
    for container in containers(directives):
        mark_if_exists(context, container.ops, shared)


def mark_if_exists(
    context: MigrationContext,
    operations: Sequence[ops.MigrateOperation],
    shared: set[Any],
) -> None:
    """Mark some operations, and the operations inside them, with IF [NOT] EXISTS.

    MySQL has no such form for indexes. In batch mode, a table that is copied cannot
    have it for its indexes either. An index whose name is `shared` does not get it.
    """
    is_mariadb = getattr(context.dialect, "is_mariadb", False)
    has_index_form = is_mariadb or context.dialect.name != "mysql"
    index_ops = (ops.CreateIndexOp, ops.DropIndexOp)
    for each in operations:
        if isinstance(each, index_ops) and not has_index_form:
            continue
        if isinstance(each, ops.CreateIndexOp) and each.index_name in shared:
            continue
        if isinstance(each, ops.CreateTableOp | ops.CreateIndexOp):
            each.if_not_exists = True
        elif isinstance(each, ops.DropTableOp | ops.DropIndexOp):
            each.if_exists = True
        elif isinstance(each, ops.ModifyTableOps):
            only_indexes = all(isinstance(one, index_ops) for one in each.ops)
            if only_indexes or not context.opts["render_as_batch"]:
                mark_if_exists(context, each.ops, shared)


def skip_empty(directives: Directives) -> None:
    """Write no revision file if nothing changed, and log that.

    See "Don't Generate Empty Migrations with Autogenerate" in the cookbook.
    """
    if all(container.is_empty() for container in containers(directives)):
        directives.clear()
        log.info("The models and the database agree: no revision is written.")


def flattened(
    operations: Iterable[ops.MigrateOperation],
) -> Iterable[ops.MigrateOperation]:
    """Give the operations one by one, also those that are grouped by their table."""
    for each in operations:
        if isinstance(each, ops.ModifyTableOps):
            yield from each.ops
        else:
            yield each


def shared_names(directives: Directives) -> set[Any]:
    """Return the names that the indexes of two tables have, or an index and a constraint.

    IF NOT EXISTS would take the one that goes for the one that comes, which would then
    be missing.
    """
    users: dict[Any, set[Any]] = {}
    for container in containers(directives):
        for each in flattened(container.ops):
            if isinstance(each, ops.CreateIndexOp | ops.DropIndexOp):
                users.setdefault(each.index_name, set()).add(each.table_name)
            elif isinstance(each, ops.AddConstraintOp | ops.DropConstraintOp):
                name = getattr(each, "constraint_name", None)
                users.setdefault(name, set()).add(None)
            elif isinstance(each, ops.CreateTableOp):
                for item in each.columns:
                    if isinstance(item, Constraint):
                        users.setdefault(item.name, set()).add(None)
    return {name for name, by in users.items() if len(by) > 1}


def containers(directives: Directives) -> Iterable[ops.OpContainer]:
    """Give the operations of each upgrade and of each downgrade."""
    for script in directives:
        yield from script.upgrade_ops_list
        yield from script.downgrade_ops_list


# They apply in this order, and before skip_empty, since they may leave nothing.
REWRITES: dict[str, Callable[[MigrationContext, Directives], None]] = {
    "drop_table_alone": drop_table_alone,
    "sort_columns": sort_columns,
    "if_exists": if_exists,
}
