"""Which names can be a tenant's, as a schema, as a database or as a part of a URL.

A server may shorten a name, change its case, or read it as something else. The result
could be the name of another tenant, whose tables the run would then change. So such a
name is refused before anything is run. All other names work, since they are quoted. The
functions called `fault…` return the reason as the end of a sentence, None for a name
that is right.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from alembic.util import CommandError
from sqlalchemy import URL
from sqlalchemy.sql import quoted_name

from .tenants import Tenant

# The longest names: in bytes on PostgreSQL, which shortens longer ones (PostgreSQL
# manual, 4.1.1), and in characters on the others, which refuse them (MySQL manual,
# 11.2).
LONGEST = {"postgresql": 63, "mysql": 64, "mariadb": 64}

# Schemas, and databases, that belong to the server itself.
SYSTEM = {
    "postgresql": {"information_schema"},
    "mysql": {"information_schema", "mysql", "performance_schema", "sys"},
}
SYSTEM["mariadb"] = SYSTEM["mysql"]
DATABASES = {**SYSTEM, "postgresql": {"postgres", "template0", "template1"}}


def identifier(name: str) -> quoted_name:
    """Return a name that SQLAlchemy always quotes.

    By itself it quotes a name only if it sees a need, and misses a newline at the end.
    """
    return quoted_name(name, quote=True)


def require_names(tenants: Iterable[Tenant], url: URL, version_table: str) -> None:
    """Raise CommandError for a name, or a URL, that cannot be a tenant's.

    `url` is that of the fleet; if it has no {tenant}, tenants have schemas of its
    database, or URLs that are not made of their names.
    """
    for tenant in tenants:
        name = tenant.name
        if tenant.url is None:
            reason = fault(name, url.get_backend_name())
        elif has_place(url):
            reason = fault_in_url(name, url, version_table)
        else:
            reason = fault_of_file(tenant.url, version_table)
        if reason:
            raise CommandError(f"The name {name!r} cannot be a tenant's: {reason}.")


def fault(name: str, dialect: str) -> str | None:
    """Return why a name cannot be that of a schema, or of a database for USE."""
    is_reserved = dialect == "postgresql" and name.startswith("pg_")
    if is_reserved or is_servers_own(name, dialect, SYSTEM):
        return "it is the server's own"
    if dialect == "postgresql" and name == "$user":
        return "on a search path it means the name of the user"
    return fault_of_any(name, dialect)


def is_servers_own(name: str, dialect: str, known: dict[str, set[str]]) -> bool:
    """Tell whether a schema or a database belongs to the server itself.

    `known` is SYSTEM or DATABASES. PostgreSQL tells capitals from small letters here.
    """
    folded = name if dialect == "postgresql" else name.lower()
    return folded in known.get(dialect, ())


def fault_of_any(name: str, dialect: str) -> str | None:
    """Return why the server would not take a name, or would change it."""
    if "\0" in name or any("\ud800" <= each <= "\udfff" for each in name):
        return "it has a character that no database takes"
    if dialect in {"mysql", "mariadb"}:
        if name[-1:] in set(" \t\n\v\f\r"):
            return "it ends with white space, with which the server takes none"
        beyond = next((each for each in name if each > "\uffff"), None)
        if beyond:
            return (
                f"it has {beyond!r}, and the server takes no character above U+FFFF in "
                "a name"
            )
    is_postgresql = dialect == "postgresql"
    size = len(name.encode()) if is_postgresql else len(name)
    if size > LONGEST.get(dialect, size):
        kind = "bytes" if is_postgresql else "characters"
        return f"it has {size} {kind}, and the server takes {LONGEST[dialect]}"
    return None


def fault_in_url(name: str, url: URL, version_table: str) -> str | None:
    """Return why a name cannot stand in a URL.

    A name such as ../other or a@host would lead to another file or another server, and
    no rule of quoting is the same for all drivers. So these characters are refused.
    """
    refused = {"/", "\\", "@", "%", "..", "\0"}
    if "{tenant}" in (url.host or "") or str(url.database).startswith("file:"):
        refused |= {"?", "#", ":", ",", "&"}
    found = sorted(each for each in refused if each in name)
    if found:
        return f"in a URL it would leave its place, because of {found[0]!r}"
    filled, dialect = url_of_tenant(name, url), url.get_backend_name()
    if is_servers_own(filled.database or "", dialect, DATABASES):
        return "it is the server's own"
    reason = fault_of_any(filled.database or "", dialect)
    reason = reason or fault_of_any(filled.username or "", dialect)
    return reason or fault_of_file(filled, version_table)


def fault_of_file(url: URL, version_table: str) -> str | None:
    """Return why the file of a URL, or SQLite's files beside it, cannot exist.

    The journal and the lock file have longer names, and would fail in the middle. Other
    databases have no such file.
    """
    if url.get_backend_name() != "sqlite":
        return None
    if url.database in (None, "", ":memory:"):
        return "SQLite takes it for a database in memory"
    file = file_of(url)
    try:
        longest = os.pathconf(file.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows, or a folder to come
        longest = 255
    beside = [f"{file.name}-journal", f"{file.name}-{version_table}.lock"]
    for each in [*file.parts, *beside]:
        if len(each.encode()) > longest:
            return f"the file {each!r} would have a name of more than {longest} bytes"
    return None


def file_of(url: URL) -> Path:
    """Return the file of an SQLite database, also if it is written as a file: URI."""
    return Path(str(url.database).removeprefix("file:").partition("?")[0])


def is_per_tenant(text: str | None) -> bool:
    """Tell whether the text of a URL has {tenant} in it, which may be URL-quoted."""
    return "{tenant}" in unquote(text or "")


def has_place(url: URL) -> bool:
    """Tell whether a URL has {tenant} in it, so that each tenant has its own database.

    Raises CommandError if {tenant} stands in the password or in the query, where a name
    could set an option of the driver.
    """
    elsewhere = [str(url.password or ""), *map(str, url.query.values())]
    if any("{tenant}" in each for each in elsewhere):
        raise CommandError(
            "The database URL has {tenant} in its password or its query: expected it "
            "in the name of the database, of the user or of the host."
        )
    parts = [url.database or "", url.username or "", url.host or ""]
    return any("{tenant}" in each for each in parts)


def require_schemas(url: URL) -> None:
    """Raise CommandError for a database that has no schemas, such as SQLite."""
    dialect = url.get_backend_name()
    if dialect not in LONGEST:
        raise CommandError(
            f"A fleet on {dialect} has a database for each tenant: in the database "
            "URL, write {tenant} for its name."
        )


def url_of_tenant(name: str, url: URL) -> URL:
    """Return the URL of a tenant: {tenant} is replaced by its name.

    The parts of a URL object are not quoted; SQLAlchemy quotes them if it writes text.
    """
    database, username, host = [
        part and part.replace("{tenant}", name)
        for part in (url.database, url.username, url.host)
    ]
    return url.set(database=database, username=username, host=host)


def require_place(name: str, template: URL, connected: URL) -> None:
    """Raise CommandError if a connection does not lead to the database of a tenant.

    `template` is the configured URL with {tenant}, and `connected` that of the
    connection. Two paths of one SQLite file are the same place.
    """
    expected = url_of_tenant(name, template).database
    is_same = expected == connected.database
    if template.get_backend_name() == "sqlite":
        places = [Path(str(each)).resolve() for each in (expected, connected.database)]
        is_same = places[0] == places[1]
    if not is_same:
        raise CommandError(
            f"The connection leads to database {connected.database!r}, and that of "
            f"tenant {name!r} is {expected!r}: pass a connection to the tenant that is "
            "named."
        )
