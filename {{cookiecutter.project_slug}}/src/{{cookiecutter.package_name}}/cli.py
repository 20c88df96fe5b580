{% set env = cookiecutter.environment %}
{% set is_sqlite = cookiecutter.database == "sqlite" %}
"""The command `{{ cookiecutter.project_slug }}`: Alembic's commands, and the project's own."""

{% if env == "multitenant" %}
import io
{% endif %}
import logging
import sys
from argparse import Namespace
from logging.config import fileConfig
{% if is_sqlite %}
from pathlib import Path
{% endif %}

from alembic import command
from alembic.config import CommandLine, Config
{% if env == "multitenant" %}
from alembic.util import CommandError, DatabaseNotAtHead
{% else %}
from alembic.util import CommandError
{% endif %}
from sqlalchemy import Connection, Engine, event

from {{ cookiecutter.package_name }} import startup
from {{ cookiecutter.package_name }}.database import {{ "NO_URL, make_engine" if env == "multitenant" else "NO_URL" }}
from {{ cookiecutter.package_name }}.migrations import {{ "database_url, settings" if is_sqlite else "database_url" }}

PROGRAM = "{{ cookiecutter.project_slug }}"


def ready(config: Config) -> None:
    """Tell by the exit code whether the database is at head; deployments wait for it."""
{% if env == "multitenant" %}
    check_shared()
    startup.start(make_engine())
{% else %}
{% if is_sqlite %}
    require_file(config)
{% endif %}
    command.current(config, check_heads=True)
{% endif %}
    config.print_stdout("The database is at head.")
{% if is_sqlite %}


def require_file(config: Config) -> None:
    """Raise CommandError if there is no database: SQLite would make an empty file."""
    url = database_url.database_url(settings.read_settings(config), is_offline=True)
    name = url.database or ":memory:"
    if not (name.startswith((":memory:", "file:")) or Path(name).exists()):
        raise CommandError(
            f"The database {str(Path(name).resolve())!r} does not exist: "
            "run upgrade head first, or correct the path in DATABASE_URL."
        )
{% endif %}

{% if env == "multitenant" %}

def add_tenant(config: Config, name: str) -> None:
    """Add a tenant, with its {{ "schema" if cookiecutter.database == "postgresql" else "database" }} and its tables."""
    check_shared()
    startup.add_tenant(make_engine(), name)
    config.print_stdout("Added tenant %s.", name)


add_tenant.__name__ = "add-tenant"  # a command has the name of its function


def check_shared() -> None:
    """Raise CommandError unless what all tenants share is there and at head."""
    config = startup.make_config("shared")
    config.stdout = io.StringIO()  # not the command's own output
    try:
        command.current(config, check_heads=True)
    except DatabaseNotAtHead as error:
        raise CommandError(
            "What all tenants share is not at head: run --name shared upgrade head first."
        ) from error

{% endif %}

def log_database(connection: Connection) -> None:
    """Log which database a command runs on, as the command `alembic` does."""
    database = database_url.describe(connection.engine.url)
    logging.getLogger("alembic.env").info("Running on %s.", database)


def main(argv: list[str] | None = None) -> None:
    """Run a command with the project's own alembic.ini, in any working directory.

    An error is one sentence and exit code 1; --raiseerr shows the traceback.
    """
    commands = CommandLine(PROGRAM)
    commands.register_command(ready)
{% if env == "multitenant" %}
    commands.register_command(add_tenant)
{% endif %}
    options = commands.parser.parse_args(argv)
    if not hasattr(options, "cmd"):
        commands.parser.error("expected a command: --help lists them")
    if options.config:
        commands.parser.error("--config goes with the command alembic alone")
    config = startup.make_config(options.name)
    config.cmd_opts = options
    # The environment sets logging up in the command `alembic` alone.
    fileConfig(config.file_config, disable_existing_loggers=False)
    event.listen(Engine, "engine_connect", log_database, once=True)
    try:
        # In a copy, since the environment reads the option --raiseerr of config.cmd_opts.
        commands.run_cmd(config, Namespace(**{**vars(options), "raiseerr": True}))
    except CommandError as error:
        if options.raiseerr:
            raise
        # The environment, which does not know of .env, names other places.
        is_url = str(error).startswith("No database URL")
        sys.exit(f"error: {NO_URL if is_url else error}")
