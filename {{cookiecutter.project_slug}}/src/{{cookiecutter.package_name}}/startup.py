{% set env = cookiecutter.environment %}
"""What the application does with its database before it serves."""

{% if env != "shared" %}
import io
{% endif %}
from pathlib import Path
{% if env in ("shared", "multitenant") %}
from typing import Any
{% endif %}

{% if env != "shared" %}
from alembic import command
{% endif %}
from alembic.config import Config
{% if env == "shared" %}
from alembic.util import CommandError, load_python_file
from sqlalchemy import Connection, Engine
{% elif env == "multitenant" %}
from alembic.util import load_python_file
from sqlalchemy import Connection, Engine, insert, select
{% elif env == "asyncio" %}
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine
{% else %}
from sqlalchemy import Engine
{% endif %}
{% if env == "multitenant" %}

from {{ cookiecutter.package_name }}.models import Tenant
{% endif %}


def make_config({{ 'section: str = "alembic"' if env == "multitenant" }}) -> Config:
    """Return the migrations' configuration: beside this file in a wheel, else of the checkout."""
    package = Path(__file__).resolve().parent
    folder = package if (package / "alembic.ini").is_file() else package.parents[1]
{% if env == "shared" %}
    return Config(folder / "alembic.ini")
{% else %}
    # What a command prints is not for the application's output.
    return Config(folder / "alembic.ini"{{ ", ini_section=section" if env == "multitenant" }}, stdout=io.StringIO())
{% endif %}


{% if env == "asyncio" %}
async def start(engine: AsyncEngine, *, upgrade: bool = False) -> None:
    """Upgrade the database, or refuse to go on with one that is not at head.

    Several processes may start at once: one upgrades, the others wait and find it done. Raises
    CommandError where the database is not at head, or cannot be upgraded.
    """
    async with engine.connect() as connection:
        await connection.run_sync(_start, upgrade)


def _start(connection: Connection, upgrade: bool) -> None:
    config = make_config()
    config.attributes["connection"] = connection
    if upgrade:
        command.upgrade(config, "head")
    else:
        command.current(config, check_heads=True)
{% elif env == "multitenant" %}
def start(engine: Engine, *, upgrade: bool = False) -> None:
    """Upgrade the shared tables and every tenant's, or refuse to go on where one is not at head.

    Several processes may start at once: one upgrades, the others wait and find it done. Raises
    CommandError where a database or a tenant is not at head, or cannot be upgraded.
    """
    _start(engine, "shared", upgrade)
    with engine.connect() as connection:
        has_tenants = connection.execute(select(Tenant.name).limit(1)).first() is not None
    if has_tenants:
        _start(engine, "alembic", upgrade)


def _start(engine: Engine, section: str, upgrade: bool) -> None:
    config = make_config(section)
    config.attributes["connection"] = engine
    if upgrade:
        command.upgrade(config, "head")
    else:
        command.current(config, check_heads=True)


def add_tenant(engine: Engine, name: str) -> None:
    """Add a tenant with its tables{{ ", all or nothing" if cookiecutter.database == "postgresql" }}.

    Raises CommandError where they cannot be created.
    """
    with engine.begin() as connection:
        connection.execute(insert(Tenant).values(name=name))
        migrations(connection, tenant=[name]).upgrade()


def migrations(connection: Connection, **attributes: Any) -> Any:
    """Return the environment's own `Migrations`, its commands bound to a connection."""
    config = make_config()
    folder = config.get_alembic_option("script_location") or ""
    return load_python_file(folder, "commands.py").Migrations(connection, config, **attributes)
{% elif env == "shared" %}
def start(engine: Engine, *, upgrade: bool = False) -> None:
    """Upgrade the database, or refuse to go on with one that is not at head.

    Several processes may start at once: one upgrades, the others wait and find it done. Raises
    CommandError where the database is not at head, or cannot be upgraded.
    """
    with engine.connect() as connection:
        commands = migrations(connection)
        if upgrade:
            commands.upgrade()
        elif not commands.at_head():
            raise CommandError("The database is not at head: run `alembic upgrade head`.")


def migrations(connection: Connection) -> Any:
    """Return the environment's own `Migrations`, its commands bound to a connection."""
    config = make_config()
    folder = config.get_alembic_option("script_location") or ""
    return load_python_file(folder, "commands.py").Migrations(connection, config)
{% else %}
def start(engine: Engine, *, upgrade: bool = False) -> None:
    """Upgrade the database, or refuse to go on with one that is not at head.

    Several processes may start at once: one upgrades, the others wait and find it done. Raises
    CommandError where the database is not at head, or cannot be upgraded.
    """
    config = make_config()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        if upgrade:
            command.upgrade(config, "head")
        else:
            command.current(config, check_heads=True)
{% endif %}
