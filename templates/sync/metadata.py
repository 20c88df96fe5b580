"""The models' metadata, with which autogenerate compares the database.

The option target_metadata names it, or a program puts it into
Config.attributes["target_metadata"]. It is checked before it is used: a class whose
module was never imported is not in it, and without models at all autogenerate would
propose to drop every table.
"""

from importlib import import_module
from operator import attrgetter
from typing import Any

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError, to_list
from sqlalchemy import MetaData, Table

from .optional_files import is_here, require_file
from .settings import Settings

Models = MetaData | list[MetaData] | None

# A package that registers objects other than tables, such as views or functions, keeps
# them in a collection of one of these kinds in MetaData.info.
COLLECTIONS = (dict, list, set)


def find_metadata(settings: Settings) -> Models:
    """Return the MetaData that the program gives, or that the option names.

    Several are a list, and it is None if there is none. Raises CommandError for what is
    no MetaData, and for what cannot be imported.
    """
    given: Models = settings.config.attributes.get("target_metadata")
    if given is None:
        found = [load_metadata(name) for name in settings.target_metadata]
        return found[0] if len(found) == 1 else found or None
    for each in to_list(given):
        if not isinstance(each, MetaData):
            raise CommandError(
                f'Config.attributes["target_metadata"] is a {type(each).__name__}: '
                "expected a sqlalchemy.MetaData, or a list of them."
            )
    return given


def load_metadata(name: str) -> MetaData:
    """Import a MetaData by its name, such as myapp.models:Base.metadata.

    Raises CommandError that says what the name leads to instead.
    """
    if "," in name:
        raise CommandError(
            f"Option target_metadata names {name!r}: separate several by spaces, "
            "without a comma."
        )
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise CommandError(
            f"Option target_metadata names {name!r}: expected "
            "package.module:attribute, such as myapp.models:Base.metadata."
        )
    metadata = load_attribute("target_metadata", name)
    if not isinstance(metadata, MetaData):
        raise CommandError(
            f"Option target_metadata names {name!r}, which is a "
            f"{type(metadata).__name__}: expected a sqlalchemy.MetaData, such as the "
            "attribute metadata of a declarative base."
        )
    return metadata


def load_attribute(option: str, name: str) -> Any:
    """Import what an option names as package.module:attribute; dots may follow.

    `option` is named in errors. Whatever a module raises while it is imported is raised
    as CommandError, with the first error as its cause.
    """
    module, _, attribute = name.partition(":")
    try:
        return attrgetter(attribute)(import_module(module))
    except Exception as error:
        raise CommandError(
            f"Option {option} names {name!r}, which cannot be imported "
            f"({type(error).__name__}: {error}): correct the name, the module, or "
            "prepend_sys_path."
        ) from error


def tables_of(metadata: Models) -> list[Table]:
    """Return the tables of all the models."""
    return [table for each in to_list(metadata, []) for table in each.tables.values()]


def autogenerate_hooks(settings: Settings, metadata: Models) -> dict[str, Any]:
    """Return the arguments of context.configure that tell autogenerate where to look.

    Those of autogenerate_rules.py are among them, unless the owner has deleted that
    file. Raises CommandError if the file is gone and the option autogenerate_rules asks
    for it.
    """
    tables = tables_of(metadata)
    schemas = {None, *(table.schema for table in tables)}

    def include_name(name: str | None, type_: str, _parents: Any) -> bool:
        # Alembic leaves out only the version table of this run. One of the same name in
        # another schema, such as a tenant's, would be dropped.
        if type_ == "table":
            return name != settings.version_table
        return type_ != "schema" or name in schemas

    # Without include_schemas, the tables of a schema would be created again each time.
    hooks = {"include_schemas": len(schemas) > 1, "include_name": include_name}
    if settings.autogenerate_rules:
        require_file("autogenerate_rules", "option autogenerate_rules")
    if not is_here("autogenerate_rules"):
        return hooks
    from . import autogenerate_rules  # type: ignore[attr-defined,unused-ignore]

    return {**hooks, **autogenerate_rules.rules(settings, tables)}


def require_models(migrations: MigrationContext, settings: Settings) -> None:
    """Raise CommandError if the command compares models, and there are none.

    `check` and `revision --autogenerate` compare; other commands need no models.
    """
    revision = migrations.opts.get("revision_context")
    if revision is None or not revision.command_args["autogenerate"]:
        return
    is_given = settings.config.attributes.get("target_metadata") is not None
    names = [] if is_given else settings.target_metadata
    require_tables(migrations.opts["target_metadata"], names)


def require_tables(metadata: Models, names: list[str]) -> None:
    """Raise CommandError without a MetaData, and for one that has no models in it.

    `names` says in the error which one it is; it is empty for a program's. Objects that
    a package has registered in `info` count as models, too.
    """
    if metadata is None:
        raise CommandError(
            "There are no models to compare the database with: set target_metadata = "
            "package.module:attribute in the Alembic configuration, or "
            'Config.attributes["target_metadata"] in a program.'
        )
    for number, each in enumerate(to_list(metadata)):
        registered = [x for x in each.info.values() if isinstance(x, COLLECTIONS)]
        if not each.tables and not any(registered):
            name = names[number] if names else "that the program gives"
            raise CommandError(
                f"The MetaData {name} has no tables, since no module with models was "
                "imported: name one in target_metadata that imports all models, or "
                "import them first."
            )
