from geoalchemy2 import alembic_helpers

rules = dict(hooks)


def include_object(*found: Any) -> bool:
    """Leave the tables of PostGIS alone, and what the rules leave alone."""
    return alembic_helpers.include_object(*found) and rules["include_object"](*found)


def create_indexes_once(migrations: Any, revision: Any, directives: Any) -> None:
    """Write operations that create no index with the table, and apply the rules."""
    alembic_helpers.writer(migrations, revision, directives)
    rules["process_revision_directives"](migrations, revision, directives)


hooks["include_object"] = include_object
hooks["process_revision_directives"] = create_indexes_once
