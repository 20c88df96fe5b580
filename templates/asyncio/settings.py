"""The settings of a run: where each one may stand, and which place wins.

`-x key=value` on the command line comes first, then the option in the section of
alembic.ini (or under [tool.alembic] in pyproject.toml). env.py reads all of them once,
before anything is connected, and passes the result on as one frozen value, so that a
module says in its arguments what it depends on. A setting that is misspelt, unknown or
of the wrong kind is an error here. Without that check, `-x ulr=… downgrade base` would
empty another database than the one that was meant.

To add a setting of your own: name it in OPTIONS (for the configuration), in KEYS (for
-x) or in both, add a field to Settings, and read it in read_settings().
"""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterable
from configparser import InterpolationError
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from logging.config import fileConfig
from pathlib import Path
from typing import Any

from alembic.command import downgrade, upgrade
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError

log = logging.getLogger("alembic.env")

# What may stand after -x, and the options that every environment has. Alembic's own
# options, such as script_location, are not among them: Alembic reads those.
KEYS = ["url", "lock_timeout", "ddl_lock_timeout", "ddl_lock_retries", "data"]
OPTIONS = [
    "sqlalchemy.url",
    "target_metadata",
    "version_table",
    "version_table_schema",
    "transaction_per_migration",
    "lock_timeout",
    "ddl_lock_timeout",
    "ddl_lock_retries",
    "autogenerate_rules",
    "data_migrations",
    "connect_args",
    "x_arguments",
]


@dataclass(frozen=True)
class Settings:
    """The settings of one run.

    `series_command` is what `Migrations` calls its command, such as upgrade; None for
    other programs. `connection` is what a program has put into
    Config.attributes["connection"], None without it. `sleep` waits some seconds;
    `Migrations` gives one that lets other threads and tasks work meanwhile. `data` says
    whether the data parts of revisions run. `autogenerate_rules` is None if the option
    is not set, and empty if it is set to nothing. Timeouts are in seconds;
    `ddl_lock_timeout` is None if the server's own applies.
    """

    config: Config
    series_command: str | None
    is_alembic_command: bool
    connection: Any
    sleep: Callable[[float], None]
    target_metadata: list[str]
    version_table: str
    version_table_schema: str | None
    transaction_per_migration: bool
    lock_timeout: float
    ddl_lock_timeout: float | None
    ddl_lock_retries: int
    autogenerate_rules: list[str] | None
    data: bool
    connect_args: dict[str, Any]


def read_settings(
    config: Config, keys: Iterable[str] = (), options: Iterable[str] = ()
) -> Settings:
    """Read and check what stands after -x, in the section and in Config.attributes.

    `keys` and `options` are the names that this environment has in addition to KEYS and
    OPTIONS. Raises CommandError for a key or an option that is not known, and for a
    value of the wrong kind.
    """
    keys = [*KEYS, *keys]
    check_keys(config, [*keys, *words(option(config, "x_arguments"))])
    check_options(config, [*OPTIONS, *options], keys)
    rules = option(config, "autogenerate_rules")
    settings = Settings(
        config=config,
        series_command=config.attributes.get("series_command"),
        is_alembic_command=is_alembic_command(config),
        connection=config.attributes.get("connection"),
        sleep=config.attributes.get("series_sleep", time.sleep),
        target_metadata=words(option(config, "target_metadata")),
        version_table=option(config, "version_table") or "alembic_version",
        version_table_schema=option(config, "version_table_schema") or None,
        transaction_per_migration=flag(config, "transaction_per_migration"),
        lock_timeout=seconds(config, "lock_timeout", 60.0),
        ddl_lock_timeout=seconds(config, "ddl_lock_timeout", None),
        ddl_lock_retries=count(config, "ddl_lock_retries", 10),
        autogenerate_rules=None if rules is None else words(rules),
        data=runs_data_parts(config),
        connect_args=connect_args(config),
    )
    has_retries = setting(config, "ddl_lock_retries") is not None
    if has_retries and settings.ddl_lock_timeout is None:
        log.warning(
            "ddl_lock_retries has no effect without ddl_lock_timeout: set that, too."
        )
    return settings


def is_alembic_command(config: Config) -> bool:
    """Tell whether this process is the `alembic` command, or `python -m alembic`.

    A program that calls alembic.config.main() has `cmd_opts` as well, so the name of
    the program is looked at too. The answer decides who may set up logging and print.
    """
    if not hasattr(config.cmd_opts, "cmd"):
        return False
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    return name == "alembic"


def command_of(settings: Settings, migrations: MigrationContext) -> str | None:
    """Return the name of the command, of `Migrations` or of alembic.command.

    It is None for a function of a program's own. alembic.command does not say which
    command runs, and the command line may name another one than its program calls.
    Only the name of the inner function tells it, such as
    `revision.<locals>.retrieve_migrations`. If Alembic changed these names, a revision
    without a change would be written in spite of skip_empty.
    """
    if settings.series_command is not None:
        return settings.series_command
    function = migrations.opts["fn"]
    if getattr(function, "__module__", None) != "alembic.command":
        return None
    return str(getattr(function, "__qualname__", "")).partition(".")[0]


def set_up_logging(config: Config) -> None:
    """Set up logging as the ini file says, but only for the `alembic` command.

    A program that runs migrations, also by alembic.config.main(), keeps its loggers:
    fileConfig() would replace the handlers of its root logger.
    """
    if not is_alembic_command(config):
        return
    if config.file_config.has_section("loggers"):
        fileConfig(config.file_config, disable_existing_loggers=False)
    else:  # all settings are in pyproject.toml: show at least the warnings
        logging.basicConfig(format="%(levelname)-5.5s [%(name)s] %(message)s")


def check_keys(config: Config, known: list[str]) -> None:
    """Raise CommandError for a key after -x that is not known, or is given twice.

    Alembic itself ignores unknown keys and takes the last of two. The value is never
    shown, and the key only if it looks like a name: both may be parts of a URL with a
    password.
    """
    keys = [each.partition("=")[0] for each in x_arguments(config)]
    for key in keys:
        if key not in known:
            shown = key if re.fullmatch(r"[\w .-]{1,40}", key) else "…"
            close = get_close_matches(key, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise CommandError(
                f"The key {shown!r} after -x is unknown{hint}: expected "
                f"{', '.join(known)}, or a key of your own that option x_arguments "
                "names."
            )
        if keys.count(key) > 1:
            raise CommandError(
                f"The key {key!r} after -x is given twice: expected it once."
            )


def check_options(config: Config, known: list[str], keys: list[str]) -> None:
    """Raise CommandError for an option that looks like a misspelt one of `known`.

    An option with the name of a key that is read only after -x is an error too, since it
    would have no effect. `url` is accepted: many sections have it beside
    sqlalchemy.url. Other unknown options are accepted, since a section may hold
    Alembic's options and those of the owner's own code.
    """
    section = config.config_ini_section
    if section != "alembic" and not config.file_config.has_section(section):
        raise CommandError(
            f"There is no section [{section}] in the ini file: correct --name."
        )
    # The options of [DEFAULT], such as `here`, are only values for other options.
    own = options_set(config) - set(known) - set(config.file_config.defaults())
    for name in sorted(own):
        if isinstance(config.toml_alembic_config.get(name), dict):
            raise CommandError(
                f"Option {name} of [tool.alembic] is a table of TOML, and no option "
                f'has this name: write a dot in quotes, as in "sqlalchemy.url" = …'
            )
        if name in keys and name != "url":
            raise CommandError(
                f"Option {name} of section [{config.config_ini_section}] has no "
                f"effect: give it after -x, as in -x {name}=…, or give an option of "
                "your own another name."
            )
        meant = misspelt(name, tuple(known))
        if meant:
            raise CommandError(
                f"Option {name} of section [{config.config_ini_section}] is unknown: "
                f"did you mean {meant}? Correct it, or give an option of your own "
                "another name."
            )


@cache  # for a series of commands, which reads the same options again and again
def misspelt(name: str, known: tuple[str, ...]) -> str | None:
    """Return the one of `known` that an option is probably meant to be, or None.

    An owner's own option may have the words of ours, such as my_lock_timeout.
    """
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.85)
    if close and not (has_words(name, close[0]) or has_words(close[0], name)):
        return close[0]
    return None


def has_words(text: str, part: str) -> bool:
    """Tell whether `part` stands in `text` as whole words.

    A word ends where no letter follows, so that version_table2 has version_table in it.
    """
    return re.search(rf"(?<![a-z]){re.escape(part)}(?![a-z])", text) is not None


def options_set(config: Config) -> set[str]:
    """Return the names of the options in the ini section and in the TOML file."""
    found = set(config.toml_alembic_config)
    if config.file_config.has_section(config.config_ini_section):
        found.update(config.file_config.options(config.config_ini_section))
    return found


def x_arguments(config: Config) -> list[str]:
    """Return the text after each -x; a program without a command line has none."""
    return list(getattr(config.cmd_opts, "x", None) or [])


def argument(config: Config, name: str) -> str | None:
    """Return the value of `-x name=value`, None if it is not given.

    The value is all that follows the first =, and may itself have an = in it.
    """
    pairs = (each.partition("=") for each in x_arguments(config))
    return {key: value for key, _, value in pairs}.get(name)


def option(config: Config, name: str) -> Any:
    """Return an option of the ini section or of [tool.alembic], None if it is not set.

    The ini section wins, as in Alembic. From an ini file the value is text; TOML also
    has numbers, booleans, lists and tables. Raises CommandError if a % in the value is
    not doubled. The value may be a URL with a password, so the parser's own error,
    which quotes it, is not shown.
    """
    in_ini = config.file_config.has_option(config.config_ini_section, name)
    value = None if in_ini else config.toml_alembic_config.get(name)
    if isinstance(value, int | float):  # Alembic 1.16 itself refuses it
        return value
    try:
        if isinstance(value, dict):  # Alembic replaces %(here)s only in plain text
            places = {
                place: json.dumps(str(path))[1:-1]
                for place, path in config.toml_args.items()
            }
            return json.loads(json.dumps(value, default=str) % places)
        return config.get_alembic_option(name)
    except (InterpolationError, KeyError, TypeError, ValueError):
        raise CommandError(
            f"Option {name} of section [{config.config_ini_section}] cannot be read: "
            "write each % in its value as %%."
        ) from None


def setting(config: Config, name: str) -> Any:
    """Return the value of `-x name=value`, or else of the option; None without both."""
    value = argument(config, name)
    return option(config, name) if value is None else value


def words(value: Any) -> list[str]:
    """Return the names in an option: text separated by spaces, or a list of TOML."""
    return value.split() if isinstance(value, str) else list(value or [])


def flag(config: Config, name: str) -> bool:
    """Return an option that is true or false, and false if it is not set."""
    return truth(name, option(config, name) or "false")


def truth(name: str, value: Any) -> bool:
    """Return whether a value says true or false, in any case of letters; None is false.

    Raises CommandError, which names the setting, for any other value: if `yes` counted
    as false, nobody would notice.
    """
    text = "false" if value is None else str(value).lower()
    if text not in {"true", "false"}:
        raise CommandError(f"Option {name} is {text!r}: expected true or false.")
    return text == "true"


def seconds(config: Config, name: str, default: Any) -> Any:
    """Return a number of seconds from `-x name=…` or the option, or else `default`.

    Raises CommandError for a negative number, and for what is no number.
    """
    value = setting(config, name)
    if value is None:
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise CommandError(
            f"{name} is {value!r}: expected a number of seconds, 0 or more."
        )
    return number


def count(config: Config, name: str, default: int) -> int:
    """Return a whole number from `-x name=…` or the option, or else `default`.

    Raises CommandError for a negative number, and for what is no whole number.
    """
    value = setting(config, name)
    text = str(default if value is None else value)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise CommandError(f"{name} is {value!r}: expected a whole number, 0 or more.")
    return int(text)


def runs_data_parts(config: Config) -> bool:
    """Tell whether `-x data=…` or Config.attributes["data"] asks for data migrations.

    The technique is that of "Conditional Migration Elements" in Alembic's cookbook. If
    the `alembic` command was not told either way, it logs that they are left out.
    """
    has_data_parts = flag(config, "data_migrations")
    value = argument(config, "data")
    if value is None:
        value = config.attributes.get("data")
    given: Any = config.cmd_opts
    command = given.cmd[0] if is_alembic_command(config) else None
    if has_data_parts and value is None and command in {upgrade, downgrade}:
        log.info(
            "The data parts of revisions are left out: -x data=true would run them."
        )
    return truth("data", value)


def connect_args(config: Config) -> dict[str, Any]:
    """Return the arguments for the driver's connect(), from JSON or a table of TOML.

    Raises CommandError for anything else. The error does not show the option, since it
    may hold a password.
    """
    value = option(config, "connect_args")
    try:
        found = json.loads(value or "{}") if isinstance(value, str | None) else value
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CommandError(
            "Option connect_args cannot be read: expected an object of JSON, such as "
            '{"connect_timeout": 10}, with its names and texts in double quotes.'
        )
    return found


def engine_options(settings: Settings) -> dict[str, Any]:
    """Return the arguments of sqlalchemy.engine_from_config(), except for the URL.

    They are the `sqlalchemy.*` options and the arguments for the driver's connect().
    They are read when an engine is made, since a program that gives a connection has no
    use for them.
    """
    config, arguments = settings.config, settings.connect_args
    options = {
        name: option(config, name)
        for name in sorted(options_set(config))
        if name.startswith("sqlalchemy.") and name != "sqlalchemy.url"
    }
    if arguments.get("statement_cache_size") == 0:
        # asyncpg behind a pooler. A statement with a name is kept by one session of the
        # server, and the next transaction may have another session (SQLAlchemy manual,
        # "Prepared Statement Name with PGBouncer"). So statements get no name.
        arguments = {"prepared_statement_name_func": str, **arguments}
    if arguments:
        options["sqlalchemy.connect_args"] = arguments
    return options
