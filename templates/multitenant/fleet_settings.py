"""The settings of a fleet, in addition to those that every environment has.

`-x key=value` on the command line wins over the option. Which tenants a run is for is
said by `-x tenant=…`, or else by Config.attributes["tenant"]; without both it is for
all. The settings are read before anything is connected, so that a mistake changes no
tenant.
"""

import re
from dataclasses import dataclass
from typing import Any

from alembic.util import CommandError

from .settings import Settings, argument, option, setting, truth

# What may stand after -x, and the options, in addition to those in settings.py.
FLEET_KEYS = ["tenant", "part", "jobs", "create", "max_failures", "replay"]
FLEET_OPTIONS = ["tenants", "tenants_url", "jobs", "replay"]


@dataclass(frozen=True)
class FleetSettings:
    """What one run was told about its tenants.

    `tenants` is the option that says who they are, and `tenants_url` the database that
    knows them. `given` names the tenants of this run, as text or as a list; it is None
    if nobody has named any. `part` is the number of a part, from 0, and how many parts
    there are. `jobs` is the number of worker processes. `creates` says that a missing
    schema, database or file is created; it is None if nobody has said it. After `max_failures` no more tenants are
    started; None has no such limit.
    """

    tenants: str | list[Any] | None
    tenants_url: str | None
    given: Any
    part: tuple[int, int]
    jobs: int
    creates: bool | None
    max_failures: int | None
    replays: bool


def read_fleet_settings(settings: Settings) -> FleetSettings:
    """Read and check the options of a fleet, and what stands after -x for it.

    Raises CommandError for a value of the wrong kind.
    """
    config = settings.config
    tenants = option(config, "tenants")
    if tenants and not isinstance(tenants, str | list):
        raise CommandError(
            f"Option tenants is {tenants!r}: expected text or a list of names."
        )
    if settings.version_table_schema:
        raise CommandError(
            "Option version_table_schema has no meaning in a fleet, where each "
            "tenant's version stands in its own schema: take the option away."
        )
    given, create = argument(config, "tenant"), argument(config, "create")
    return FleetSettings(
        tenants=tenants,
        tenants_url=option(config, "tenants_url"),
        given=config.attributes.get("tenant") if given is None else given,
        part=part(argument(config, "part")),
        jobs=number("jobs", setting(config, "jobs")) or 1,
        creates=None if create is None else truth("create", create),
        max_failures=number("max_failures", argument(config, "max_failures")),
        replays=truth("replay", setting(config, "replay")),
    )


def number(name: str, value: Any) -> int | None:
    """Return a whole number from 1, None if it is not set.

    Raises CommandError, which names the setting, for anything else.
    """
    if value is None:
        return None
    if not re.fullmatch(r"0*[1-9][0-9]*", str(value)):
        raise CommandError(f"{name} is {value!r}: expected a whole number, 1 or more.")
    return int(value)


def part(value: str | None) -> tuple[int, int]:
    """Return I and N of `-x part=I/N`, and the whole fleet, 0 and 1, without it.

    Raises CommandError for anything else than I from 0 to N-1.
    """
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", "0/1" if value is None else value)
    index, parts = map(int, found.groups()) if found else (0, 0)
    if index >= parts:
        raise CommandError(
            f"part is {value!r}: expected I/N for the I-th of N parts, I from 0 to "
            "N-1, such as 0/4."
        )
    return index, parts
