"""The script that `--sql` writes for each tenant of a fleet.

Alembic's offline mode writes the SQL of one database. Here a line before the SQL of
each tenant enters its schema or database; without it, all statements would be run in
the schema of whoever runs the script. No tenant is connected to, so each script starts
from the version that the command names, such as `upgrade ae10:head --sql`; see
https://alembic.sqlalchemy.org/en/latest/offline.html.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from alembic.util import CommandError
from sqlalchemy import Connection

from .database_url import is_misread, misread
from .fleet import Fleet, can_give_urls, left_without_transaction, meant
from .tenant_names import identifier
from .tenant_schemas import entrance
from .tenants import Tenant, asks_database, is_several


def tenants_of_script(fleet: Fleet) -> list[Tenant]:
    """Return the tenants that a script is for.

    A database is asked only if the option `tenants` needs it, and on the connection of
    the caller if there is one. None is asked for a tool that renders the script of no
    tenant in particular, which sets Config.attributes["any_tenant"]. Raises
    CommandError for a name that cannot stand in a script.
    """
    options = fleet.options
    if fleet.settings.config.attributes.get("any_tenant"):
        return [Tenant("any", fleet.url)]
    given = fleet.settings.connection
    given = given if isinstance(given, Connection) else None

    def ask(connection: Connection | None) -> list[Tenant]:
        with left_without_transaction(connection):
            return meant(fleet, connection)

    needs_fleet = options.given is None or is_several(options.given)
    asks = (needs_fleet and asks_database(options.tenants)) or can_give_urls(fleet)
    tenants = fleet.on_server(ask) if given is None and asks else ask(given)
    for tenant in tenants:
        if tenant.url is None and "\t" in tenant.name:
            raise CommandError(
                f"The name {tenant.name!r} cannot stand in a script, in which Alembic "
                "writes a tab as four spaces: name the other tenants, and run this one "
                "without --sql."
            )
    if fleet.has_own_urls or any(each.url for each in tenants):
        return tenants
    return [replace(each, schema=identifier(each.name)) for each in tenants]


@contextmanager
def script_of(
    fleet: Fleet, tenant: Tenant, write: Callable[[str], None]
) -> Iterator[None]:
    """Write what has to stand before and after the SQL of a tenant.

    A tenant with a database of its own has a comment with the URL, without what could
    be a password; CommandError is raised if a part of it may stand in another place.
    """
    if tenant.schema is None:
        url = tenant.url or fleet.url
        if is_misread(url):
            raise misread(f"The URL of tenant {tenant.name!r}")
        url = url.set(query={})
        write(f"-- Tenant {tenant.name!r}")
        write(f"-- {str(url)!r}")
        yield
        return
    dialect = fleet.migrations.dialect
    for each in entrance(dialect, tenant.name, creates=bool(fleet.options.creates)):
        write(f"{each};")
    yield
    if dialect.name == "postgresql":
        write("RESET search_path;")
