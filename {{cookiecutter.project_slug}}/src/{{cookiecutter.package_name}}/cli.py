{% set env = cookiecutter.environment %}
"""The command `{{ cookiecutter.project_slug }}`: Alembic's commands, and the project's own."""

{% if env == "asyncio" %}
import asyncio

{% endif %}
from alembic.config import CommandLine, Config

from {{ cookiecutter.package_name }} import startup
from {{ cookiecutter.package_name }}.database import make_engine


def ready(config: Config) -> None:
    """Tell by the exit code whether the database is at head, for a deployment that waits for it."""
{% if env == "asyncio" %}
    asyncio.run(check())
{% else %}
    startup.start(make_engine())
{% endif %}
    config.print_stdout("The database is at head.")

{% if env == "asyncio" %}

async def check() -> None:
    """Raise where the database is not at head."""
    engine = make_engine()
    try:
        await startup.start(engine)
    finally:
        await engine.dispose()

{% elif env == "multitenant" %}

def add_tenant(config: Config, name: str) -> None:
    """Add a tenant, with its {{ "schema" if cookiecutter.database == "postgresql" else "database" }} and its tables."""
    startup.add_tenant(make_engine(), name)
    config.print_stdout("Added tenant %s.", name)

{% endif %}

def main(argv: list[str] | None = None) -> None:
    """Run the command; `alembic.ini` is looked for in the working directory, as Alembic does."""
    commands = CommandLine("{{ cookiecutter.project_slug }}")
    commands.register_command(ready)
{% if env == "multitenant" %}
    commands.register_command(add_tenant)
{% endif %}
    commands.main(argv)
