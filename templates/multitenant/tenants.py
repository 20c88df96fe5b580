"""Who the tenants are: those that the option `tenants` gives, or that a command names.

The option is a list of names, a SELECT, or a function of the application. A name that
is not right stops the run before anything is changed. A fleet without a tenant is an
error as well: a SELECT on the wrong database would otherwise end with "0 upgraded",
which looks like success.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alembic.util import CommandError
from sqlalchemy import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from .connections import first_line
from .database_url import location, parse_url
from .fleet_settings import FleetSettings
from .metadata import load_attribute


@dataclass(frozen=True)
class Script:
    """The statements of a command on a tenant, and the revisions it leads to.

    `statements` has a list for each revision, in their order.
    """

    statements: list[list[str]]
    target: str


@dataclass(frozen=True)
class Tenant:
    """One tenant of a run, and what is known of it before the run.

    `url` leads to a database of its own; it is None if the tenant has a schema of one
    database, or if the caller's connection leads to it. `schema` is that schema, None
    if the connection leads to the tenant's own database. `has_table`
    says whether it has a version table, and `heads` are the revisions in it; both are
    None if they have not been read. `script` is run in place of the revisions if the
    tenant is still at `heads` then. In the last try (`is_last_try`), the run waits
    lock_timeout seconds if another run has the tenant; before, it does not wait.
    """

    name: str
    url: URL | None = None
    schema: str | None = None
    is_missing: bool = False
    has_table: bool | None = None
    heads: tuple[str, ...] | None = None
    script: Script | None = None
    is_last_try: bool = False


def part_of(name: str, parts: int) -> int:
    """Return the number of the part of a fleet that a tenant belongs to, from 0.

    It depends on the name alone, so a tenant stays in its part if others come and go.
    Python's hash() would not do: it differs from process to process.
    """
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % parts


def asks_database(option: Any) -> bool:
    """Tell whether the option `tenants` is a SELECT statement or a function."""
    return isinstance(option, str) and (is_select(option) or is_function(option))


def is_select(option: str) -> bool:
    """Tell whether the option is a statement: a list of names has no such beginning."""
    return bool(re.match(r"\s*(SELECT|WITH)\s", option, re.IGNORECASE))


def is_function(option: str) -> bool:
    """Tell whether the option is package.module:function."""
    return bool(re.fullmatch(r"\s*[\w.]+:[\w.]+\s*", option))


def listed(
    option: str | list[Any] | None, connection: Connection | None
) -> list[Tenant]:
    """Return all tenants, in the order of the option; they have a URL if it gives one.

    A SELECT or a function uses `connection`. Raises CommandError if the option is not
    set, if it gives no name, or anything else than text, or a name twice: a tenant that
    is listed twice would be migrated by two workers at once.
    """
    found = read_names(option, connection)
    if not found:
        raise CommandError(
            "The fleet is empty: option tenants gives no name, expected one or more."
        )
    pairs = [each for each in found if is_row(each)]
    if pairs and len(pairs) < len(found):
        raise CommandError(
            "Option tenants gives some tenants with a URL and some without: expected a "
            "URL for each of them, or for none."
        )
    tenants = [with_url(each) for each in pairs] or [
        Tenant(require_name(each)) for each in found
    ]
    counts = Counter(each.name for each in tenants)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise CommandError(
            f"Option tenants gives {', '.join(map(repr, twice))} more than once: "
            "expected each name once."
        )
    refuse_same_place(tenants)
    return tenants


def is_row(value: Any) -> bool:
    """Tell whether a value is a row of a SELECT, a tuple or a list."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def require_name(name: Any) -> str:
    """Return the name of a tenant; raise CommandError if it is no text, or empty."""
    if not isinstance(name, str) or not name:
        is_short = isinstance(name, str | int | float | None)
        shown = repr(name) if is_short else f"a value of type {type(name).__name__}"
        raise CommandError(
            f"Option tenants gives {shown} for a name: expected text that is not empty."
        )
    return name


def with_url(pair: Sequence[Any]) -> Tenant:
    """Return the tenant of a pair, a name and the URL of its database.

    Raises CommandError, which never shows the URL: it may contain a password.
    """
    if len(pair) != 2:
        raise CommandError(
            f"Option tenants gives a row of {len(pair)} values: expected a name, or a "
            "name and the URL of its database."
        )
    if "://" in str(pair[0]):
        raise CommandError(
            "Option tenants gives a URL for a name: expected the name first, and then "
            "the URL."
        )
    name, url = require_name(pair[0]), pair[1]
    if not isinstance(url, URL):
        if not isinstance(url, str) or not url:
            raise CommandError(
                f"Option tenants gives tenant {name!r} no URL: expected "
                "dialect+driver://user:password@host/name."
            )
        url = parse_url(url, f"The URL of tenant {name!r}")
    return Tenant(name, url=url)


def refuse_same_place(tenants: list[Tenant]) -> None:
    """Raise CommandError if two tenants have one URL.

    The database that the second one should have would never be migrated.
    """
    places: dict[Any, str] = {}
    for tenant in tenants:
        if tenant.url is not None:
            place = location(tenant.url), *sorted(tenant.url.query.items())
            if place in places:
                raise CommandError(
                    f"Option tenants gives {places[place]!r} and {tenant.name!r} the "
                    "URL of one database: expected a database for each."
                )
            places[place] = tenant.name


def read_names(
    option: str | list[Any] | None, connection: Connection | None
) -> list[Any]:
    """Return what the option gives, without a look at it.

    Raises CommandError if it is not set, or needs a connection and there is none.
    """
    if not option:
        raise CommandError(
            "Option tenants is not set: expected names separated by spaces, a SELECT "
            "statement, or package.module:function, called with a connection."
        )
    if isinstance(option, list):
        return option
    if not asks_database(option):
        return names_in(option)
    if connection is None:
        raise CommandError(
            "Option tenants asks a database, and the URL names one for each tenant: "
            "set option tenants_url to the URL of the database that knows the tenants."
        )
    if is_select(option):
        return selected(option, connection)
    return called(option.strip(), connection)


def names_in(option: str) -> list[str]:
    """Return the names of a list separated by spaces.

    Raises CommandError for commas, and for a statement that is no SELECT: its words
    would become schemas.
    """
    names = option.split()
    verbs = {"SELECT", "WITH", "VALUES", "TABLE", "DELETE", "INSERT", "UPDATE"}
    if len(names) > 1 and names[0].lstrip("(").upper() in verbs:
        raise CommandError(
            f"Option tenants begins with {names[0]!r}, which looks like SQL: expected "
            "names, or a statement that begins with SELECT or WITH."
        )
    for name in names:
        if name != name.strip(","):
            raise CommandError(
                f"Option tenants gives {name!r}: expected names separated by spaces, "
                "leave the commas out."
            )
    return names


def selected(option: str, connection: Connection) -> list[Any]:
    """Return the rows of a SELECT, or the values of its only column.

    Raises CommandError if it fails.
    """
    # A colon or a % in the statement must not be read as a parameter.
    options = {"no_parameters": True}
    try:
        rows = connection.exec_driver_sql(option, execution_options=options)
        return list(rows.scalars() if len(rows.keys()) == 1 else rows)
    except SQLAlchemyError as error:
        raise CommandError(
            f"The SELECT of option tenants failed ({first_line(error)}): correct it, "
            "or the database that it asks."
        ) from error


def called(option: str, connection: Connection) -> list[Any]:
    """Call the function that the option names, and return what it returns.

    That is a list of names or pairs, or a mapping of names to URLs. Whatever it raises
    becomes a CommandError, with the first error as its cause.
    """
    function: Callable[[Connection], Iterable[Any]]
    function = load_attribute("tenants", option)
    try:
        found = function(connection)
        if isinstance(found, str):
            raise TypeError("it returned one text")
        return list(found.items() if isinstance(found, Mapping) else found)
    except Exception as error:
        raise CommandError(
            f"Option tenants names {option!r}, which failed ({type(error).__name__}: "
            f"{error}): expected a function that takes a connection and returns names."
        ) from error


def chosen(options: FleetSettings, fleet: Callable[[], list[str]]) -> list[str]:
    """Return the names that the command is for; all of the fleet if none is given.

    Text is read as after `-x tenant=`: a name, several separated by commas, or `all`. A
    list from a program has names, in which a comma means nothing. `fleet` returns the
    names of all tenants; it is called only if they are needed, since it may ask a
    database. Raises CommandError for anything else.
    """
    given = options.given
    if given is None:
        return fleet()
    names: list[Any] = []
    if isinstance(given, list | tuple):
        names = list(given)
    elif isinstance(given, str):
        names = split_names(given, options, fleet) if is_several(given) else [given]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise CommandError(
            f"The tenant is given as {given!r}: expected a name, names separated by "
            "commas, or all."
        )
    return list(dict.fromkeys(names))


def split_names(
    given: str, options: FleetSettings, fleet: Callable[[], list[str]]
) -> list[str]:
    """Return the names in text that means several.

    Raises CommandError if a tenant itself has such a name, `all` or one with a comma:
    nobody could say which is meant.
    """
    listed = fleet() if options.tenants or given == "all" else []
    if given in listed:
        raise CommandError(
            f"Tenant {given!r} cannot be named in one text, where a comma and 'all' "
            'have a meaning: put a list of names into Config.attributes["tenant"].'
        )
    return listed if given == "all" else given.split(",")


def is_several(given: Any) -> bool:
    """Tell whether a text means more than one tenant."""
    return isinstance(given, str) and (given == "all" or "," in given)
