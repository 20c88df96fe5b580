{% set env = cookiecutter.environment %}
"""What the application does with its database before it serves."""

{% if env != "shared" %}
import io
{% endif %}
from pathlib import Path

{% if env != "shared" %}
from alembic import command
{% endif %}
from alembic.config import Config
{% if env == "shared" %}
from alembic.util import CommandError
from sqlalchemy import Engine
{% elif env == "multitenant" %}
from alembic.util import CommandError
from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError
{% elif env == "asyncio" %}
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine
{% else %}
from sqlalchemy import Engine
{% endif %}
{% if env in ("shared", "multitenant") %}

from {{ cookiecutter.package_name }}.migrations.commands import Migrations
{% endif %}
{% if env == "multitenant" %}
from {{ cookiecutter.package_name }}.models import Tenant
{% endif %}


def make_config(section: str = "alembic") -> Config:
    """Return the configuration of the migrations: a section of the project's alembic.ini.

    In a wheel, alembic.ini stands beside this file; in a checkout, at the top.
    """
    package = Path(__file__).resolve().parent
    folder = package if (package / "alembic.ini").is_file() else package.parents[1]
    return Config(folder / "alembic.ini", ini_section=section)


{% if env == "asyncio" %}
async def start(engine: AsyncEngine, *, upgrade: bool = False) -> None:
    """Upgrade the database, or refuse to go on with one that is not at head.

    Several processes may start at once: one upgrades, the others wait and find it done.
    Raises CommandError if the database is not at head, or cannot be upgraded.
    """
    async with engine.connect() as connection:
        await connection.run_sync(_start, upgrade)


def _start(connection: Connection, upgrade: bool) -> None:
    config = make_config()
    # What a command prints is not for the application's output.
    config.stdout = io.StringIO()
    config.attributes["connection"] = connection
    if upgrade:
        command.upgrade(config, "head")
    else:
        command.current(config, check_heads=True)
{% elif env == "multitenant" %}
def start(engine: Engine, *, upgrade: bool = False) -> None:
    """Upgrade the tables that are shared and every tenant's, or check that they are at head.

    Several processes may start at once: one upgrades, the others wait and find it done.
    Raises CommandError if a database or a tenant is not at head, or cannot be upgraded.
    """
    _start(engine, "shared", upgrade)
    with engine.connect() as connection:
        tenant = connection.execute(select(Tenant.name).limit(1)).first()
    if tenant is not None:
        _start(engine, "alembic", upgrade)


def _start(engine: Engine, section: str, upgrade: bool) -> None:
    config = make_config(section)
    # What a command prints is not for the application's output.
    config.stdout = io.StringIO()
    config.attributes["connection"] = engine
    if upgrade:
        command.upgrade(config, "head")
    else:
        command.current(config, check_heads=True)


def add_tenant(engine: Engine, name: str) -> None:
    """Add a tenant with its tables{{ ", all or nothing" if cookiecutter.database == "postgresql" }}.

    Raises CommandError if there is one of this name, or if they cannot be created.
    """
    with engine.begin() as connection:
        try:
            connection.execute(insert(Tenant).values(name=name))
        except IntegrityError as error:
            raise CommandError(f"There is a tenant {name!r} already.") from error
        Migrations(connection, make_config(), tenant=[name]).upgrade()
{% elif env == "shared" %}
def start(engine: Engine, *, upgrade: bool = False) -> None:
    """Upgrade the database, or refuse to go on with one that is not at head.

    Several processes may start at once: one upgrades, the others wait and find it done.
    Raises CommandError if the database is not at head, or cannot be upgraded.
    """
    with engine.connect() as connection:
        migrations = Migrations(connection, make_config())
        if upgrade:
            migrations.upgrade()
        elif not migrations.at_head():
            raise CommandError(
                "The database is not at head: run the project's `upgrade head` first."
            )
{% else %}
def start(engine: Engine, *, upgrade: bool = False) -> None:
    """Upgrade the database, or refuse to go on with one that is not at head.

    Several processes may start at once: one upgrades, the others wait and find it done.
    Raises CommandError if the database is not at head, or cannot be upgraded.
    """
    config = make_config()
    # What a command prints is not for the application's output.
    config.stdout = io.StringIO()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        if upgrade:
            command.upgrade(config, "head")
        else:
            command.current(config, check_heads=True)
{% endif %}
