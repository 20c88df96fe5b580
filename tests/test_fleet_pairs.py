"""A fleet whose option `tenants` gives the URL of each tenant's database."""

from __future__ import annotations

import io
import re
import socket
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError
from conftest import DRIVERS, Database, Project
from sqlalchemy import URL
from test_settings import with_x

OWN = "op.create_table('own', sa.Column('id', sa.Integer))"
FILL = "op.execute('INSERT INTO own VALUES (1)')"
SECRET = "s3cret"
# In the models of the project: notes each connection that is tried.
NOTES = """
from pathlib import Path
from sqlalchemy import Engine, event

def note(_dialect, _record, _args, named):
    with Path(__file__).with_name("tried").open("a") as file:
        print(named.get("port"), file=file)

event.listen(Engine, "do_connect", note)
"""


def file(project: Project, tenant: str) -> Path:
    """Return the file of a tenant."""
    return project.folder / "data" / f"{tenant}.db"


def at(project: Project, tenant: str) -> Database:
    """Return the database of a tenant that is a file."""
    return Database("sqlite", URL.create("sqlite", database=str(file(project, tenant))))


def give(project: Project, rows: object) -> None:
    """Let the option tenants be a function that returns these rows."""
    (project.folder / "who.py").write_text(f"def rows(connection):\n    return {rows!r}\n")
    project.set(tenants="who:rows")


def of_files(project: Project, *tenants: str, driver: str = "sqlite") -> list[tuple[str, str]]:
    """Return pairs of names and the URLs of files, and create the files as empty ones."""
    for tenant in tenants:
        file(project, tenant).touch()
    return [(tenant, f"{driver}:///{file(project, tenant)}") for tenant in tenants]


def upgrade(project: Project, *settings: str) -> None:
    """Upgrade in this process, as a program does."""
    command.upgrade(with_x(project.config(), *settings), "head")


@pytest.fixture
def pairs(fleet_project: Project) -> Project:
    """A project with two revisions, and an empty database to ask for the tenants."""
    (fleet_project.folder / "data").mkdir()
    fleet_project.set(tenants_url="sqlite:///%(here)s/registry.db")
    fleet_project.revision("a1", OWN, "op.drop_table('own')")
    fleet_project.revision("b2", FILL, "op.execute('DELETE FROM own')", down="a1")
    return fleet_project


@pytest.mark.parametrize("form", ["select", "function", "mapping", "without tenants_url"])
def test_forms(pairs: Project, form: str) -> None:
    """A SELECT of two columns, a function or a mapping gives each tenant the database of its URL."""
    rows = of_files(pairs, "ant", "bee", 'it\'s "x"')
    if form == "select":
        registry = Database("sqlite", URL.create("sqlite", database=f"{pairs.folder}/registry.db"))
        registry.run("CREATE TABLE tenant (name TEXT, url TEXT)")
        with registry.engine().begin() as connection:
            for row in rows:
                connection.exec_driver_sql("INSERT INTO tenant VALUES (?, ?)", row)
        pairs.set(tenants="SELECT name, url FROM tenant")
    else:
        give(pairs, dict(rows) if form == "mapping" else rows)
    if form == "without tenants_url":  # a function is asked on the database URL then
        pairs.set(tenants_url=None, sqlalchemy__url="sqlite://")
    upgrade(pairs)
    for tenant, _ in rows:
        assert at(pairs, tenant).rows("SELECT * FROM own") == [(1,)]
        assert at(pairs, tenant).versions() == {"b2"}
    done = pairs.alembic("current", DATABASE_URL="sqlite:///other.db")
    shown = done.stdout.splitlines()
    if form != "without tenants_url":
        assert "Running on the tenants of database " in done.stderr
        assert "The database URL is not used: tenants_url gives the tenants'." in done.stderr
    assert shown[:3] == [f"{tenant}: b2 (head)" for tenant, _ in rows]


@pytest.mark.parametrize("replay", ["false", "true"])
@pytest.mark.parametrize("driver", DRIVERS["sqlite"])
def test_the_command(pairs: Project, driver: str, replay: str) -> None:
    """Workers, tenants by name, the rule for downgrades and a second run: as in any fleet."""
    give(pairs, of_files(pairs, "ant", "bee", "cat", driver=driver))
    args = ["-x", "jobs=2", "-x", f"replay={replay}"]
    done = pairs.alembic(*args, "-x", "tenant=ant,bee", "upgrade", "head")
    assert done.stdout == "2 upgraded, 0 current, 0 failed\n"
    assert at(pairs, "cat").tables() == set()
    done = pairs.alembic(*args, "upgrade", "head")
    assert done.stdout == "1 upgraded, 2 current, 0 failed\n"
    done = pairs.alembic("downgrade", "base", ok=False)
    assert done.stdout.startswith("FAILED: No tenant is named, and downgrade would change all 3: ")
    pairs.alembic(*args, "-x", "tenant=bee", "downgrade", "base")
    assert at(pairs, "bee").tables() == {"alembic_version"}
    assert at(pairs, "ant").rows("SELECT * FROM own") == [(1,)]
    done = pairs.alembic("-x", "tenant=dog", "-x", "create=true", "upgrade", "head", ok=False)
    assert done.stdout == (
        "FAILED: Tenant 'dog' is unknown: option tenants gives no URL for it, correct the name.\n"
    )


def test_missing_files(pairs: Project) -> None:
    """A file that does not exist fails its tenant, and with create=true it is made."""
    give(pairs, of_files(pairs, "ant", "bee"))
    file(pairs, "bee").unlink()
    with pytest.raises(CommandError, match="1 upgraded, 0 current, 1 failed: 'bee': there is no "):
        upgrade(pairs)
    with pytest.raises(CommandError, match="Tenant 'bee' is unknown"):
        upgrade(pairs, "tenant=bee")
    assert not file(pairs, "bee").exists()
    upgrade(pairs, "create=true")
    assert at(pairs, "bee").rows("SELECT * FROM own") == [(1,)]


def test_a_script(pairs: Project) -> None:
    """`--sql` has a part for each tenant, named by its URL without what could be a password."""
    url = f"postgresql+psycopg://me:{SECRET}@db/ant?password={SECRET}"
    give(pairs, [("ant", url), *of_files(pairs, "bee")])
    config = pairs.config()
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    script = config.output_buffer.getvalue()
    assert SECRET not in script
    ant, bee = script.split("-- Tenant 'bee'")
    assert ant.splitlines()[0::2][:2] == [
        "-- Tenant 'ant'",
        "-- 'postgresql+psycopg://me:***@db/ant'",
    ]
    assert "CREATE TABLE own" in ant
    assert "CREATE TABLE own" in bee
    assert at(pairs, "bee").tables() == set()
    config = with_x(pairs.config(), "tenant=bee")
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    assert re.findall("^-- Tenant '(.*)'", config.output_buffer.getvalue(), re.MULTILINE) == ["bee"]


URL_OF = f"postgresql+psycopg://me:{SECRET}@localhost/own"
SHAPE = "dialect+driver://user:password@host/name"
BAD = {
    "none": ([("ant", None)], f"Option tenants gives tenant 'ant' no URL: expected {SHAPE}."),
    "empty": ([("ant", "")], f"Option tenants gives tenant 'ant' no URL: expected {SHAPE}."),
    "number": ([("ant", 5)], f"Option tenants gives tenant 'ant' no URL: expected {SHAPE}."),
    "no-url": (
        [("ant", f"me:{SECRET}@localhost")],
        (
            f"The URL of tenant 'ant' cannot be parsed: expected {SHAPE}, with the characters @ : / % "
            "of a user or password URL-quoted."
        ),
    ),
    "port": (
        [("ant", f"postgresql://me:{SECRET}@localhost:x/y")],
        (
            f"The URL of tenant 'ant' cannot be parsed: expected {SHAPE}, with the characters @ : / % "
            "of a user or password URL-quoted."
        ),
    ),
    "name-twice": (
        [("ant", URL_OF), ("ant", f"{URL_OF}2")],
        "Option tenants gives 'ant' more than once: expected each name once.",
    ),
    "url-twice": (
        [("ant", URL_OF), ("bee", URL_OF.replace("psycopg", "asyncpg").replace("me:", "you:"))],
        (
            "Option tenants gives 'ant' and 'bee' the URL of one database: expected a database for "
            "each."
        ),
    ),
    "no-name": (
        [(None, URL_OF)],
        "Option tenants gives None for a name: expected text that is not empty.",
    ),
    "columns-swapped": (
        [(URL_OF, "ant")],
        "Option tenants gives a URL for a name: expected the name first, and then the URL.",
    ),
    "bytes": (
        [(URL_OF.encode(), URL_OF)],
        "Option tenants gives a URL for a name: expected the name first, and then the URL.",
    ),
    "three": (
        [("ant", URL_OF, SECRET)],
        (
            "Option tenants gives a row of 3 values: expected a name, or a name and the URL of its "
            "database."
        ),
    ),
    "mixed": (
        ["ant", ("bee", URL_OF)],
        (
            "Option tenants gives some tenants with a URL and some without: expected a URL for each of "
            "them, or for none."
        ),
    ),
    "names-alone": (
        ["ant"],
        (
            "Option tenants gives names without URLs: expected a name and a URL for each, {tenant} in "
            "the database URL, or no option tenants_url."
        ),
    ),
    "memory": (
        [("ant", "sqlite://")],
        "The name 'ant' cannot be a tenant's: SQLite takes it for a database in memory.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(pairs: Project, case: str) -> None:
    """A bad row is one sentence that shows no URL, and no tenant is touched, not even a good one."""
    rows, said = BAD[case]
    good = [("zoo", f"sqlite:///{file(pairs, 'zoo')}")] if case != "names-alone" else []
    give(pairs, [*rows, *(["zoo"] if case == "mixed" else good)])
    for run in (command.upgrade, command.downgrade):
        with pytest.raises(CommandError) as raised:
            run(with_x(pairs.config(), "create=true", "tenant=all"), "head")
        assert str(raised.value) == said
    assert not file(pairs, "zoo").exists()


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        pytest.param(
            {"sqlalchemy__url": "sqlite:///{tenant}.db"},
            [],
            "Option tenants gives the URL of each tenant, and the database URL has {tenant} in it: "
            "take one of the two away.",
            id="place-in-the-url",
        ),
        pytest.param(
            {},
            ["url=sqlite:///x.db"],
            "-x url=… has no effect, since the database of option tenants_url gives the URL of each "
            "tenant: leave it out, or write {tenant} into it.",
            id="url",
        ),
        pytest.param(
            {
                "tenants": "SELECT 'ant', 'sqlite:///ant.db'",
                "tenants_url": None,
                "sqlalchemy__url": "sqlite://",
            },
            [],
            "Option tenants gives the URL of each tenant: set option tenants_url to the URL of the "
            "database that it asks.",
            id="select-without-tenants_url",
        ),
        pytest.param(
            {"tenants": "ant bee"},
            [],
            "Option tenants_url has no effect, since option tenants is a list of names and asks no "
            "database: take tenants_url away, or write a SELECT or a function.",
            id="tenants_url-and-a-list",
        ),
    ],
)
def test_what_does_not_fit_together(
    pairs: Project, options: dict[str, str | None], given: list[str], said: str
) -> None:
    """Settings that would be ignored beside the URLs of the tenants are refused."""
    give(pairs, of_files(pairs, "ant"))
    pairs.set(**options)
    with pytest.raises(CommandError) as raised:
        upgrade(pairs, *given)
    assert str(raised.value) == said
    assert at(pairs, "ant").tables() == set()


@pytest.mark.parametrize("replay", ["false", "true"])
def test_three_kinds_of_databases(
    pairs: Project, postgresql: Database, mariadb: Database, replay: str
) -> None:
    """Tenants on PostgreSQL, MariaDB and SQLite are one fleet, each with its own driver and SQL."""
    pairs.revision(
        "c3", "op.execute(sa.table('own', sa.column('id')).insert().values(id=7))", down="b2"
    )
    give(pairs, [("ant", postgresql.text), ("bee", mariadb.text), *of_files(pairs, "cat")])
    upgrade(pairs, f"replay={replay}")
    for database in (postgresql, mariadb, at(pairs, "cat")):
        assert database.versions() == {"c3"}
        assert database.rows("SELECT id FROM own ORDER BY id") == [(1,), (7,)]
    mariadb.run("ALTER TABLE own ADD CONSTRAINT u UNIQUE (id)")
    pairs.revision("d4", "op.create_table('x', sa.Column('id', sa.Integer))\n" + FILL, down="c3")
    with pytest.raises(CommandError, match="2 upgraded, 0 current, 1 failed: 'bee': .*by hand"):
        upgrade(pairs, f"replay={replay}")


def test_a_callers_connection(pairs: Project) -> None:
    """A connection of a program leads to the tenant's database, and only that one is upgraded."""
    give(pairs, of_files(pairs, "ant", "bee"))
    with at(pairs, "bee").engine().connect() as connection:
        command.upgrade(pairs.config(connection=connection, tenant=["bee"]), "head")
        with pytest.raises(CommandError, match="2 tenants are named, and the connection leads to"):
            command.upgrade(pairs.config(connection=connection, tenant="ant,bee"), "head")
    assert at(pairs, "bee").rows("SELECT * FROM own") == [(1,)]
    assert at(pairs, "ant").tables() == set()


@pytest.fixture
def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


DOWN = (
    r"4 tenants \('ant', 'bee', 'cat', 'dog'\) failed: The server 127\.0\.0\.1:{port} does not answer "
    r"\(Connection refused\): start it, and run the command again\.$"
)


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("replay", ["false", "true"])
def test_a_server_that_is_down(
    pairs: Project, postgresql: Database, closed_port: int, jobs: str, replay: str
) -> None:
    """It costs its own tenants, in one entry, and is tried once and not for each tenant."""
    with (pairs.folder / "models.py").open("a") as models:
        models.write(NOTES)
    url = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:{closed_port}"
    rows = [(tenant, f"{url}/{tenant}") for tenant in ("ant", "bee", "cat", "dog")]
    give(pairs, [*rows, ("own", postgresql.text), *of_files(pairs, "zoo")])
    done = pairs.alembic(
        "-x", f"jobs={jobs}", "-x", f"replay={replay}", "upgrade", "head", ok=False
    )
    assert done.returncode == 1
    assert done.stdout == "2 upgraded, 0 current, 4 failed\n"
    (line,) = [line for line in done.stderr.splitlines() if " failed: " in line]
    assert re.search(DOWN.format(port=closed_port), line)
    tried = (pairs.folder / "tried").read_text().split()
    assert tried.count(str(closed_port)) == 1
    assert SECRET not in done.stdout + done.stderr
    assert postgresql.versions() == at(pairs, "zoo").versions() == {"b2"}
    shown = pairs.alembic("current")
    assert shown.stdout.count(": unreadable (unknown)\n") == 4
    assert shown.stderr.count("does not answer") == 1


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_port_that_is_no_number_refuses_no_other_tenant(
    pairs: Project, postgresql: Database, jobs: str
) -> None:
    """With several hosts in the URL, a tenant without a database is alone in failing."""
    url = postgresql.url
    host, port = url.host or url.query["host"], url.port or 5432
    place = f"host={host},{host}&port={port},{port}"
    start = f"postgresql+psycopg://{url.username}:{url.password or ''}@/"
    rows = [("ant", f"{start}nowhere?{place}"), ("bee", f"{start}{url.database}?{place}")]
    give(pairs, rows)
    done = pairs.alembic("-x", f"jobs={jobs}", "upgrade", "head", ok=False)
    assert done.stdout == "1 upgraded, 0 current, 1 failed\n"
    assert re.search(r"Tenant 'ant' failed: Cannot connect to database 'nowhere'", done.stderr)
    assert postgresql.versions() == {"b2"}


def test_a_driver_that_is_missing_is_no_server_that_is_down(
    pairs: Project, closed_port: int
) -> None:
    """The error says what to install, also if nothing listens on the port."""
    give(pairs, [("ant", f"mssql+pyodbc://me@127.0.0.1:{closed_port}/x"), *of_files(pairs, "bee")])
    done = pairs.alembic("upgrade", "head", ok=False)
    assert done.stdout == "1 upgraded, 0 current, 1 failed\n"
    assert "Tenant 'ant' failed: The driver of mssql+pyodbc:// cannot be loaded" in done.stderr


def test_connections_are_counted_for_each_server(
    pairs: Project, postgresql: Database, mariadb: Database
) -> None:
    """More jobs than one of the servers has connections are refused, and that server is named."""
    give(pairs, [("bee", mariadb.text), ("ant", postgresql.text)])
    done = pairs.alembic("-x", "jobs=4000", "upgrade", "head", ok=False)
    assert re.match(
        r"FAILED: 4000 jobs need 4000 connections, and the server 127\.0\.0\.1:3306 has \d+ left: ",
        done.stdout,
    )
    assert postgresql.tables() == mariadb.tables() == set()
