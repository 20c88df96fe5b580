"""Rule import_types: a revision imports what its column types need.

For a type that is not SQLAlchemy's, Alembic writes myapp.types.Money() and no import,
so that the revision ends in a NameError. It also writes the repr() of the type, which
often lacks arguments: ChoiceType of sqlalchemy-utils would be made without its choices.
So the code is tried here before it is written. If it does not make a type with the same
SQL, the type that a TypeDecorator is made of is written instead: both are the same to
the database.

autogenerate_rules.py uses this file, and an owner can delete it.
"""

import logging
from copy import copy
from typing import Any, Literal

import sqlalchemy
from alembic.autogenerate.api import AutogenContext

# It is private. If Alembic renamed it, autogenerate would end in an ImportError.
from alembic.autogenerate.render import _repr_type
from sqlalchemy import ARRAY, Integer, TypeDecorator, dialects
from sqlalchemy.types import TypeEngine

log = logging.getLogger("alembic.env")

# The names that script.py.mako and Alembic give to something else in a revision. A
# module of such a name is imported by another one.
TAKEN = {
    *("op", "sa", "batch_op", "Sequence", *dialects.__all__),
    *("revision", "down_revision", "branch_labels", "depends_on"),
    *("upgrade", "schema_upgrades", "data_upgrades"),
    *("downgrade", "schema_downgrades", "data_downgrades"),
}


def render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Return the code of a type that is not SQLAlchemy's, or of an ARRAY of it.

    Alembic calls it for each part of a revision. If it returns False, Alembic writes
    the code of that part. An owner who sets user_module_prefix writes the imports into
    script.py.mako.
    """
    if kind != "type" or context.opts["user_module_prefix"] is not None:
        return False
    if not is_sqlalchemys(item):
        return with_variants(item, context)
    # Alembic looks for the inner type by a regular expression, in which the characters
    # of its arguments have a meaning.
    if isinstance(item, ARRAY) and not is_sqlalchemys(item.item_type):
        outer, inner = copy(item), Integer()
        outer.item_type = inner
        code = _repr_type(item.item_type, context)
        return _repr_type(outer, context).replace(_repr_type(inner, context), code, 1)
    return False


def is_sqlalchemys(type_: TypeEngine[Any]) -> bool:
    """Tell whether a type is one of SQLAlchemy's own."""
    return type(type_).__module__.startswith("sqlalchemy.")


def with_variants(type_: TypeEngine[Any], context: AutogenContext) -> str:
    """Return the code of a type, with the types that replace it on other databases."""
    plain = copy(type_)
    vars(plain).pop("_variant_mapping", None)
    code = code_of(plain, context)
    for dialect, variant in sorted(type_._variant_mapping.items()):
        code += f".with_variant({_repr_type(variant, context)}, {dialect!r})"
    return code


def code_of(type_: TypeEngine[Any], context: AutogenContext) -> str:
    """Return the code of a type, and add its import to those of the revision.

    If no code makes the type, Alembic's is returned, and a warning logged.
    """
    imports = set(context.imports)
    module, place = type(type_).__module__, type(type_).__module__
    line = f"import {module}"
    if module.partition(".")[0] in TAKEN:
        place = module.replace(".", "_") + "_module"
        line = f"import {module} as {place}"
    context.imports.add(line)
    arguments = repr(type_).removeprefix(type(type_).__name__)
    # A default may be an attribute of a class, such as astext_type of JSONB.
    places = (vars(each) for each in (*reversed(type(type_).__mro__), type_))
    values = (value for each in places for value in each.values())
    parts = {repr(each): each for each in values if isinstance(each, TypeEngine)}
    for text, part in parts.items():
        if text in arguments:
            arguments = arguments.replace(text, _repr_type(part, context))
    code = f"{place}.{type(type_).__qualname__}{arguments}"
    # A class of the program's main file cannot be imported from another program.
    if module != "__main__" and makes(code, type_, context):
        return code
    if isinstance(type_, TypeDecorator):
        for inner in (type_.impl_instance, type_.load_dialect_impl(context.dialect)):
            if sql_of(inner, context) == sql_of(type_, context):
                context.imports.intersection_update(imports)
                return _repr_type(inner, context)
    log.warning(
        "The code %s in the new revision does not make the type again, since its "
        "repr() lacks arguments: correct it.",
        code,
    )
    return code


def makes(code: str, type_: TypeEngine[Any], context: AutogenContext) -> bool:
    """Tell whether code makes a type with the same SQL, with the revision's imports."""
    names: dict[str, Any] = {"sa": sqlalchemy}
    try:  # the revision runs the same
        exec("\n".join([*context.imports, f"made = {code}"]), names)  # noqa: S102
    except Exception:  # noqa: BLE001 - an application's own class may raise anything
        return False
    made = names["made"]
    return type(made) is type(type_) and sql_of(made, context) == sql_of(type_, context)


def sql_of(type_: TypeEngine[Any], context: AutogenContext) -> str | None:
    """Return a type in the database's own words, None if it has no such type."""
    try:
        return type_.compile(dialect=context.dialect)
    except Exception:  # noqa: BLE001 - another database may have the type
        return None
