"""The rules of `lint`: which of squawk's are on, what they flag too much, and what they lack.

The measure is what stops an application or loses data on PostgreSQL, as strong_migrations has it
for Rails. A rule that a careful migration would break is off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from alembic_templates._offline import Statement, code
from alembic_templates._squawk import Problem

# Those of squawk's that are on. A list of what is on, and not of what is off, lets a newer squawk
# add rules without a surprise.
SQUAWK = [
    "adding-field-with-default",
    "adding-foreign-key-constraint",
    "adding-not-nullable-field",
    "adding-required-field",
    "adding-serial-primary-key-field",
    "ban-alter-domain-with-add-constraint",
    "ban-concurrent-index-creation-in-transaction",
    "ban-drop-column",
    "ban-drop-database",
    "ban-duplicate-column-assignments",
    "ban-truncate-cascade",
    "changing-column-type",
    "constraint-missing-not-valid",
    "disallowed-unique-constraint",
    "renaming-column",
    "renaming-table",
    "require-concurrent-index-creation",
    "require-concurrent-partition-detach",
    "require-concurrent-reindex",
    "syntax-error",
]

# Those that squawk does not have, with what they say.
OWN = {
    "adding-json-column": "Queries with DISTINCT or GROUP BY over all columns fail, since json "
    "cannot be compared: use jsonb.",
    "adding-serial-column": "The new column numbers each row, and nobody can read or write the "
    "table while it is rewritten: create a new table with it, and move the rows.",
    "backfill-in-transaction": "The table is locked by the ALTER TABLE before it until this "
    "UPDATE has finished and committed: write the rows in a revision of their own, in batches.",
    "recreating-table": "A table of this name that exists is dropped with its rows: leave "
    "DROP TABLE IF EXISTS out, or drop the table without IF EXISTS if that is meant.",
    "renaming-enum-value": "Code that still runs writes and expects the old value: add the new "
    "value, write that one, and change the rows.",
    "renaming-schema": "Code that still runs uses the old name: create the new schema, and move "
    "to it table by table.",
}

# These say that a statement cannot run, whatever it is about.
_OF_ANY_TABLE = {"ban-concurrent-index-creation-in-transaction", "syntax-error"}

_WORD = r'(?:"(?:[^"]|"")+"|[\w$]+)'
_NAME = rf"({_WORD}(?:\.{_WORD})*)"
_CREATE = (
    r"CREATE\s+(?:UNLOGGED\s+|(?:GLOBAL\s+|LOCAL\s+)?TEMP(?:ORARY)?\s+)?"
    rf"(?:TABLE|MATERIALIZED\s+VIEW)\s+(?:IF\s+NOT\s+EXISTS\s+)?{_NAME}"
)
_ALTER = rf"ALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?{_NAME}"
_INDEX = rf"CREATE\s+(?:UNIQUE\s+)?INDEX\b.*?\bON\s+(?:ONLY\s+)?{_NAME}"
_UPDATE = rf"UPDATE\s+(?:ONLY\s+)?{_NAME}"
_DROP = rf"DROP\s+TABLE\s+IF\s+EXISTS\s+{_NAME}"
_RENAME = rf"{_ALTER}\s+RENAME\s+TO\s+{_NAME}"
_SERIAL = (
    rf"{_ALTER}\s+ADD\s+(?:COLUMN\s+)?(?:IF\s+NOT\s+EXISTS\s+)?{_WORD}\s+(?:BIG|SMALL)?SERIAL\b"
)
_JSON = rf"{_ALTER}\s+ADD\s+(?:COLUMN\s+)?(?:IF\s+NOT\s+EXISTS\s+)?{_WORD}\s+JSON\b"
_ENUM = rf"ALTER\s+TYPE\s+{_NAME}\s+RENAME\s+VALUE\b"
_SCHEMA = rf"ALTER\s+SCHEMA\s+{_NAME}\s+RENAME\s+TO\b"

# What gives one value for all rows (or is a type with its length), so that PostgreSQL stores a
# default once and rewrites nothing. Squawk knows them where they have no arguments.
_STABLE = {
    *("now", "timezone", "date_trunc", "date_part", "to_char", "to_date", "to_timestamp"),
    *("coalesce", "cast", "nullif", "concat", "lower", "upper", "md5", "make_interval"),
    *("json_build_object", "jsonb_build_object", "json_build_array", "jsonb_build_array"),
    *("to_json", "to_jsonb", "current_setting", "row", "array", "interval", "time", "timestamp"),
    *("varchar", "character", "varying", "char", "numeric", "decimal", "bit", "and", "or", "not"),
}


class Tables:
    """What the statements of a revision do to tables, asked for by the number of a statement.

    `target` is the table that a statement changes, `made` the tables that the revision has made
    before it, and `altered` those that its transaction has locked by ALTER TABLE. Names are
    compared without quotes, and in small letters.
    """

    def __init__(self, statements: Sequence[Statement], *, in_transaction: bool) -> None:
        self.target: list[str | None] = []
        self.made: list[frozenset[str]] = []
        self.altered: list[frozenset[str]] = []
        made, altered = frozenset[str](), frozenset[str]()
        for statement in statements:
            sql = code(statement.text).strip()
            self.target.append(_named(_ALTER, sql) or _named(_INDEX, sql) or _named(_UPDATE, sql))
            self.made.append(made)
            self.altered.append(altered)
            if re.match(r"(BEGIN|COMMIT)\b", sql, re.IGNORECASE):
                in_transaction, altered = sql[:1] in "bB", frozenset()
            renamed = _match(_RENAME, sql)
            if renamed and _plain(renamed[1]) in made:
                made |= {_plain(renamed[2])}
            made |= {name for name in [_named(_CREATE, sql)] if name}
            if in_transaction:
                altered |= {name for name in [_named(_ALTER, sql)] if name}


def is_harmless(problem: Problem, statement: Statement, at: int, tables: Tables) -> bool:
    """Tell whether squawk flags what is safe, as can be seen from the rest of the revision.

    `at` is the number of the statement.
    """
    if problem.rule not in _OF_ANY_TABLE and tables.target[at] in tables.made[at]:
        return True  # nobody uses a table that this revision has made
    change = statement.change
    if problem.rule == "changing-column-type" and change:
        is_converted = re.search(r"\bUSING\b", code(statement.text), re.IGNORECASE)
        return not is_converted and is_widened(change.old.type_name, change.new_type)
    if problem.rule == "adding-not-nullable-field" and change:
        return change.old.is_not_null
    if problem.rule == "adding-field-with-default":
        return not problem.text.upper().startswith("GENERATED") and is_constant(problem.text)
    if problem.rule == "adding-required-field":  # a serial has a default, and a rule of its own
        return _match(_SERIAL, code(statement.text).strip()) is not None
    return False


def is_widened(old: str | None, new: str | None) -> bool:
    """Tell whether PostgreSQL changes a column's type without rewriting the table.

    These are types as they are written in SQL; without the old one it is not known. What depends on
    an index or on the session's time zone is not taken for safe.
    """
    if old is None or new is None:
        return False
    if old == new:
        return True
    (old_name, old_sizes), (new_name, new_sizes) = _parted(old), _parted(new)
    if {old_name, new_name} <= {"VARCHAR", "TEXT"}:
        return not new_sizes or (bool(old_sizes) and old_sizes[0] <= new_sizes[0])
    if old_name != new_name:
        return (old_name, new_name) == ("CIDR", "INET")
    if old_name in {"NUMERIC", "DECIMAL"}:
        old_scale, new_scale = [*old_sizes, 0][1:2], [*new_sizes, 0][1:2]
        return not new_sizes or (
            bool(old_sizes) and old_sizes[0] <= new_sizes[0] and old_scale == new_scale
        )
    if old_name.startswith(("TIME", "INTERVAL")):  # without a precision it is 6
        return (old_sizes or [6])[0] <= (new_sizes or [6])[0]
    return False


def is_constant(expression: str) -> bool:
    """Tell whether a default is one value for all rows, as far as its functions are known."""
    calls = re.findall(r'([\w."]+)\s*\(', code(expression))
    names = {call.lower().removeprefix("pg_catalog.") for call in calls}
    return names <= _STABLE and not re.search(r"\bSELECT\b", expression, re.IGNORECASE)


def own_problems(
    statements: Sequence[Statement], tables: Tables
) -> Iterator[tuple[Statement, str]]:
    """Give the statements that break a rule of OWN, each with the rule."""
    created = {_named(_CREATE, code(each.text).strip()) for each in statements} - {None}
    for at, statement in enumerate(statements):
        sql, made, target = code(statement.text).strip(), tables.made[at], tables.target[at]
        if _match(_JSON, sql) and target not in made:
            yield statement, "adding-json-column"
        if _match(_SERIAL, sql) and target not in made:
            yield statement, "adding-serial-column"
        if _match(_UPDATE, sql) and target in tables.altered[at] - made:
            yield statement, "backfill-in-transaction"
        if _named(_DROP, sql) in created - made:
            yield statement, "recreating-table"
        if _match(_ENUM, sql):
            yield statement, "renaming-enum-value"
        if _match(_SCHEMA, sql):
            yield statement, "renaming-schema"


def _match(pattern: str, sql: str) -> re.Match[str] | None:
    return re.match(pattern, sql, re.IGNORECASE | re.DOTALL)


def _named(pattern: str, sql: str) -> str | None:
    """Return the name of the table in a statement that matches, None if it does not."""
    match = _match(pattern, sql)
    return match and _plain(match[1])


def _plain(name: str) -> str:
    return name.replace('"', "").lower()


def _parted(type_name: str) -> tuple[str, list[int]]:
    """Return a type as its name and its sizes, such as NUMERIC and [10, 2]."""
    sizes = re.search(r"\(([\d, ]+)\)", type_name)
    name = " ".join(re.sub(r"\([\d, ]+\)", "", type_name).split())
    return name, [int(size) for size in sizes[1].split(",")] if sizes else []
