"""The fleet of one command: which of its tenants are meant, and where they are.

Tenants that are already at the target are found by a few queries for all of them.
Without that, a deployment without a new revision would open ten thousand transactions
to do nothing. Nothing is changed here; fleet_run.py runs the command on what is found.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from alembic.runtime.migration import MigrationContext
from alembic.script.revision import MultipleHeads, ResolutionError
from alembic.util import CommandError
from sqlalchemy import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from . import tenant_names, tenant_schemas
from .connections import run_on_url, url_of
from .database_url import database_url, describe, parse_url, url_text
from .fleet_servers import Servers, server_of
from .fleet_settings import FleetSettings
from .migration_lock import revisions_in, roll_back, version_errors
from .settings import Settings, argument, command_of
from .tenants import Tenant, asks_database, chosen, is_function, listed, part_of

log = logging.getLogger("alembic.env")

T = TypeVar("T")

# The function of env.py that runs the command on a tenant.
RunTenant = Callable[[Connection, Tenant, Settings], str | None]

# What an error says of a tenant that does not exist.
MISSING = (
    "there is no schema or database of this name, correct it or create what is missing "
    "by -x create=true"
)


@dataclass(frozen=True)
class Fleet:
    """Where the tenants are, and what env.py does with one.

    `migrations` is the context of the command itself, which has no tenant yet. `url` is
    that of the server with the schemas, the one with {tenant}, or that of `registry` if
    the option `tenants` gives URLs. `registry` is the database of `tenants_url`, None
    if the option asks none. `has_own_urls` says that each tenant has a database of its
    own. `run_tenant` is a function of env.py: it runs the command on a tenant, and
    returns the revisions that the tenant is at then, None if it has changed nothing.
    """

    settings: Settings
    options: FleetSettings
    migrations: MigrationContext
    url: URL
    registry: URL | None
    has_own_urls: bool
    servers: Servers
    run_tenant: RunTenant

    @property
    def command(self) -> str | None:
        """The name of the command, None for a function of a program's own."""
        return command_of(self.settings, self.migrations)

    def run(self, connection: Connection, tenant: Tenant) -> str | None:
        """Run the command on a tenant; return what `run_tenant` does.

        Before the last try it does not wait for another run that has the tenant.
        """
        timeout = self.settings.lock_timeout if tenant.is_last_try else 0.0
        sleep = self.servers.sleep
        now = replace(self.settings, lock_timeout=timeout, sleep=sleep)
        return self.run_tenant(connection, tenant, now)

    def on_tenant(self, tenant: Tenant, work: Callable[[Connection], T]) -> T:
        """Call `work` with a connection to the database of a tenant.

        It is opened for it and closed after it.
        """
        return self.servers.run_on(tenant.url or self.url, work)

    def on_server(self, work: Callable[[Connection | None], T]) -> T:
        """Call `work` with a connection to the database of the URL.

        That has the schemas of the tenants, or knows their URLs. `work` gets None if
        the settings say that each tenant has a database of its own.
        """
        return work(None) if self.has_own_urls else self.servers.run_on(self.url, work)


def fleet_url(settings: Settings, options: FleetSettings, *, is_offline: bool) -> URL:
    """Return the URL of the database, or that of the registry if it gives the URLs.

    If the caller has given a connection, it is the URL of that. Raises CommandError if
    there is none, and if `-x url` would have no effect.
    """
    if settings.connection is not None:
        return url_of(settings.connection)
    registry, text = registry_of(options), url_text(settings)
    is_any = bool(settings.config.attributes.get("any_tenant"))  # see fleet_script.py
    if registry is None or is_any or tenant_names.is_per_tenant(text):
        return database_url(settings, is_offline=is_offline)
    if argument(settings.config, "url") is not None:
        raise CommandError(
            "-x url=… has no effect, since the database of option tenants_url gives "
            "the URL of each tenant: leave it out, or write {tenant} into it."
        )
    if settings.is_alembic_command:
        if text:
            log.warning("The database URL is not used: tenants_url gives the tenants'.")
        if not is_offline:
            log.info("Running on the tenants of %s.", describe(registry))
    return registry


def registry_of(options: FleetSettings) -> URL | None:
    """Return the URL of the database that knows the tenants, None if none is asked.

    Raises CommandError if there is a URL, and a plain list of names.
    """
    if not options.tenants_url:
        return None
    if asks_database(options.tenants):
        return parse_url(options.tenants_url, "Option tenants_url")
    if options.tenants:
        raise CommandError(
            "Option tenants_url has no effect, since option tenants is a list of names "
            "and asks no database: take tenants_url away, or write a SELECT or a "
            "function."
        )
    return None


def make_fleet(
    settings: Settings,
    options: FleetSettings,
    migrations: MigrationContext,
    url: URL,
    run_tenant: RunTenant,
) -> Fleet:
    """Return the fleet of a URL, which may be that of the caller's connection.

    A connection of the caller leads to one database. On a server, that has the schemas
    of all tenants, unless the settings say that it is one tenant's. Raises CommandError
    if {tenant} stands in a wrong place of the URL.
    """
    registry = registry_of(options)
    own = registry is not None
    if settings.connection is None:
        own = tenant_names.has_place(url) or own
        if not own and not asks_database(options.tenants):
            tenant_names.require_schemas(url)
    else:
        is_server = url.get_backend_name() in tenant_names.LONGEST
        own = own or not is_server or tenant_names.is_per_tenant(url_text(settings))
    servers = Servers(settings)
    return Fleet(settings, options, migrations, url, registry, own, servers, run_tenant)


def meant(fleet: Fleet, connection: Connection | None) -> list[Tenant]:
    """Return the tenants that the command is for, with their URLs; some may not exist.

    Raises CommandError if nobody has named a tenant for a command that could destroy
    the data of all, and for a name that no tenant can have.
    """
    options = fleet.options
    known = cache(partial(all_tenants, fleet, connection))
    names = chosen(options, lambda: [each.name for each in known()])
    is_dangerous = fleet.command in {"downgrade", "stamp"}
    index, parts = options.part
    if options.given is None and len(names) > 1 and is_dangerous:
        some = f"part {index}/{parts} of" if parts > 1 else "all"
        raise CommandError(
            f"No tenant is named, and {fleet.command} would change {some} {len(names)}: "
            "add -x tenant=all if that is meant, or name some by -x tenant=a,b (a "
            'program does so in Config.attributes["tenant"]).'
        )
    tenants = with_urls(fleet, names, known)
    tenant_names.require_names(tenants, fleet.url, fleet.settings.version_table)
    found = [each for each in tenants if part_of(each.name, parts) == index]
    if not found:
        log.info("Part %d/%d has no tenant.", index, parts)
    return found


def all_tenants(fleet: Fleet, connection: Connection | None) -> list[Tenant]:
    """Return all tenants; ask the registry who they are, or else `connection`.

    Raises CommandError if their URLs are given where they would not be used.
    """
    option, registry = fleet.options.tenants, fleet.registry
    if registry is None:
        tenants = listed(option, connection)
    else:
        tenants = run_on_url(registry, partial(listed, option), fleet.settings)
    has_urls = tenants[0].url is not None
    has_place = tenant_names.has_place(fleet.url)
    if has_urls and has_place:
        raise CommandError(
            "Option tenants gives the URL of each tenant, and the database URL has "
            "{tenant} in it: take one of the two away."
        )
    if has_urls and not registry and not can_give_urls(fleet):
        raise CommandError(
            "Option tenants gives the URL of each tenant: set option tenants_url to "
            "the URL of the database that it asks."
        )
    is_callers = fleet.settings.connection is not None
    if not (registry is None or is_callers or has_urls or has_place):
        raise CommandError(
            "Option tenants gives names without URLs: expected a name and a URL for "
            "each, {tenant} in the database URL, or no option tenants_url."
        )
    return tenants


def can_give_urls(fleet: Fleet) -> bool:
    """Tell whether the option `tenants` is asked for URLs, without a `tenants_url`.

    A SELECT is not, since it is not run for one tenant that is named. The connection of
    a caller leads to one database.
    """
    option = fleet.options.tenants
    is_asked = isinstance(option, str) and is_function(option)
    return is_asked and fleet.settings.connection is None


def with_urls(
    fleet: Fleet, names: list[str], known: Callable[[], list[Tenant]]
) -> list[Tenant]:
    """Return the tenants of these names, with a URL if each has a database of its own.

    `known` returns all tenants; it is called if a URL could come from there. Raises
    CommandError for a tenant that is not known there.
    """
    if tenant_names.has_place(fleet.url):
        urls = [tenant_names.url_of_tenant(name, fleet.url) for name in names]
        return [Tenant(name, url) for name, url in zip(names, urls, strict=True)]
    if fleet.registry is not None or can_give_urls(fleet):
        found = {each.name: each for each in known() if each.url is not None}
        unknown = [repr(name) for name in names if name not in found]
        if found and unknown:
            raise CommandError(
                f"Tenant {', '.join(unknown)} is unknown: option tenants gives no URL "
                "for it, correct the name."
            )
        if found:
            return [found[name] for name in names]
    if not fleet.has_own_urls:
        tenant_names.require_schemas(fleet.url)
    return [Tenant(name) for name in names]


def find(
    fleet: Fleet, connection: Connection | None, *, versions: bool
) -> list[Tenant]:
    """Return the tenants that the command is for, and what is known of them.

    `versions` asks for the revisions that they are at, too. Raises CommandError for a
    tenant that the command names and that does not exist, unless it may be created.
    One that the option `tenants` lists is returned as missing: its own run will fail,
    and the others go on.
    """
    in_callers = connection is not None and connection.in_transaction()
    found = meant(fleet, connection)
    table = fleet.settings.version_table
    if any(each.url for each in found):
        found = look_by_url(fleet, found, versions=versions)
    elif found:
        assert connection is not None
        names = [each.name for each in found]
        found = tenant_schemas.find_schemas(connection, names, table)
        if versions:
            found = tenant_schemas.with_versions(
                connection, found, table, in_callers=in_callers
            )
    if connection is not None and not in_callers:
        connection.rollback()
    missing = [repr(each.name) for each in found if each.is_missing]
    is_named = fleet.options.given not in (None, "all")
    if missing and is_named and not fleet.options.creates:
        raise CommandError(f"Tenant {', '.join(missing)} is unknown: {MISSING}.")
    return found


def look_by_url(fleet: Fleet, tenants: list[Tenant], *, versions: bool) -> list[Tenant]:
    """Return what is known of tenants that have databases of their own.

    Only of an SQLite file it is known whether it exists. A version that cannot be read
    stays None, and is logged; a server that is down is logged once.
    """
    opts = {"version_table": fleet.settings.version_table}
    down = fleet.servers.down

    def read_heads(connection: Connection) -> tuple[str, ...]:
        context = MigrationContext.configure(connection, opts=opts)
        return tuple(sorted(context.get_current_heads()))

    found: list[Tenant] = []
    for tenant in tenants:
        assert tenant.url is not None
        is_file = tenant.url.get_backend_name() == "sqlite"
        missing = is_file and not exists(tenant_names.file_of(tenant.url))
        heads = None
        if versions and not missing and server_of(tenant.url) not in down:
            try:
                heads = fleet.on_tenant(tenant, read_heads)
            except (CommandError, SQLAlchemyError) as error:  # as its own run will do
                log.warning("Tenant %r: %s", tenant.name, describe_error(error))
        found.append(replace(tenant, is_missing=missing, heads=heads))
    return found


def exists(path: Path) -> bool:
    """Tell whether there is a file; False in a folder that may not be read."""
    try:
        return path.is_file()
    except OSError:
        return False


def has_steps(fleet: Fleet, heads: tuple[str, ...]) -> bool:
    """Tell whether the command has something to do for a tenant that is at `heads`.

    Raises CommandError if the destination of the command is wrong: it is wrong for each
    tenant. It is True for a tenant at a revision that has no file here, whose own run
    will say so.
    """
    migrations = fleet.migrations
    if migrations.purge:
        return True
    try:
        with version_errors(migrations):
            return bool(list(migrations.opts["fn"](heads, migrations)))
    except CommandError as error:
        if isinstance(error.__cause__, ResolutionError | MultipleHeads):
            raise
        return True  # the tenant's version is wrong, and not the destination


def describe_error(
    error: BaseException, *, commits: bool = False, has_run: bool = False
) -> str:
    """Return one line that says what was raised, in which revision, and what it left.

    `commits` says that the database commits at each DDL statement. `has_run` says that
    a part of a revision may have run even if no revision stands in the traceback, as in
    a replay. A CommandError is a sentence already, and is returned as it is.
    """
    reason, *more = str(getattr(error, "orig", None) or error).strip().split("\n")
    if isinstance(error, CommandError):
        return reason
    revisions = revisions_in(error)
    # PostgreSQL names the row there, such as "Key (email)=(…) already exists."
    details = [each for each in more if each.startswith("DETAIL:")]
    details = [each.partition(":")[2].strip() for each in details]
    said = "; DETAIL: ".join([f"{type(error).__name__}: {reason}", *details[:1]])
    if revisions:
        said += " (revision {}, line {})".format(*revisions[-1])
    if commits and (revisions or has_run):
        said += (
            "; a part of the revision may be committed, since the database commits at "
            "each DDL statement: undo it by hand, or do the rest by hand and stamp the "
            "tenant, then run the command again"
        )
    return said


@contextmanager
def left_without_transaction(connection: Connection | None) -> Iterator[None]:
    """Leave a caller's connection without a transaction, if it had none before.

    A SELECT opens one, in which the caller would go on without knowing.
    """
    is_ours = connection is not None and not connection.in_transaction()
    try:
        yield
    finally:
        if connection is not None and is_ours:
            with suppress(Exception):  # the connection is lost; the first error counts
                roll_back(connection)
