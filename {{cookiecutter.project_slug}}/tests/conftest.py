{% set env = cookiecutter.environment %}
{% set is_async = env == "asyncio" %}
{% set db = cookiecutter.database %}
{% if db == "sqlite" %}
"""{{ "Empty databases" }}, and a session in which nothing that a test does stays."""
{% else %}
"""Empty databases on the server of DATABASE_URL, and a session in which nothing stays.

No database is touched but those that the tests create.
"""
{% endif %}

{% if is_async and db != "sqlite" %}
import asyncio
{% endif %}
{% if db != "sqlite" %}
import uuid
{% endif %}
from collections.abc import {{ "AsyncIterator, Iterator" if is_async and db != "sqlite" else "AsyncIterator" if is_async else "Iterator" }}
{% if db == "sqlite" %}
from pathlib import Path
{% endif %}

import pytest
from alembic.config import Config
{% if is_async %}
{% if db != "sqlite" %}
from sqlalchemy import text
{% endif %}
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
{% else %}
{% if db != "sqlite" %}
from sqlalchemy import Engine, {{ 'make_url, ' if env == 'multitenant' and db == 'mariadb' }}text
{% else %}
from sqlalchemy import Engine
{% endif %}
from sqlalchemy.orm import Session
{% endif %}

from {{ cookiecutter.package_name }} import startup
from {{ cookiecutter.package_name }}.database import make_engine

{% if db != "sqlite" %}
SERVER = make_engine().url


{% if is_async %}
async def run_on_server(*statements: str) -> None:
    """Run statements on the server, outside of a transaction."""
    engine = make_engine(SERVER.render_as_string(hide_password=False))
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()
{% else %}
def run_on_server(*statements: str) -> None:
    """Run statements on the server, outside of a transaction."""
    engine = make_engine(SERVER.render_as_string(hide_password=False))
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()
{% endif %}


{% set run = "asyncio.run(run_on_server(%s))" if is_async else "run_on_server(%s)" %}
{% set force = " WITH (FORCE)" if db == "postgresql" else "" %}
def new_database() -> Iterator[str]:
    """Create a database, give its URL, and drop it."""
    name = f"{{ cookiecutter.package_name }}_test_{uuid.uuid4().hex[:12]}"
    {{ run % 'f"CREATE DATABASE {name}"' }}
    yield SERVER.set(database=name).render_as_string(hide_password=False)
    {{ run % ('f"DROP DATABASE {name}' ~ force ~ '"') }}


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The URL of the database of all tests that roll back what they do."""
    yield from new_database()


@pytest.fixture
def empty_url() -> Iterator[str]:
    """The URL of an empty database for one test."""
    yield from new_database()
{% else %}

@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of the database of all tests that roll back what they do."""
    return f"{{ cookiecutter.__driver }}:///{tmp_path_factory.mktemp('database') / 'test.db'}"


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    """The URL of an empty database for one test."""
    return f"{{ cookiecutter.__driver }}:///{tmp_path / 'empty.db'}"
{% endif %}


{% if is_async %}
@pytest.fixture(scope="session")
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on the database, at head."""
    engine = make_engine(url)
    await startup.start(engine, upgrade=True)
    yield engine
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A session whose commits are rolled back after the test."""
    async with engine.connect() as connection, connection.begin() as transaction:
        async with AsyncSession(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        await transaction.rollback()


@pytest.fixture
def alembic_engine(empty_url: str) -> AsyncEngine:
    """The engine of the tests that pytest-alembic brings."""
    return make_engine(empty_url)
{% else %}
{% if env == "multitenant" %}
@pytest.fixture(scope="session")
def tenant() -> {{ "str" if db == "postgresql" else "Iterator[str]" }}:
    """The name of a tenant."""
{% if db == "postgresql" %}
    return "acme"
{% else %}
    name = f"{{ cookiecutter.package_name }}_test_{uuid.uuid4().hex[:12]}"
    yield name
    run_on_server(f"DROP DATABASE {name}")
{% endif %}


@pytest.fixture(scope="session")
def engine(url: str, tenant: str) -> Iterator[Engine]:
    """An engine on the database, at head, with a tenant."""
    engine = make_engine(url)
    startup.start(engine, upgrade=True)
    startup.add_tenant(engine, tenant)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine, tenant: str) -> Iterator[Session]:
    """A session on the tenant's tables whose commits are rolled back after the test."""
    with engine.connect() as connection, connection.begin() as transaction:
        connection = connection.execution_options(schema_translate_map={None: tenant})
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
{% else %}
@pytest.fixture(scope="session")
def engine(url: str) -> Iterator[Engine]:
    """An engine on the database, at head."""
    engine = make_engine(url)
    startup.start(engine, upgrade=True)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session whose commits are rolled back after the test."""
    with engine.connect() as connection, connection.begin() as transaction:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
{% endif %}


@pytest.fixture
def alembic_engine(empty_url: str) -> Iterator[Engine]:
    """The engine of the tests that pytest-alembic brings."""
    engine = make_engine(empty_url)
    yield engine
    engine.dispose()
{% endif %}


@pytest.fixture
def alembic_config({{ "empty_url: str" if env == "multitenant" }}) -> Config:
    """The configuration of the tests that pytest-alembic brings."""
{% if env == "multitenant" %}
    config = startup.make_config()
    # {{ "The schema" if db == "postgresql" else "The database" }} that is there already is the only tenant.
    config.set_main_option("tenants", {{ '"public"' if db == "postgresql" else 'str(make_url(empty_url).database)' }})
    return config
{% else %}
    return startup.make_config()
{% endif %}
