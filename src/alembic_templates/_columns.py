"""What is known of columns from the revisions that have been rendered.

`op.alter_column()` need not say which type a column had, or whether it was NOT NULL, and only that
tells whether PostgreSQL has to look at each row. What a revision does by SQL of its own is not
understood: its tables are forgotten then, so that a finding is left out only where it is known to
be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Dialect, Table


@dataclass(frozen=True)
class Known:
    """The type of a column as SQL has it, None if it is not known, and whether it is NOT NULL."""

    type_name: str | None
    is_not_null: bool


@dataclass(frozen=True)
class Change:
    """What alter_column() does to a column: `new_type` is None if the type stays."""

    old: Known
    new_type: str | None


class Columns:
    """The columns of all tables, as the operations of the revisions have left them."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._tables: dict[str, dict[str, Known]] = {}

    def create_table(self, table: Table, **_options: Any) -> None:
        """Note a new table."""
        name = _name(table.name, table.schema)
        self._tables[name] = {column.name: self._known(column) for column in table.columns}

    def add_column(
        self, table: str, column: Column[Any], *, schema: str | None = None, **_options: Any
    ) -> None:
        """Note a new column."""
        self._tables.setdefault(_name(table, schema), {})[column.name] = self._known(column)

    def rename_table(self, old: str, new: str, *, schema: str | None = None) -> None:
        """Note the new name of a table."""
        self._tables[_name(new, schema)] = self._tables.pop(_name(old, schema), {})

    def alter_column(self, table: str, column: str, **change: Any) -> Change:
        """Note what changes, and return it with what was known before."""
        columns = self._tables.setdefault(_name(table, change.get("schema")), {})
        known = columns.pop(column, Known(None, is_not_null=False))
        given, nullable = change.get("existing_type"), change.get("existing_nullable")
        old = Known(
            known.type_name if given is None else self._type_name(given),
            is_not_null=known.is_not_null if nullable is None else not nullable,
        )
        new_type = None if change.get("type_") is None else self._type_name(change["type_"])
        stays_null = change.get("nullable")
        columns[change.get("name") or column] = Known(
            new_type if change.get("type_") is not None else old.type_name,
            is_not_null=old.is_not_null if stays_null is None else not stays_null,
        )
        return Change(old, new_type)

    def forget(self, table: str | None = None) -> None:
        """Forget a table, named as in SQL, or all of them."""
        if table is None:
            self._tables.clear()
        self._tables.pop((table or "").replace('"', "").lower(), None)

    def _known(self, column: Column[Any]) -> Known:
        return Known(self._type_name(column.type), is_not_null=not column.nullable)

    def _type_name(self, given: Any) -> str | None:
        """Return a type as the dialect writes it, None for one that it cannot write."""
        try:
            instance = given() if isinstance(given, type) else given
            return str(instance.compile(dialect=self._dialect))
        except Exception:  # noqa: BLE001 - a type of the owner's own may raise whatever it likes
            return None


def _name(table: str, schema: str | None) -> str:
    return f"{schema}.{table}".lower() if schema else table.lower()
