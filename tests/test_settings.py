"""Where an environment's settings come from, which source wins, and how bad ones are refused."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from conftest import DRIVERS, LEFT_BY_A_SCRIPT, Database, Project
from sqlalchemy import URL, Column, Engine, Integer, MetaData, Table, inspect
from sqlalchemy.exc import DBAPIError, OperationalError

PASSWORD = "%@:/ p%40?#=&'%(here)s"

NO_URL = (
    "No database URL: give -x url=…, set sqlalchemy.url in section [alembic] of the Alembic "
    "configuration, or set DATABASE_URL in the environment."
)
NOT_A_URL = (
    "The database URL cannot be parsed: expected dialect+driver://user:password@host/name, with "
    "the characters @ : / % of a user or password URL-quoted."
)
NO_MODELS = (
    "There are no models to compare the database with: set target_metadata = "
    "package.module:attribute in the Alembic configuration, or "
    'Config.attributes["target_metadata"] in a program.'
)
UNKNOWN_VERSION = (
    "The database is at revision b2, which this code does not know: a newer deployment has "
    "migrated it, or the file was deleted; run the command from the code that has this revision."
)


def with_x(config: Config, *arguments: str) -> Config:
    """Give a Config the -x arguments of a command line."""
    config.cmd_opts = Namespace(x=list(arguments))
    return config


def contents(folder: Path) -> dict[str, bytes]:
    """Return each file below a folder with its bytes."""
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@contextmanager
def refused(project: Project, message: str) -> Iterator[None]:
    """Expect a CommandError of exactly these words, and no file made or changed.

    The test's SQLite database is one of the files.
    """
    before = contents(project.folder.parent)
    with pytest.raises(CommandError) as raised:
        yield
    assert str(raised.value) == message
    assert contents(project.folder.parent) == before


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Database:
    """An empty database on each server in turn."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def users(mariadb: Database) -> Iterator[Database]:
    """A MariaDB database of a user whose password URLs and ini files must escape."""
    name, host = f"user_{mariadb.url.database}"[:60], "'%'"
    engine = mariadb.engine()
    with engine.begin() as connection:
        run = connection.exec_driver_sql
        quoted = PASSWORD.replace("%", "%%").replace("'", "''")
        run(f"CREATE USER '{name}'@{host} IDENTIFIED BY '{quoted}'".replace("'%'", "'%%'"))
        run(f"GRANT ALL ON {mariadb.url.database}.* TO '{name}'@{host}".replace("'%'", "'%%'"))
    yield Database("mariadb", mariadb.url.set(username=name, password=PASSWORD))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP USER '{name}'@'%%'")


# --- the URL -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "winner"),
    [
        pytest.param({"x", "ini", "env"}, "x", id="x-before-all"),
        pytest.param({"x", "main", "env"}, "x", id="x-before-main-option"),
        pytest.param({"ini", "env"}, "ini", id="ini-before-env"),
        pytest.param({"main", "ini", "env"}, "main", id="main-option-before-ini-and-env"),
        pytest.param({"env"}, "env", id="env"),
        pytest.param({"empty ini", "env"}, "env", id="empty-ini-is-unset"),
        pytest.param({"empty main", "ini", "env"}, "env", id="empty-main-option-is-unset"),
    ],
)
def test_the_first_source_of_the_url_wins(
    project: Project, monkeypatch: pytest.MonkeyPatch, given: set[str], winner: str
) -> None:
    """-x url wins over sqlalchemy.url, that over DATABASE_URL; no other database is touched."""
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    folder = project.folder.parent
    urls = {name: f"sqlite:///{folder / name}.db" for name in ("x", "ini", "main", "env")}
    if "ini" in given:
        project.set(sqlalchemy__url=urls["ini"])
    if "empty ini" in given:
        project.set(sqlalchemy__url="")
    if "env" in given:
        monkeypatch.setenv("DATABASE_URL", urls["env"])
    config = project.config()
    if "main" in given:
        config.set_main_option("sqlalchemy.url", urls["main"])
    if "empty main" in given:
        config.set_main_option("sqlalchemy.url", "")
    command.upgrade(with_x(config, *([f"url={urls['x']}"] if "x" in given else [])), "head")
    assert [path.stem for path in folder.glob("*.db")] == [winner]
    made = inspect(Database("sqlite", url_of(folder / f"{winner}.db")).engine())
    assert set(made.get_table_names()) == {"made", "alembic_version"}


def url_of(path: Path) -> URL:
    """Return the URL of a SQLite file."""
    return URL.create("sqlite", database=str(path))


@pytest.mark.parametrize("source", ["x", "ini", "environment", "main option", "toml"])
def test_a_password_of_any_characters_arrives(
    project: Project, users: Database, source: str
) -> None:
    """A password full of % @ : / works from every source, doubled % in ini and TOML."""
    project.revision("a1", "op.execute('CREATE TABLE who AS SELECT CURRENT_USER() AS name')")
    url, doubled = users.text, users.text.replace("%", "%%")
    if source == "x":
        project.alembic("-x", f"url={url}", "upgrade", "head")
    elif source == "ini":
        project.set(sqlalchemy__url=doubled)
        project.alembic("upgrade", "head")
    elif source == "environment":
        project.alembic("upgrade", "head", DATABASE_URL=url)
    elif source == "main option":
        config = project.config()
        config.set_main_option("sqlalchemy.url", doubled)
        command.upgrade(config, "head")
    else:
        toml(project, f'"sqlalchemy.url" = "{doubled}"')
        project.alembic("upgrade", "head")
    assert users.rows("SELECT name FROM who") == [(f"{users.url.username}@%",)]


@pytest.mark.parametrize(
    ("url", "x", "message"),
    [
        pytest.param(None, [], NO_URL, id="none"),
        pytest.param(None, ["url="], NO_URL, id="empty-x"),
        pytest.param("sqlite:///{}", ["url="], NO_URL, id="empty-x-over-ini"),
        pytest.param("sqlite:///{}", ["url"], NO_URL, id="x-without-value-over-ini"),
        pytest.param("postgresql//me:s3cret@host/name", [], NOT_A_URL, id="no-colon"),
        pytest.param("postgresql://me:s3cret@host:port/name", [], NOT_A_URL, id="port"),
        pytest.param(
            "sqlite:///{}%20s3cret",
            [],
            "Option sqlalchemy.url of section [alembic] cannot be read: write each % in its value "
            "as %%.",
            id="single-percent",
        ),
        pytest.param(
            "nosuch://me:s3cret@host/name",
            [],
            "The driver of nosuch:// cannot be loaded (Can't load plugin: "
            "sqlalchemy.dialects:nosuch): install it, or correct the dialect+driver of the "
            "database URL.",
            id="unknown-dialect",
        ),
        pytest.param(
            "postgresql+nosuch://me:s3cret@host/name",
            [],
            "The driver of postgresql+nosuch:// cannot be loaded (Can't load plugin: "
            "sqlalchemy.dialects:postgresql.nosuch): install it, or correct the dialect+driver of "
            "the database URL.",
            id="unknown-driver",
        ),
        pytest.param(
            "sqlite+asyncpg:///{}",
            [],
            "The driver of sqlite+asyncpg:// cannot be loaded (Can't load plugin: "
            "sqlalchemy.dialects:sqlite.asyncpg): install it, or correct the dialect+driver of "
            "the database URL.",
            id="driver-of-another-dialect",
        ),
        pytest.param(
            "mssql+pymssql://me:s3cret@host/name",
            [],
            "The driver of mssql+pymssql:// cannot be loaded (No module named 'pymssql'): install "
            "it, or correct the dialect+driver of the database URL.",
            id="missing-driver",
        ),
        *(
            pytest.param(
                f"{scheme}://me:s3cret@host/name",
                [],
                "SQLAlchemy has no postgres://: write postgresql://.",
                id=scheme,
            )
            for scheme in ("postgres", "postgres+asyncpg")
        ),
        *(
            pytest.param(
                f"{url}",
                [],
                "The database URL has a host, and SQLite has none: write three slashes, as in "
                "sqlite:///app.db, or four before an absolute path.",
                id=url,
            )
            for url in ("sqlite://s3cret.db", "sqlite+aiosqlite://s3cret/app.db")
        ),
    ],
)
@pytest.mark.parametrize("run", ["upgrade", "current", "autogenerate"])
def test_a_bad_url_is_refused(
    project: Project, sqlite: Database, url: str | None, x: list[str], message: str, run: str
) -> None:
    """A URL that is missing or wrong is one sentence without the password, and nothing is made."""
    if url is not None:
        project.set(sqlalchemy__url=url.format(sqlite.url.database))
    config = with_x(project.config(), *x)
    with refused(project, message):
        RUNS[run](config)


RUNS: dict[str, Callable[[Config], object]] = {
    "upgrade": lambda config: command.upgrade(config, "head"),
    "downgrade": lambda config: command.downgrade(config, "base"),
    "current": command.current,
    "check": command.check,
    "autogenerate": lambda config: command.revision(config, "x", autogenerate=True),
}


def test_an_empty_database_url_counts_as_unset(project: Project) -> None:
    """DATABASE_URL without a value is no URL, and the command says which three places have one."""
    done = project.alembic("upgrade", "head", ok=False, DATABASE_URL="")
    assert done.stdout == f"FAILED: {NO_URL}\n"


@pytest.mark.parametrize(
    "drivername", [name for kind in ("postgresql", "mariadb") for name in DRIVERS[kind]]
)
def test_an_unreachable_server_is_named(project: Project, drivername: str) -> None:
    """A server that does not answer is named with host and database, never with the password."""
    url = f"{drivername}://me:s3cret@127.0.0.1:1/shop"
    with pytest.raises(CommandError) as raised:
        command.upgrade(project.config(url), "head")
    message = str(raised.value)
    start = f"Cannot connect to database 'shop' on 127.0.0.1:1 with {drivername} ("
    assert message.startswith(start)
    assert message.endswith("): check the URL and that the server runs.")
    assert "\n" not in message
    assert "s3cret" not in message


def test_a_refused_password_is_not_shown(project: Project, users: Database) -> None:
    """A wrong password is reported in the server's own words, and never shown."""
    wrong = users.url.set(password="s3cret")
    done = project.alembic(
        "upgrade", "head", ok=False, DATABASE_URL=wrong.render_as_string(hide_password=False)
    )
    output = done.stdout + done.stderr
    assert f"Cannot connect to database '{wrong.database}' on {wrong.host}" in output
    assert "Access denied" in output
    assert "s3cret" not in output


def test_a_file_that_cannot_be_opened_is_named(project: Project, tmp_path: Path) -> None:
    """A SQLite file in a folder that does not exist is named."""
    path = tmp_path / "nosuch" / "test.db"
    with refused(
        project,
        f"Cannot connect to database '{path}' with sqlite (unable to open database file): "
        f"check the URL, and that the folder {path.parent} exists.",
    ):
        command.upgrade(project.config(f"sqlite:///{path}"), "head")


@pytest.mark.parametrize(
    ("drivername", "module", "install"),
    [
        ("postgresql+psycopg", "psycopg", "pip install 'psycopg[binary]'"),
        ("postgresql+psycopg_async", "psycopg", "pip install 'psycopg[binary]'"),
        ("postgresql+psycopg2", "psycopg2", "pip install psycopg2-binary"),
        ("postgresql+asyncpg", "asyncpg", "pip install asyncpg"),
        ("mysql", "MySQLdb", "pip install mysqlclient, or pymysql with mysql+pymysql://"),
        ("mariadb", "MySQLdb", "pip install mysqlclient, or pymysql with mysql+pymysql://"),
        ("mysql+pymysql", "pymysql", "pip install pymysql"),
        ("mysql+aiomysql", "aiomysql", "pip install aiomysql"),
        ("mysql+asyncmy", "asyncmy", "pip install asyncmy"),
        ("sqlite+aiosqlite", "aiosqlite", "pip install aiosqlite"),
    ],
)
def test_a_missing_driver_is_named_as_pip_knows_it(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    drivername: str,
    module: str,
    install: str,
) -> None:
    """The error for a driver that is not installed says how to install it."""
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with refused(
        project,
        f"The driver of {drivername}:// cannot be loaded (import of {module} halted; None in "
        f"sys.modules): install it ({install}), or correct the dialect+driver of the database URL.",
    ):
        command.upgrade(project.config(f"{drivername}:///name"), "head")


# --- the other options -------------------------------------------------------------------------


def bad(name: str, value: str) -> str:
    """Return the refusal of a number of seconds."""
    return f"{name} is {value!r}: expected a number of seconds, 0 or more."


@pytest.mark.parametrize("name", ["lock_timeout", "ddl_lock_timeout"])
def test_true_is_no_number_of_seconds(project: Project, sqlite: Database, name: str) -> None:
    """A boolean of TOML, which Python takes for 1, is refused."""
    toml(project, f"{name} = true")
    config = Config(toml_file=project.folder / "pyproject.toml")
    with refused(project, f"{name} is True: expected a number of seconds, 0 or more."):
        command.upgrade(with_x(config, f"url={sqlite.text}"), "head")


def metadata_error(name: str, reason: str) -> str:
    """Return the refusal of a target_metadata that cannot be imported."""
    return (
        f"Option target_metadata names {name!r}, which cannot be imported ({reason}): "
        "correct the name, the module, or prepend_sys_path."
    )


def form_error(name: str) -> str:
    """Return the refusal of a target_metadata that is not written as module:attribute."""
    return (
        f"Option target_metadata names {name!r}: expected package.module:attribute, "
        "such as myapp.models:Base.metadata."
    )


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        *[
            pytest.param({name: value}, [], bad(name, value), id=f"{name}={value}")
            for name in ("lock_timeout", "ddl_lock_timeout")
            for value in ("soon", "-1", "nan", "inf", "1s")
        ],
        *[
            pytest.param(
                {name: "5"}, [f"{name}={value}"], bad(name, value), id=f"-x-{name}={value}"
            )
            for name in ("lock_timeout", "ddl_lock_timeout")
            for value in ("soon", "-1", "")
        ],
        pytest.param(
            {"transaction_per_migration": "yes"},
            [],
            "Option transaction_per_migration is 'yes': expected true or false.",
            id="flag",
        ),
        pytest.param(
            {"sqlalchemy__colour": "red"},
            [],
            "No engine can be made for sqlite:// (Invalid argument(s) 'colour' sent to "
            "create_engine(), using configuration SQLiteDialect_pysqlite/NullPool/Engine.  Please "
            "check that the keyword arguments are appropriate for this combination of "
            "components.): correct the sqlalchemy.* options or the dialect+driver of the "
            "database URL.",
            id="engine-option",
        ),
        pytest.param({"target_metadata": "models"}, [], form_error("models"), id="no-colon"),
        pytest.param({"target_metadata": "models:"}, [], form_error("models:"), id="no-attribute"),
        pytest.param({"target_metadata": ":metadata"}, [], form_error(":metadata"), id="no-module"),
        *(
            pytest.param(
                {"target_metadata": given},
                [],
                f"Option target_metadata names {given.split()[0]!r}: separate several by spaces, "
                "without a comma.",
                id=given,
            )
            for given in ("models:metadata,other:metadata", "models:metadata, other:metadata")
        ),
        pytest.param(
            {"target_metadata": "models:metadata nosuch"}, [], form_error("nosuch"), id="second"
        ),
        pytest.param(
            {"target_metadata": "models:author"},
            [],
            "Option target_metadata names 'models:author', which is a Table: expected a "
            "sqlalchemy.MetaData, such as the attribute metadata of a declarative base.",
            id="a-table",
        ),
        pytest.param(
            {"target_metadata": "nosuch:metadata"},
            [],
            metadata_error("nosuch:metadata", "ModuleNotFoundError: No module named 'nosuch'"),
            id="no-such-module",
        ),
        pytest.param(
            {"target_metadata": "models:nosuch"},
            [],
            metadata_error(
                "models:nosuch", "AttributeError: module 'models' has no attribute 'nosuch'"
            ),
            id="no-such-attribute",
        ),
        pytest.param(
            {"target_metadata": "broken:metadata"},
            [],
            metadata_error("broken:metadata", "RuntimeError: SECRET_KEY is not set"),
            id="module-that-raises",
        ),
    ],
)
@pytest.mark.parametrize("run", ["upgrade", "autogenerate"])
def test_a_bad_option_is_refused(
    project: Project,
    sqlite: Database,
    options: dict[str, str],
    x: list[str],
    message: str,
    run: str,
) -> None:
    """An option with a bad value is named with the value and what is expected; nothing is made."""
    (project.folder / "broken.py").write_text("raise RuntimeError('SECRET_KEY is not set')\n")
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    project.set(**options)
    with refused(project, message):
        RUNS[run](with_x(project.config(sqlite.text), *x))


@pytest.mark.parametrize("given", ["models:metadata", object()], ids=["text", "object"])
def test_an_attribute_of_another_type_is_refused(
    project: Project, sqlite: Database, given: object
) -> None:
    """Config.attributes["target_metadata"] that is no MetaData is refused, as an option is."""
    with pytest.raises(CommandError, match="MetaData"):
        command.upgrade(project.config(sqlite.text, target_metadata=given), "head")
    assert not Path(str(sqlite.url.database)).exists()


def test_the_import_error_stays_visible(project: Project, sqlite: Database) -> None:
    """A module that cannot be imported keeps its own error as the cause, for the traceback."""
    (project.folder / "broken.py").write_text("raise RuntimeError('SECRET_KEY is not set')\n")
    project.set(target_metadata="broken:metadata")
    with pytest.raises(CommandError) as raised:
        command.upgrade(project.config(sqlite.text), "head")
    cause = raised.value.__cause__
    assert isinstance(cause, RuntimeError)
    assert cause.args == ("SECRET_KEY is not set",)


MODULES = {
    "shop": "import types\nBase = types.SimpleNamespace(metadata=MetaData())\n"
    "Table('item', Base.metadata, Column('id', Integer, primary_key=True))\n",
    "pay": "class models:\n    metadata = MetaData()\n"
    "Table('bill', models.metadata, Column('id', Integer, primary_key=True))\n",
}


@pytest.mark.parametrize(
    ("option", "attribute", "tables"),
    [
        pytest.param("models:metadata", None, {"author", "book"}, id="option"),
        pytest.param("shop:Base.metadata", None, {"item"}, id="dotted"),
        pytest.param("shop:Base.metadata pay:models.metadata", None, {"item", "bill"}, id="two"),
        pytest.param("shop:Base.metadata", "given", {"given"}, id="attribute-first"),
        pytest.param("", "given", {"given"}, id="attribute-alone"),
        pytest.param("nosuch:metadata", "given", {"given"}, id="option-not-imported"),
    ],
)
def test_the_models_are_found(
    project: Project, sqlite: Database, option: str, attribute: str | None, tables: set[str]
) -> None:
    """target_metadata comes from Config.attributes, unless None there, else from the option."""
    for name, code in MODULES.items():
        text = f"from sqlalchemy import Column, Integer, MetaData, Table\n{code}"
        (project.folder / f"{name}.py").write_text(text)
    project.set(target_metadata=option)
    metadata = None
    if attribute is not None:
        metadata = MetaData()
        Table(attribute, metadata, Column("id", Integer, primary_key=True))
    config = project.config(sqlite.text, target_metadata=metadata)
    command.revision(config, "x", autogenerate=True)
    command.upgrade(config, "head")
    assert sqlite.tables() == {*tables, "alembic_version"}
    command.check(config)


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
@pytest.mark.parametrize("run", ["autogenerate", "check"])
def test_without_models_nothing_is_compared(
    project: Project, sqlite: Database, run: str, value: str | None
) -> None:
    """Without models, autogenerate and check say what to set, rather than drop all tables."""
    sqlite.run("CREATE TABLE kept (id INTEGER)")
    project.set(target_metadata=value)
    with refused(project, NO_MODELS):
        RUNS[run](project.config(sqlite.text))


def test_without_models_migrations_run(project: Project, sqlite: Database) -> None:
    """Without models, everything that compares nothing works."""
    project.set(target_metadata="")
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    config = project.config(sqlite.text)
    command.upgrade(config, "head")
    command.current(config)
    assert sqlite.tables() == {"made", "alembic_version"}


def test_the_version_table_is_named(project: Project, database: Database) -> None:
    """Option version_table names the table that holds the version."""
    project.set(version_table="schema_version")
    project.revision("a1")
    command.upgrade(project.config(database.text), "head")
    assert database.tables() == {"schema_version"}
    assert database.versions("schema_version") == {"a1"}


def test_the_version_table_is_put_in_a_schema(project: Project, postgresql: Database) -> None:
    """Option version_table_schema places the version table, and only that, in a schema."""
    postgresql.run("CREATE SCHEMA versions")
    project.set(version_table_schema="versions", version_table="shop")
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    config = project.config(postgresql.text)
    command.upgrade(config, "head")
    assert postgresql.tables() == {"made"}
    assert postgresql.versions("versions.shop") == {"a1"}
    command.downgrade(config, "base")
    assert postgresql.versions("versions.shop") == set()


@pytest.mark.parametrize(
    ("value", "tables"),
    [
        pytest.param("true", {"one", "alembic_version"}, id="each"),
        pytest.param("True", {"one", "alembic_version"}, id="any-case"),
        pytest.param("false", set(), id="one-for-all"),
        pytest.param(None, set(), id="unset"),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_transaction_for_each_revision(
    project: Project,
    request: pytest.FixtureRequest,
    kind: str,
    value: str | None,
    tables: set[str],
) -> None:
    """With transaction_per_migration a failing revision keeps those before it, else none stays."""
    database: Database = request.getfixturevalue(kind)
    project.set(transaction_per_migration=value)
    project.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    project.revision(
        "a2",
        "op.create_table('two', sa.Column('id', sa.Integer))\nraise RuntimeError('broken')",
        down="a1",
    )
    with pytest.raises(RuntimeError, match="broken"):
        command.upgrade(project.config(database.text), "head")
    assert database.tables() == tables
    if tables:
        assert database.versions() == {"a1"}


@pytest.mark.parametrize("value", ["true", "false"])
def test_engine_options_reach_the_engine(project: Project, sqlite: Database, value: str) -> None:
    """sqlalchemy.echo shows each statement, and false does not."""
    project.set(sqlalchemy__echo=value)
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    done = project.alembic("-x", f"url={sqlite.text}", "upgrade", "head")
    assert ("CREATE TABLE made" in done.stdout + done.stderr) == (value == "true")
    assert sqlite.versions() == {"a1"}


# --- how long DDL waits ------------------------------------------------------------------------

# Read the setting; set it as an application does; what is then read; a revision that records it.
DDL_WAIT = {
    "postgresql": (
        "SELECT current_setting('lock_timeout')",
        "SET SESSION lock_timeout = '7s'",
        "7s",
        "3s",
    ),
    "mariadb": (
        "SELECT @@SESSION.lock_wait_timeout",
        "SET SESSION lock_wait_timeout = 77",
        77,
        3,
    ),
}


@pytest.mark.parametrize("source", ["x", "option"])
def test_ddl_waits_no_longer_than_it_may(project: Project, server: Database, source: str) -> None:
    """With ddl_lock_timeout a statement gives up on a table that another transaction holds."""
    project.revision("a1", "op.add_column('busy', sa.Column('more', sa.Integer))")
    server.run("CREATE TABLE busy (id INTEGER)")
    project.set(ddl_lock_retries="0")
    x = []
    if source == "x":
        project.set(ddl_lock_timeout="100")
        x = ["ddl_lock_timeout=1"]
    else:
        project.set(ddl_lock_timeout="0.2")
    # The server itself ends the other transaction, so that without the limit the test fails.
    release = {
        "postgresql": "SET idle_in_transaction_session_timeout = '12s'",
        "mariadb": "SET SESSION idle_transaction_timeout = 12",
    }[server.kind]
    with server.engine().connect() as other:
        other.exec_driver_sql(release)
        other.exec_driver_sql("SELECT * FROM busy").all()
        with pytest.raises(OperationalError, match="(?i)lock (wait )?timeout"):
            command.upgrade(with_x(project.config(server.text), *x), "head")
        other.rollback()
    columns = inspect(server.engine()).get_columns("busy")
    assert [column["name"] for column in columns] == ["id"]


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("begun", [False, True], ids=["own-transaction", "callers-transaction"])
def test_the_wait_of_ddl_is_put_back(
    project: Project, server: Database, begun: bool, fails: bool
) -> None:
    """On a shared connection the limit holds for the run and is then what it was."""
    read, write, before, during = DDL_WAIT[server.kind]
    project.set(ddl_lock_timeout="3")
    project.revision(
        "a1",
        f"value = op.get_bind().exec_driver_sql({read!r}).scalar()\n"
        "context.config.attributes['seen'].append(value)\n"
        + ("op.execute('SELECT * FROM nosuch')" if fails else ""),
    )
    with server.engine().connect() as connection:
        connection.exec_driver_sql(write)
        connection.commit()
        seen: list[object] = []
        config = project.config(connection=connection, seen=seen)
        if begun:
            connection.begin()
        if fails:
            with pytest.raises(DBAPIError, match="nosuch"):
                command.upgrade(config, "head")
        else:
            command.upgrade(config, "head")
        assert seen == [during]
        if begun and fails:
            connection.rollback()
        assert connection.exec_driver_sql(read).scalar() == before
        connection.rollback()
        assert connection.exec_driver_sql(read).scalar() == before


# --- data migrations ---------------------------------------------------------------------------


@pytest.mark.parametrize("x", [(), ("data=true",), ("data=false",)], ids=["none", "true", "false"])
def test_the_data_part_runs_where_asked_for(
    project: Project, sqlite: Database, x: tuple[str, ...]
) -> None:
    """data_migrations gives four functions; -x data=true runs the data part, up and down."""
    sqlite.run("CREATE TABLE ran (name TEXT)")
    project.set(data_migrations="true")
    config = project.config(sqlite.text)
    script = command.revision(config, "x", rev_id="a1")
    path = Path(script.path)  # type: ignore[union-attr]
    text = path.read_text()
    for name in ("schema_upgrades", "schema_downgrades", "data_upgrades", "data_downgrades"):
        head = f"def {name}() -> None:\n"
        assert text.count(head) == 1
        before, _, after = text.partition(head)
        doc, _, rest = after.partition("\n")
        text = f"{before}{head}{doc}\n    op.execute(\"INSERT INTO ran VALUES ('{name}')\")\n{rest}"
    path.write_text(text)
    data = x == ("data=true",)

    command.upgrade(with_x(config, *x), "head")
    ran = ["schema_upgrades", "data_upgrades"] if data else ["schema_upgrades"]
    assert [row[0] for row in sqlite.rows("SELECT name FROM ran")] == ran

    command.downgrade(with_x(config, *x), "base")
    ran += ["data_downgrades", "schema_downgrades"] if data else ["schema_downgrades"]
    assert [row[0] for row in sqlite.rows("SELECT name FROM ran")] == ran


@pytest.mark.parametrize("value", ["false", None], ids=["false", "unset"])
def test_without_data_migrations_a_revision_has_two_functions(
    project: Project, value: str | None
) -> None:
    """A revision is upgrade() and downgrade() alone, unless data_migrations = true."""
    project.set(data_migrations=value)
    script = command.revision(project.config(), "x")
    text = Path(script.path).read_text()  # type: ignore[union-attr]
    defined = [line for line in text.splitlines() if line.startswith("def ")]
    assert defined == ["def upgrade() -> None:", "def downgrade() -> None:"]


# --- sections and pyproject.toml ---------------------------------------------------------------


def test_a_section_has_a_database_of_its_own(project: Project, tmp_path: Path) -> None:
    """With --name a section's URL is used, and the other section's database is not touched."""
    one, two = (Database("sqlite", url_of(tmp_path / name)) for name in ("one.db", "two.db"))
    shared = {"script_location": "%(here)s/migrations", "path_separator": "os"}
    project.set(sqlalchemy__url=one.text)
    project.set("second", **shared, sqlalchemy__url=two.text, version_table="second_version")
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    project.alembic("--name", "second", "upgrade", "head")
    assert not (tmp_path / "one.db").exists()
    assert two.tables() == {"made", "second_version"}
    project.alembic("upgrade", "head")
    assert one.tables() == {"made", "alembic_version"}


def test_sections_share_a_database(project: Project, database: Database) -> None:
    """Two sections with version tables and revisions of their own live in one database."""
    versions = project.folder / "migrations" / "second"
    versions.mkdir()
    project.set(
        "second",
        script_location="%(here)s/migrations",
        path_separator="os",
        version_locations="%(here)s/migrations/second",
        version_table="second_version",
    )
    project.revision("b1", "op.create_table('two', sa.Column('id', sa.Integer))").rename(
        versions / "b1.py"
    )
    project.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    for section in ("alembic", "second"):
        config = Config(project.folder / "alembic.ini", ini_section=section)
        command.upgrade(with_x(config, f"url={database.text}"), "head")
    assert database.tables() == {"one", "two", "alembic_version", "second_version"}
    assert database.versions() == {"a1"}
    assert database.versions("second_version") == {"b1"}


def test_an_unknown_section_is_refused(project: Project, tmp_path: Path) -> None:
    """Otherwise the settings of pyproject.toml would count, and lead to another database."""
    other = url_of(tmp_path / "other.db").render_as_string()
    toml(project, f'"sqlalchemy.url" = "{other}"')
    (project.folder / "alembic.ini").write_text("[second]\nsqlalchemy.url = sqlite://\n")
    done = project.alembic("--name", "secnod", "upgrade", "head", ok=False)
    assert "There is no section [secnod] in the ini file: correct --name." in done.stdout
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize("line", ['sqlalchemy.url = "{}"', "sqlalchemy = {{url = '{}'}}"])
def test_a_table_of_toml_is_no_option(project: Project, tmp_path: Path, line: str) -> None:
    """A dot without quotes makes a table in TOML, and DATABASE_URL would be used."""
    toml(project, line.format("sqlite://"))
    url = url_of(tmp_path / "other.db").render_as_string()
    done = project.alembic("upgrade", "head", ok=False, DATABASE_URL=url)
    assert 'write a dot in quotes, as in "sqlalchemy.url" = …' in done.stdout + done.stderr
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize("revision", ["nosuch-x", "my-branch@head", "1.2-rc1+1", "nosuch-1"])
def test_a_mistyped_revision_is_not_the_databases(project: Project, revision: str) -> None:
    """Alembic's own error says which revision is not found."""
    project.revision("a1")
    done = project.alembic("-x", "url=sqlite://", "upgrade", revision, ok=False)
    assert "which this code does not know" not in done.stdout + done.stderr
    assert "FAILED: " in done.stdout + done.stderr


def test_a_missing_url_names_the_section(project: Project) -> None:
    """The refusal names the section of --name."""
    project.set("second", script_location="%(here)s/migrations", path_separator="os")
    config = Config(project.folder / "alembic.ini", ini_section="second")
    with refused(project, NO_URL.replace("[alembic]", "[second]")):
        command.upgrade(config, "head")


def toml(project: Project, *lines: str) -> None:
    """Replace alembic.ini by a [tool.alembic] section."""
    (project.folder / "alembic.ini").unlink()
    (project.folder / "pyproject.toml").write_text(
        "\n".join(
            [
                "[tool.alembic]",
                'script_location = "%(here)s/migrations"',
                'prepend_sys_path = ["%(here)s"]',
                *lines,
            ]
        )
        + "\n"
    )


def test_all_settings_stand_in_pyproject(project: Project, sqlite: Database) -> None:
    """Without alembic.ini every option is read from [tool.alembic], in the types of TOML."""
    toml(
        project,
        f'"sqlalchemy.url" = "{sqlite.text}"',
        '"sqlalchemy.echo" = true',
        'target_metadata = "models:metadata"',
        'version_table = "schema_version"',
        "transaction_per_migration = true",
        "data_migrations = true",
        "lock_timeout = 20",
        "ddl_lock_timeout = 2.5",
        'autogenerate_rules = ["sort_columns", "if_exists"]',
    )
    project.alembic("revision", "--autogenerate", "-m", "x", "--rev-id", "a1")
    text = next((project.folder / "migrations" / "versions").glob("a1_*.py")).read_text()
    assert "def data_upgrades() -> None:" in text
    assert "if_not_exists=True" in text
    project.revision("a2", "op.execute('CREATE TABLE t (id INT)')\nraise ValueError", down="a1")
    failed = project.alembic("upgrade", "head", ok=False)
    assert "CREATE TABLE IF NOT EXISTS author" in failed.stdout
    assert sqlite.tables() == {"author", "book", "schema_version"}
    assert sqlite.versions("schema_version") == {"a1"}
    project.alembic("check", ok=False)
    (project.folder / "migrations" / "versions" / "a2.py").unlink()
    project.alembic("check")
    project.alembic("downgrade", "base")
    assert sqlite.tables() == {"schema_version"}


def test_numbers_and_lists_in_pyproject_count(project: Project, sqlite: Database) -> None:
    """A TOML float limits the wait for the lock, and a TOML list names several metadata."""
    (project.folder / "more.py").write_text(
        "from sqlalchemy import Column, Integer, MetaData, Table\nmetadata = MetaData()\n"
        "Table('more', metadata, Column('id', Integer, primary_key=True))\n"
    )
    toml(
        project,
        "lock_timeout = 0.25",
        'target_metadata = ["models:metadata", "more:metadata"]',
        "autogenerate_rules = []",
    )
    config = Config(toml_file=project.folder / "pyproject.toml")
    with_x(config, f"url={sqlite.text}")
    command.revision(config, "x", autogenerate=True)
    with sqlite.engine().connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(CommandError) as raised:
            command.upgrade(config, "head")
        other.exec_driver_sql("ROLLBACK")
    assert str(raised.value) == (
        "Another process migrates this database: waited 0.25 seconds for the write lock of "
        f"{sqlite.url.database}; run the command again when it has finished, or raise lock_timeout."
    )
    command.upgrade(config, "head")
    assert sqlite.tables() == {"author", "book", "more", "alembic_version"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(
            'transaction_per_migration = "yes"',
            "Option transaction_per_migration is 'yes': expected true or false.",
            id="flag",
        ),
        pytest.param(
            "lock_timeout = -1", bad("lock_timeout", "").replace("''", "-1"), id="seconds"
        ),
        pytest.param('target_metadata = ["models"]', form_error("models"), id="list"),
        pytest.param(
            '"sqlalchemy.url" = "sqlite:///a%b"',
            "Option sqlalchemy.url of section [alembic] cannot be read: write each % in its value "
            "as %%.",
            id="single-percent",
        ),
    ],
)
def test_a_bad_value_in_pyproject_is_refused(
    project: Project, sqlite: Database, line: str, message: str
) -> None:
    """A bad value under [tool.alembic] is refused in the words of one in alembic.ini."""
    toml(project, line)
    config = Config(toml_file=project.folder / "pyproject.toml")
    if "url" not in line:
        with_x(config, f"url={sqlite.text}")
    with refused(project, message):
        command.upgrade(config, "head")


# --- --sql -------------------------------------------------------------------------------------


def described(engine: Engine) -> dict[str, object]:
    """Return what a database holds: tables, columns, keys, indexes, and the rows of the version."""
    inspector = inspect(engine)
    with engine.connect() as connection:
        rows = {
            name: sorted(connection.exec_driver_sql(f"SELECT * FROM {name}").all())
            for name in inspector.get_table_names()
        }
    return {
        name: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in columns],
            inspector.get_pk_constraint(name)["constrained_columns"],
            [key["name"] for key in inspector.get_foreign_keys(name)],
            [index["name"] for index in inspector.get_indexes(name)],
            rows[name],
        )
        for name in inspector.get_table_names()
        for columns in [inspector.get_columns(name)]
    }


def execute(database: Database, script: str) -> None:
    """Run a SQL script as the database's own client would: no parameters, % as it stands."""
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    with closing(database.engine().raw_connection()) as connection:
        for statement in "\n".join(lines).split(";\n"):
            if statement.strip():
                with closing(connection.cursor()) as cursor:
                    cursor.execute(statement)
        connection.commit()


def test_a_script_does_what_the_run_does(project: Project, database: Database) -> None:
    """The SQL of `upgrade --sql` and `downgrade --sql` makes and removes the same tables."""
    command.revision(project.config(database.text), "models", autogenerate=True, rev_id="a1")
    project.revision(
        "a2",
        """
        author = sa.table("author", sa.column("id", sa.Integer), sa.column("name", sa.String))
        op.bulk_insert(author, [{"id": 1, "name": "100% %s :name"}])
        op.execute(author.insert().values(id=2, name="it's"))
        op.add_column("book", sa.Column("pages", sa.Integer))
        """,
        """
        op.drop_column("book", "pages")
        op.execute("DELETE FROM author")
        """,
        down="a1",
    )

    def script(run: Callable[..., None], revision: str) -> str:
        buffer = io.StringIO()
        config = project.config(database.text)
        config.output_buffer = buffer
        run(config, revision, sql=True)
        return buffer.getvalue()

    up, down = script(command.upgrade, "head"), script(command.downgrade, "a2:a1")
    down_all = script(command.downgrade, "a1:base")
    assert database.tables() == set()

    execute(database, up)
    by_script = described(database.engine())
    names = database.rows("SELECT name FROM author ORDER BY id")
    assert names == [("100% %s :name",), ("it's",)]
    assert database.versions() == {"a2"}
    execute(database, down)
    below = described(database.engine())
    assert database.versions() == {"a1"}
    execute(database, down_all)
    assert database.tables() == LEFT_BY_A_SCRIPT
    if LEFT_BY_A_SCRIPT:
        assert database.versions() == set()

    config = project.config(database.text)
    command.upgrade(config, "head")
    assert described(database.engine()) == by_script
    command.downgrade(config, "a1")
    assert described(database.engine()) == below


@pytest.mark.parametrize("drivername", [name for names in DRIVERS.values() for name in names])
def test_a_script_needs_neither_server_nor_driver(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drivername: str
) -> None:
    """`--sql` is written where no server answers and the driver is not installed."""
    for module in ("psycopg", "asyncpg", "pymysql", "aiomysql", "asyncmy", "aiosqlite"):
        monkeypatch.setitem(sys.modules, module, None)
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    place = f"/{tmp_path}/none.db" if "sqlite" in drivername else "me:s3cret@nowhere.invalid/shop"
    buffer = io.StringIO()
    config = project.config(f"{drivername}://{place}")
    config.output_buffer = buffer
    command.upgrade(config, "head", sql=True)
    assert "CREATE TABLE made" in buffer.getvalue()
    assert "INSERT INTO alembic_version (version_num) VALUES ('a1')" in buffer.getvalue()
    assert "s3cret" not in buffer.getvalue()
    assert not (tmp_path / "none.db").exists()


def test_a_script_goes_to_standard_output_alone(project: Project) -> None:
    """What `alembic upgrade --sql` prints on standard output is SQL, and nothing else is."""
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    done = project.alembic("-x", "url=postgresql://nowhere.invalid/x", "upgrade", "head", "--sql")
    assert done.stdout.startswith("BEGIN;\n\nCREATE TABLE alembic_version (")
    assert done.stdout.endswith("COMMIT;\n\n")
    assert "INFO" not in done.stdout


def test_a_script_without_url_is_refused(project: Project) -> None:
    """`--sql` needs the URL to know the dialect, and says where to set it."""
    with refused(project, NO_URL):
        command.upgrade(project.config(), "head", sql=True)


# --- revisions that are not there --------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda config: command.upgrade(config, "head"), id="upgrade"),
        pytest.param(lambda config: command.upgrade(config, "heads"), id="upgrade-heads"),
        pytest.param(lambda config: command.upgrade(config, "ab2c"), id="upgrade-to-like-name"),
        pytest.param(lambda config: command.upgrade(config, "+1"), id="upgrade-relative"),
        pytest.param(lambda config: command.downgrade(config, "base"), id="downgrade"),
        pytest.param(lambda config: command.downgrade(config, "-1"), id="downgrade-relative"),
        pytest.param(lambda config: command.stamp(config, "head"), id="stamp"),
        pytest.param(command.current, id="current"),
        pytest.param(lambda config: command.current(config, verbose=True), id="current-verbose"),
        pytest.param(command.check, id="check"),
        pytest.param(RUNS["autogenerate"], id="autogenerate"),
    ],
)
def test_a_database_ahead_of_the_code_is_named(
    project: Project, database: Database, run: Callable[[Config], object]
) -> None:
    """A database at a revision that has no file here is a CommandError, and is left as it is."""
    project.revision("ab2c", "op.create_table('made', sa.Column('id', sa.Integer))")
    database.run(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('b2')",
    )
    with refused(project, UNKNOWN_VERSION):
        run(project.config(database.text))
    assert database.tables() == {"alembic_version"}
    assert database.versions() == {"b2"}


@pytest.mark.parametrize("sql", [False, True], ids=["online", "sql"])
@pytest.mark.parametrize(
    ("run", "revision", "message"),
    [
        pytest.param(
            command.upgrade, "nosuch", "Can't locate revision identified by 'nosuch'", id="upgrade"
        ),
        pytest.param(
            command.downgrade,
            "a1:nosuch",
            "Can't locate revision identified by 'nosuch'",
            id="downgrade",
        ),
        pytest.param(
            command.stamp, "nosuch", "Can't locate revision identified by 'nosuch'", id="stamp"
        ),
        pytest.param(
            command.upgrade, "+3", "Relative revision +3 didn't produce 3 migrations", id="relative"
        ),
    ],
)
def test_a_mistyped_revision_keeps_the_words_of_alembic(
    project: Project,
    sqlite: Database,
    run: Callable[..., None],
    revision: str,
    message: str,
    sql: bool,
) -> None:
    """A revision that the user mistyped is reported by Alembic's own words."""
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    config = project.config(sqlite.text)
    config.output_buffer = io.StringIO()
    if not sql:
        command.upgrade(config, "a1")
        revision = revision.removeprefix("a1:")
    with refused(project, message):
        run(config, revision, sql=sql)
