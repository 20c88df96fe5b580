"""Every template, with every driver that it supports, does the same round of commands."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pymysql
import pytest
from conftest import (
    LEFT_BY_A_SCRIPT,
    MATRIX,
    OTHER_DRIVERS,
    Database,
    as_fleet,
    kind_of,
    reached_by,
    render,
)
from pymysql.constants import CLIENT
from sqlalchemy import inspect

TABLES = {"author", "book", "alembic_version"}


def schema(database: Database) -> dict[str, object]:
    """What the database says of its tables."""
    with database.connect() as connection:
        found = inspect(connection)
        return {
            table: (
                [{key: str(value) for key, value in column.items()} for column in columns],
                sorted(map(str, found.get_indexes(table))),
                sorted(map(str, found.get_foreign_keys(table))),
            )
            for table in found.get_table_names()
            for columns in [found.get_columns(table)]
        }


def run_script(database: Database, script: str) -> None:
    """Run a script of several statements with the database's own driver."""
    url = database.url
    if database.kind == "sqlite":
        with closing(sqlite3.connect(str(url.database))) as connection:
            connection.executescript(script)
    elif database.kind == "postgresql":
        conninfo = {"host": str(url.query.get("host") or url.host), "user": url.username}
        with psycopg.connect(
            dbname=url.database, password=url.password, port=url.port, **conninfo
        ) as session:
            session.execute(script.encode())
    else:
        with closing(
            pymysql.connect(
                host=url.host,
                port=url.port or 3306,
                user=url.username,
                password=url.password or "",
                database=url.database,
                client_flag=CLIENT.MULTI_STATEMENTS,
            )
        ) as client:
            with client.cursor() as cursor:
                cursor.execute(script)
                while cursor.nextset():
                    pass
            client.commit()


@pytest.mark.parametrize(
    ("template", "driver"),
    [
        pytest.param(template, driver, id=f"{template}-{driver}")
        for template, drivers in MATRIX.items()
        for driver in drivers
    ],
)
def test_round(template: str, driver: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """From an empty database and back, with the schema asserted at each step; offline the same."""
    if driver in OTHER_DRIVERS.values():
        database = reached_by(driver, request)
    else:
        database = request.getfixturevalue(kind_of(driver))
    project = render(template, tmp_path / "project")
    url = ("-x", f"url={database.url_for(driver, template)}")
    if template == "multitenant":
        as_fleet(project, database)
    assert "New upgrade operations detected" in project.alembic(*url, "check", ok=False).stderr
    assert database.tables() == set()
    project.alembic(*url, "revision", "--autogenerate", "-m", "one")
    project.alembic(*url, "upgrade", "head")
    assert database.tables() == TABLES
    assert "No new upgrade operations" in project.alembic(*url, "check").stdout
    online = schema(database)
    project.alembic(*url, "downgrade", "base")
    assert database.tables() == {"alembic_version"}
    assert database.versions() == set()
    project.alembic(*url, "upgrade", "head")
    assert schema(database) == online
    version = database.versions()

    script = project.alembic(*url, "upgrade", "head", "--sql").stdout
    back = project.alembic(*url, "downgrade", "head:base", "--sql").stdout
    run_script(database, back)
    assert database.tables() == LEFT_BY_A_SCRIPT
    database.run("DROP TABLE IF EXISTS alembic_version")
    run_script(database, script)
    assert schema(database) == online
    assert database.versions() == version
