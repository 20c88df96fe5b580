"""Where this environment's settings come from, and which source wins.

`-x key=value` on the command line comes first, then the option in the section of alembic.ini (or
under [tool.alembic] in pyproject.toml), then, for the database URL alone, the process environment:
a program that sets a URL can never reach the database that a shell happens to name.
"""

import math
import os
import re
import sys
from collections.abc import Iterator
from configparser import InterpolationError
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from alembic import context
from alembic.script.revision import ResolutionError
from alembic.util import CommandError, to_list, to_tuple
from sqlalchemy import URL, MetaData, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError


def argument(name: str) -> str | None:
    """Return the value of `-x name=value`, None where it was not given."""
    return context.get_x_argument(as_dictionary=True).get(name)


def option(name: str) -> Any:
    """Return an option of the ini section or of [tool.alembic], None where it is not set.

    Raises CommandError where a % in the value is not doubled. The value may be a URL with a
    password, so the parser's own error, which quotes it, is not shown.
    """
    config = context.config
    number = config.toml_alembic_config.get(name)
    if isinstance(number, int | float) and not config.file_config.has_option(
        config.config_ini_section, name
    ):
        return number  # get_alembic_option takes no float, and in Alembic 1.16 no true or false
    try:
        return config.get_alembic_option(name)
    except (InterpolationError, KeyError, TypeError, ValueError):
        raise CommandError(
            f"Option {name} of section [{config.config_ini_section}] cannot be read: "
            "write each % in its value as %%."
        ) from None


def setting(name: str) -> Any:
    """Return the value of `-x name=value`, else of the option, None where neither is set."""
    value = argument(name)
    return option(name) if value is None else value


def flag(name: str) -> bool:
    """Return an option that is true or false, and false where it is not set."""
    return truth(name, option(name) or "false")


def truth(name: str, value: Any) -> bool:
    """Return what a setting says, true or false; false where it is None."""
    text = "false" if value is None else str(value).lower()
    if text not in {"true", "false"}:
        raise CommandError(f"Option {name} is {text!r}: expected true or false.")
    return text == "true"


def seconds(name: str, default: float | None = None) -> float | None:
    """Return a number of seconds from `-x name=…` or the option, `default` where neither is set."""
    value = setting(name)
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise CommandError(f"{name} is {value!r}: expected a number of seconds, 0 or more.")
    return number


def url_text() -> str | None:
    """Return the URL of the database as it is written, None where it is not."""
    url = argument("url")
    return option("sqlalchemy.url") or os.environ.get("DATABASE_URL") if url is None else url


def database_url() -> URL:
    """Return the URL of the database."""
    url = url_text()
    if not url:
        raise CommandError(
            "No database URL: give -x url=…, set sqlalchemy.url in section "
            f"[{context.config.config_ini_section}] of the Alembic configuration, "
            "or set DATABASE_URL in the environment."
        )
    return parsed(url)


def parsed(url: str, name: str = "The database URL") -> URL:
    """Return a URL from its text. Errors never show it, since it holds a password."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise CommandError(
            f"{name} cannot be parsed: expected dialect+driver://user:password@host/name, "
            "with the characters @ : / % of a user or password URL-quoted."
        ) from None


def engine_options() -> dict[str, Any]:
    """Return the `sqlalchemy.*` options, `sqlalchemy.echo = true` for one, for engine_from_config."""
    config = context.config
    section = config.config_ini_section
    names = set(config.toml_alembic_config)
    if config.file_config.has_section(section):
        names.update(config.file_config.options(section))
    return {
        name: option(name)
        for name in sorted(names)
        if name.startswith("sqlalchemy.") and name != "sqlalchemy.url"
    }


@contextmanager
def engine_errors(url: URL) -> Iterator[None]:
    """Turn what SQLAlchemy raises for an engine that cannot be made into one sentence."""
    try:
        yield
    except (ImportError, NoSuchModuleError) as error:
        raise CommandError(
            f"The driver of {url.drivername}:// cannot be loaded ({error}): install it, or correct "
            "the dialect+driver of the database URL."
        ) from error
    except (ArgumentError, InvalidRequestError, TypeError, ValueError) as error:
        raise CommandError(
            f"No engine can be made for {url.drivername}:// ({error}): correct the sqlalchemy.* "
            "options or the dialect+driver of the database URL."
        ) from error


def version_table() -> dict[str, str]:
    """Return the version table's name and schema, where they are set, for context.configure."""
    names = ("version_table", "version_table_schema")
    return {name: value for name in names if (value := option(name))}


def target_metadata() -> MetaData | list[MetaData] | None:
    """Return the models' MetaData, which autogenerate compares with the database.

    A program may hand it over in Config.attributes["target_metadata"]; the option target_metadata
    names one or several as package.module:attribute, which are imported here.
    """
    given: MetaData | list[MetaData] | None = context.config.attributes.get("target_metadata")
    if given is not None:
        for each in to_list(given):
            if not isinstance(each, MetaData):
                raise CommandError(
                    f'Config.attributes["target_metadata"] is a {type(each).__name__}: expected a '
                    "sqlalchemy.MetaData, or a list of them."
                )
        return given
    names = option("target_metadata") or []
    found = [load_metadata(name) for name in (names.split() if isinstance(names, str) else names)]
    return found[0] if len(found) == 1 else found or None


def load_metadata(name: str) -> MetaData:
    """Import a MetaData by its name, such as myapp.models:Base.metadata."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise CommandError(
            f"Option target_metadata names {name!r}: expected package.module:attribute, "
            "such as myapp.models:Base.metadata."
        )
    try:
        metadata = attrgetter(attribute)(import_module(module))
    except Exception as error:
        raise CommandError(
            f"Option target_metadata names {name!r}, which cannot be imported "
            f"({type(error).__name__}: {error}): correct the name, the module, or prepend_sys_path."
        ) from error
    if not isinstance(metadata, MetaData):
        raise CommandError(
            f"Option target_metadata names {name!r}, which is a {type(metadata).__name__}: "
            "expected a sqlalchemy.MetaData, such as the attribute metadata of a declarative base."
        )
    return metadata


def require_metadata() -> None:
    """Say what to set, where a command that compares models with the database has no models."""
    opts = context.get_context().opts
    revision = opts.get("revision_context")
    if revision and revision.command_args["autogenerate"] and opts["target_metadata"] is None:
        raise CommandError(
            "There are no models to compare the database with: set target_metadata = "
            "package.module:attribute in the Alembic configuration, or "
            'Config.attributes["target_metadata"] in a program.'
        )


def run_by_alembic_command() -> bool:
    """Tell whether this process is the `alembic` command, or `python -m alembic`."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    return name == "alembic" and hasattr(context.config.cmd_opts, "cmd")


@contextmanager
def known_version() -> Iterator[None]:
    """Say so where the database is at a revision that has no file here."""
    try:
        yield
    except CommandError as error:
        cause = error.__cause__
        asked_for = to_tuple(context.get_context().opts.get("destination_rev"), default=())
        words = [word for revision in asked_for for word in re.split("[-+@:]", revision)]
        if not isinstance(cause, ResolutionError) or cause.argument in words:
            raise
        raise CommandError(
            f"The database is at revision {cause.argument}, which this code does not know: a newer "
            "deployment has migrated it, or the file was deleted; run the command from the code "
            "that has this revision."
        ) from error


@contextmanager
def connection_errors(url: URL) -> Iterator[None]:
    """Say in one sentence which database does not answer, without the password."""
    try:
        yield
    except Exception as error:
        where = f"{url.host}:{url.port}" if url.port else url.host
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise CommandError(
            f"Cannot connect to database {url.database!r}{f' on {where}' if where else ''} "
            f"with {url.drivername} ({reason}): check the URL and that the server runs."
        ) from error


def unusable(given: object) -> CommandError:
    """Return the error for what cannot be used as Config.attributes["connection"]."""
    kind = type(given).__name__
    if hasattr(given, "sync_engine") or hasattr(given, "run_sync"):
        return CommandError(
            f'Config.attributes["connection"] is an {kind}, which cannot be used here: write a '
            "function that puts the Connection it takes there and runs the command, and call it by "
            "`await connection.run_sync(function)` on an AsyncConnection."
        )
    return CommandError(
        f'Config.attributes["connection"] is of type {kind}: expected a sqlalchemy Connection or '
        "Engine."
    )
