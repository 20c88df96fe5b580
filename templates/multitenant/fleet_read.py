"""Commands that only read: `current` on all tenants, the others on one.

The models are the same for all tenants, so `check` and `revision --autogenerate`
compare them with one tenant. That promises something for the others only if they are at
the same version, so `check` compares the versions as well. A command that only reads
takes no lock, so that it can be run while the fleet is migrated.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from inspect import getclosurevars

from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .fleet import Fleet, describe_error, find
from .tenants import Tenant


def read(fleet: Fleet, connection: Connection | None) -> None:
    """Run a command on the first tenant that it is for; `current` reads all tenants.

    `check` then compares the versions of the others with that of the first. Raises
    CommandError if a tenant does not exist.
    """
    if fleet.command == "current":
        show_current(fleet, connection)
        return
    tenants = find(fleet, connection, versions=False)
    # ensure_version creates the version table, so it has to come to each tenant.
    some = tenants if fleet.command == "ensure_version" else tenants[:1]
    if not tenants and fleet.command not in {"check", "ensure_version"}:
        raise CommandError(
            f"{fleet.command} looks at a tenant, and this part has none: leave -x part "
            "out."
        )
    for tenant in some:
        if tenant.is_missing:
            raise CommandError(
                f"Tenant {tenant.name!r} has no schema or database yet: name another, "
                "or create it by `alembic -x tenant=… -x create=true upgrade head`."
            )
        if tenant.url is not None:
            read_by_url(fleet, tenant)
        else:
            assert connection is not None
            fleet.run(connection, tenant)
    if fleet.command == "check" and len(tenants) > 1:
        compare_versions(fleet, connection)


def read_by_url(fleet: Fleet, tenant: Tenant) -> None:
    """Run a command on a connection to a tenant's own database.

    An error of the database becomes a CommandError that names the tenant.
    """
    try:
        fleet.on_tenant(tenant, lambda own: fleet.run(own, tenant))
    except DBAPIError as error:
        reason = describe_error(error)
        raise CommandError(f"Tenant {tenant.name!r} failed: {reason}.") from error


def compare_versions(fleet: Fleet, connection: Connection | None) -> None:
    """Raise CommandError if a tenant is not at the version of the first.

    Only the first was compared with the models.
    """
    tenants = find(fleet, connection, versions=True)
    first = tenants[0]
    others = [each for each in tenants if each.heads != first.heads]
    if others:
        shown = ", ".join(f"{each.name!r} ({version_of(each)})" for each in others[:5])
        more = ", …" if len(others) > 5 else ""
        is_read = any(each.is_missing or each.heads is not None for each in others)
        todo = "run `alembic upgrade head`" if is_read else "the log says what is wrong"
        raise CommandError(
            f"{len(others)} of {len(tenants)} tenants are not at {version_of(first)}, "
            f"where {first.name!r} is: {shown}{more}; {todo}."
        )


def version_of(tenant: Tenant) -> str:
    """Return the revisions of a tenant as text, or a word for a tenant without any."""
    if tenant.is_missing:
        return "missing"
    return "unreadable" if tenant.heads is None else " ".join(tenant.heads) or "base"


def state_of(state: Callable[[tuple[str, ...] | None], str], tenant: Tenant) -> str:
    """Return "missing", or the `state` of what a tenant is at."""
    return "missing" if tenant.is_missing else state(tenant.heads)


def state_at(fleet: Fleet, heads: tuple[str, ...] | None) -> str:
    """Return "head", "behind" or "unknown" for tenants that are at these revisions.

    A newer deployment leaves revisions that have no file here: they are unknown.
    """
    script = fleet.migrations.script
    if heads is None or script is None:
        return "unknown"
    try:
        included = {each.revision for each in script.get_all_current(heads)}
    except CommandError:  # a revision that has no file here
        return "unknown"
    return "head" if included.issuperset(script.get_heads()) else "behind"


def show_current(fleet: Fleet, connection: Connection | None) -> None:
    """Print the version of each tenant, and how many tenants are at each version.

    The tenants that need attention come first: missing and unknown ones, then those
    behind. Raises CommandError if the command checks the heads and a tenant is not at
    head.
    """
    order = ["missing", "unknown", "behind", "head"]
    tenants = find(fleet, connection, versions=True)
    state = partial(state_of, cache(partial(state_at, fleet)))
    tenants.sort(key=lambda each: order.index(state(each)))
    show = fleet.settings.config.print_stdout
    for tenant in tenants:
        name = tenant.name if tenant.name.isprintable() else repr(tenant.name)
        show("%s: %s (%s)", name, version_of(tenant), state(tenant))
    counts = Counter((state(each), version_of(each)) for each in tenants)
    show("\n%7s  %-7s  %s", "tenants", "state", "revision")
    for (where, revision), count in counts.items():
        show("%7d  %-7s  %s", count, where, revision)
    is_behind = any(state(each) != "head" for each in tenants)
    if is_behind and checks_heads(fleet):
        raise CommandError(
            "Not all tenants are at the head: run `alembic upgrade head`."
        )


def checks_heads(fleet: Fleet) -> bool:
    """Tell whether `current` was called with --check-heads.

    Alembic keeps that in a closure of its inner function, which would check and print
    once for each tenant. So the closure is read here; the command line does not tell
    what a program calls. If Alembic renamed the variable, the tests of check_heads
    would fail.
    """
    names = getclosurevars(fleet.migrations.opts["fn"]).nonlocals
    return bool(names.get("check_heads"))
