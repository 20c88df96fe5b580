{% set is_async = cookiecutter.environment == "asyncio" %}
{% set engine = "AsyncEngine" if is_async else "Engine" %}
{% set events = "engine.sync_engine" if is_async else "engine" %}
"""The engine and the sessions of the application."""

import os
{% if cookiecutter.database == "sqlite" %}
from typing import Any
{% endif %}

{% if is_async %}
{% if cookiecutter.database == "sqlite" %}
from sqlalchemy import Connection, event
{% endif %}
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
{% else %}
{% if cookiecutter.database == "sqlite" %}
from sqlalchemy import Connection, Engine, create_engine, event
{% else %}
from sqlalchemy import Engine, create_engine
{% endif %}
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker
{% endif %}

NO_URL = "No database URL: copy .env.example to .env, or set DATABASE_URL."


def make_engine(url: str | None = None) -> {{ engine }}:
    """Return an engine for a URL, by default that of the environment variable DATABASE_URL.

    Raises ArgumentError if neither is given.
    """
    url = url or os.environ.get("DATABASE_URL")
    if not url:
        raise ArgumentError(NO_URL)
{% if cookiecutter.database == "sqlite" %}
    engine = {{ "create_async_engine" if is_async else "create_engine" }}(url)
    event.listen({{ events }}, "connect", _prepare)
    event.listen({{ events }}, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    """Let SQLAlchemy begin transactions: sqlite3 begins none before a SELECT."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
{% else %}
    # A connection that the server has closed in the meantime is replaced.
    return {{ "create_async_engine" if is_async else "create_engine" }}(url, pool_pre_ping=True)
{% endif %}

{% if cookiecutter.environment == "multitenant" %}

def make_sessions(engine: Engine, tenant: str | None = None) -> sessionmaker[Session]:
    """Return what makes sessions on the tables of a tenant, or on the shared ones.

    The name goes before the tables in each statement, so that nothing is left on the connection.
    """
    if tenant is not None:
        engine = engine.execution_options(schema_translate_map={None: tenant})
    return sessionmaker(engine)
{% elif is_async %}

def make_sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Return what makes sessions."""
    return async_sessionmaker(engine, expire_on_commit=False)
{% else %}

def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Return what makes sessions."""
    return sessionmaker(engine)
{% endif %}
