"""Who the tenants are: the names that the option `tenants` gives, and those that a command names."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from alembic.util import CommandError
from sqlalchemy import URL, Connection, MetaData
from sqlalchemy.exc import SQLAlchemyError

# Longer ones are cut by PostgreSQL, and could meet another tenant's; in bytes there, in characters here.
LONGEST = {"postgresql": 63, "mysql": 64, "mariadb": 64}

# Schemas and databases in which no tenant's tables may stand.
SYSTEM = {
    "postgresql": {"information_schema"},
    "mysql": {"information_schema", "mysql", "performance_schema", "sys"},
}
SYSTEM["mariadb"] = SYSTEM["mysql"]
DATABASES = {**SYSTEM, "postgresql": {"postgres", "template0", "template1"}}


def asks_database(option: Any) -> bool:
    """Tell whether the option `tenants` is a SELECT statement or a function."""
    return isinstance(option, str) and bool(is_select(option) or is_function(option))


def is_select(option: str) -> bool:
    """Tell whether the option is a statement and not a list of names."""
    return bool(re.match(r"\s*(SELECT|WITH)\s", option, re.IGNORECASE))


def is_function(option: str) -> bool:
    """Tell whether the option is package.module:function."""
    return bool(re.fullmatch(r"\s*[\w.]+:[\w.]+\s*", option))


def listed(option: Any, connection: Connection | None) -> list[str]:
    """Return the names of the fleet, in their order.

    `option` is a list of names separated by spaces (an array in pyproject.toml), a SELECT statement
    or package.module:function, which is called with the connection. Raises CommandError where it is
    not set, or gives anything but names, each of them once.
    """
    if not option:
        raise CommandError(
            "Option tenants is not set: expected names separated by spaces, a SELECT statement, or "
            "package.module:function, called with a connection."
        )
    if not isinstance(option, str | list):
        raise CommandError(f"Option tenants is {option!r}: expected text or a list of names.")
    if isinstance(option, list):
        names = option
    elif not asks_database(option):
        names = option.split()
    elif connection is None:
        raise CommandError(
            "Option tenants asks a database, and the URL names one for each tenant: set option "
            "tenants_url to the URL of the database that knows the tenants."
        )
    elif is_select(option):
        names = selected(option, connection)
    else:
        names = called(option.strip(), connection)
    if not names:
        raise CommandError(
            "The fleet is empty: option tenants gives no name, expected one or more."
        )
    for name in names:
        if not isinstance(name, str) or not name:
            raise CommandError(
                f"Option tenants gives {name!r} for a name: expected text that is not empty."
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise CommandError(
            f"Option tenants gives {', '.join(map(repr, twice))} more than once: expected each name "
            "once."
        )
    return names


def selected(option: str, connection: Connection) -> list[Any]:
    """Return the first column of a SELECT."""
    try:
        # As it is: a colon or a % in it is no parameter.
        options = {"no_parameters": True}
        return list(connection.exec_driver_sql(option, execution_options=options).scalars())
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise CommandError(
            f"The SELECT of option tenants failed ({reason}): correct it, or the database that it asks."
        ) from error


def called(option: str, connection: Connection) -> list[Any]:
    """Call the function that the option names, and return what it gives."""
    module, _, attribute = option.partition(":")
    try:
        function: Callable[[Connection], Iterable[str]] = attrgetter(attribute)(
            import_module(module)
        )
    except Exception as error:
        raise CommandError(
            f"Option tenants names {option!r}, which cannot be imported "
            f"({type(error).__name__}: {error}): correct the name, the module, or prepend_sys_path."
        ) from error
    try:
        found = function(connection)
        if isinstance(found, str):
            raise TypeError("it returned one text")
        return list(found)
    except Exception as error:
        raise CommandError(
            f"Option tenants names {option!r}, which failed ({type(error).__name__}: {error}): "
            "expected a function that takes a connection and returns names."
        ) from error


def chosen(given: Any, option: Any, fleet: Callable[[], list[str]]) -> list[str]:
    """Return the names that a command is given, all that `fleet` gives where it is given none.

    A text is what stands after `-x tenant=`: a name, several separated by commas, or `all`. A list
    of a program holds names as they are. `option` is what `fleet` reads.
    """
    if given is None:
        return fleet()
    wrong = CommandError(
        f"The tenant is given as {given!r}: expected a name, names separated by commas, or all."
    )
    if not isinstance(given, str):
        if not isinstance(given, list | tuple):
            raise wrong
        names = list(given)
    elif not several(given):
        names = [given]
    else:
        listed = fleet() if option or given == "all" else []
        if given in listed:
            raise CommandError(
                f"Tenant {given!r} cannot be named in one text, where a comma and 'all' have a "
                'meaning: put a list of names into Config.attributes["tenant"].'
            )
        names = listed if given == "all" else given.split(",")
    if not names or not all(isinstance(name, str) and name for name in names):
        raise wrong
    return list(dict.fromkeys(names))


def several(given: Any) -> bool:
    """Tell whether a text means more than one tenant."""
    return isinstance(given, str) and (given == "all" or "," in given)


def check(names: Iterable[str], dialect: str, url: URL | None) -> None:
    """Raise CommandError for a name that the database would change, or read as something else.

    `url` is the one with {tenant}, where each tenant has its own.
    """
    for name in names:
        reason = fault_in_url(name, url) if url else fault(name, dialect)
        if reason:
            raise CommandError(f"The name {name!r} cannot be a tenant's: {reason}.")


def fault(name: str, dialect: str) -> str | None:
    """Say why a name cannot be that of a schema, or of a database addressed by USE."""
    if is_servers_own(name, dialect, SYSTEM) or (dialect == "postgresql" and name[:3] == "pg_"):
        return "it is the server's own"
    if dialect == "postgresql" and name == "$user":
        return "on a search path it means the name of the user"
    return fault_of_any(name, dialect)


def is_servers_own(name: str, dialect: str, known: dict[str, set[str]]) -> bool:
    """Tell whether a schema or a database is one of those that come with the server."""
    return (name if dialect == "postgresql" else name.lower()) in known.get(dialect, ())


def fault_of_any(name: str, dialect: str) -> str | None:
    """Say why the server would not take a name as it is."""
    if "\0" in name or any("\ud800" <= each <= "\udfff" for each in name):
        return "it has a character that no database takes"
    size = len(name.encode()) if dialect == "postgresql" else len(name)
    if size > LONGEST.get(dialect, size):
        kind = "bytes" if dialect == "postgresql" else "characters"
        return f"it has {size} {kind}, and the server takes {LONGEST[dialect]}"
    return None


def fault_in_url(name: str, url: URL) -> str | None:
    """Say why a name cannot stand in a URL: it must not lead to another file or host."""
    refused = {"/", "\\", "@", "%", "..", "\0"}
    if "{tenant}" in (url.host or "") or str(url.database).startswith("file:"):
        refused |= {"?", "#", ":", ",", "&"}
    found = sorted(each for each in refused if each in name)
    if found:
        return f"in a URL it would leave its place, because of {found[0]!r}"
    filled = url_of(name, url)
    if url.get_backend_name() == "sqlite" and filled.database == ":memory:":
        return "SQLite takes it for a database in memory"
    if is_servers_own(filled.database or "", url.get_backend_name(), DATABASES):
        return "it is the server's own"
    for part in (filled.database, filled.username):
        reason = fault_of_any(part or "", url.get_backend_name())
        if reason:
            return reason
    return None


def in_url(url: URL) -> bool:
    """Tell whether a URL has {tenant} in it, which gives each a database of its own.

    Raises CommandError where it stands where a name could mean more than a name, or has to.
    """
    elsewhere = [str(url.password or ""), *map(str, url.query.values())]
    if any("{tenant}" in each for each in elsewhere):
        raise CommandError(
            "The database URL has {tenant} in its password or its query: expected it in the name "
            "of the database, of the user or of the host."
        )
    found = any("{tenant}" in (each or "") for each in (url.database, url.username, url.host))
    if not found and url.get_backend_name() not in LONGEST:
        raise CommandError(
            f"A fleet on {url.get_backend_name()} has a database for each tenant: write "
            "{tenant} for its name in the database URL."
        )
    return found


def leads_to_tenant(url: URL, configured: str | None) -> bool:
    """Tell whether a connection of the caller leads to a tenant's own database."""
    return url.get_backend_name() not in LONGEST or "{tenant}" in (configured or "")


def check_place(name: str, template: URL, connected: URL) -> None:
    """Raise CommandError where a connection does not lead to the database of a tenant."""
    expected = url_of(name, template).database
    same = expected == connected.database
    if template.get_backend_name() == "sqlite":
        same = Path(str(expected)).resolve() == Path(str(connected.database)).resolve()
    if not same:
        raise CommandError(
            f"The connection leads to database {connected.database!r}, and that of tenant {name!r} "
            f"is {expected!r}: pass a connection to the tenant that is named."
        )


def url_of(name: str, url: URL) -> URL:
    """Fill a name into a URL, in its parts, where it needs no quoting and cannot leave its place."""

    def filled(part: str | None) -> str | None:
        return part and part.replace("{tenant}", name)

    return url.set(
        database=filled(url.database), username=filled(url.username), host=filled(url.host)
    )


def without_schemas(
    metadata: MetaData | list[MetaData] | None,
) -> MetaData | list[MetaData] | None:
    """Return the models' metadata; raise CommandError where a table names a schema."""
    for each in [metadata] if isinstance(metadata, MetaData) else metadata or []:
        for table in each.tables.values():
            if table.schema:
                raise CommandError(
                    f"Table {table.name!r} of the models is in schema {table.schema!r}: expected "
                    "tables without one, which each tenant has in its own; give the tables of a "
                    "shared schema an environment of their own."
                )
    return metadata


def version_table(options: dict[str, str]) -> str:
    """Return the name of the version table, which stands in the schema of each tenant."""
    if "version_table_schema" in options:
        raise CommandError(
            "Option version_table_schema has no meaning in a fleet, where each tenant's version "
            "stands in its own schema: take the option away."
        )
    return options.get("version_table", "alembic_version")
