"""Nothing that a person writes is ignored: -x keys, misspelt options, what data=… says, and more."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import alembic
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from conftest import DRIVERS, Database, Project, kind_of
from sqlalchemy import Column, Integer, MetaData, Table
from test_settings import RUNS, refused, toml, url_of, with_x

COMMON = ["url", "lock_timeout", "ddl_lock_timeout", "ddl_lock_retries", "data"]
FLEET = [*COMMON, "tenant", "part", "jobs", "create", "max_failures", "replay"]

OFFLINE: dict[str, Callable[[Config], object]] = {
    "upgrade --sql": lambda config: command.upgrade(config, "head", sql=True),
    "stamp --sql": lambda config: command.stamp(config, "head", sql=True),
    "downgrade --sql": lambda config: command.downgrade(config, "a1:base", sql=True),
}


def unknown(key: str | None, close: str | None, known: list[str]) -> str:
    """Return the refusal of a key after -x."""
    return (
        f"The key {key or '…'!r} after -x is unknown{f' (did you mean {close}?)' if close else ''}: "
        f"expected {', '.join(known)}, or a key of your own that option x_arguments names."
    )


# --- the keys after -x -------------------------------------------------------------------------


@pytest.mark.parametrize("run", [*RUNS, *OFFLINE])
def test_every_command_refuses_an_unknown_key(project: Project, sqlite: Database, run: str) -> None:
    """A misspelt -x key is refused before anything is connected, by each command and with --sql."""
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    project.set(sqlalchemy__url=sqlite.text)
    config = with_x(project.config(), "ulr=sqlite:///other.db")
    config.output_buffer = io.StringIO()
    with refused(project, unknown("ulr", "url", COMMON)):
        {**RUNS, **OFFLINE}[run](config)
    assert config.output_buffer.getvalue() == ""


@pytest.mark.parametrize(
    ("x", "key", "close"),
    [
        pytest.param(["lock_timout=1"], "lock_timout", "lock_timeout", id="misspelt"),
        pytest.param(["dry_run=true"], "dry_run", None, id="like-none"),
        pytest.param(["dat"], "dat", "data", id="without-value"),
        pytest.param(["tenant=acme"], "tenant", None, id="of-another-template"),
        pytest.param(["data =true"], "data ", "data", id="space"),
        pytest.param(["Data=true"], "Data", "data", id="case"),
        pytest.param(["data=true", "nosuch=1"], "nosuch", None, id="second"),
        pytest.param(["=true"], None, None, id="no-key"),
        pytest.param(["postgresql://me:s3cret@host/name"], None, None, id="a-url-alone"),
        pytest.param(["postgresql://me:s3cret@h/n?a=b"], None, None, id="a-url-with-a-query"),
        pytest.param(["ulr=postgresql://me:s3cret@host/name"], "ulr", "url", id="password"),
    ],
)
def test_an_unknown_key_names_the_known_ones(
    project: Project, sqlite: Database, x: list[str], key: str | None, close: str | None
) -> None:
    """An unknown -x key is named with the one that it resembles and all known ones, never a URL."""
    project.set(sqlalchemy__url=sqlite.text)
    with refused(project, unknown(key, close, COMMON)):
        command.upgrade(with_x(project.config(), *x), "head")


def test_a_fleet_refuses_an_unknown_key(fleet_project: Project, tmp_path: Path) -> None:
    """`-x tenants=…`, the option's name for the key, downgrades no tenant."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.db").touch()
    fleet_project.set(sqlalchemy__url=f"sqlite:///{tmp_path}/{{tenant}}.db", tenants="one two")
    fleet_project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    fleet_project.alembic("upgrade", "head")
    with refused(fleet_project, unknown("tenants", "tenant", FLEET)):
        command.downgrade(with_x(fleet_project.config(), "tenants=one"), "base")
    done = fleet_project.alembic("-x", "tennant=one", "downgrade", "base", ok=False)
    assert done.stdout == f"FAILED: {unknown('tennant', 'tenant', FLEET)}\n"
    for name in ("one", "two"):
        assert Database("sqlite", url_of(tmp_path / f"{name}.db")).versions() == {"a1"}


@pytest.mark.parametrize("key", ["url", "mine"])
def test_a_key_is_given_once(project: Project, sqlite: Database, key: str) -> None:
    """A key that is given twice is refused, since one of the values would be ignored."""
    project.set(sqlalchemy__url=sqlite.text, x_arguments="mine")
    message = f"The key {key!r} after -x is given twice: expected it once."
    with refused(project, message):
        command.upgrade(with_x(project.config(), f"{key}=s3cret", f"{key}=b"), "head")


@pytest.mark.parametrize("source", ["ini", "toml"])
def test_an_owner_has_keys_of_their_own(project: Project, sqlite: Database, source: str) -> None:
    """Option x_arguments names keys that a revision reads, and the error for others lists them."""
    project.revision(
        "a1",
        "given = context.get_x_argument(as_dictionary=True)\n"
        "op.create_table(given['name'], sa.Column('id', sa.Integer))",
    )
    if source == "toml":
        toml(project, 'x_arguments = ["name", "region"]')
        config = Config(toml_file=project.folder / "pyproject.toml")
    else:
        project.set(x_arguments="name region")
        config = project.config()
    with refused(project, unknown("nam", "name", [*COMMON, "name", "region"])):
        command.upgrade(with_x(config, f"url={sqlite.text}", "nam=made"), "head")
    command.upgrade(with_x(config, f"url={sqlite.text}", "name=made"), "head")
    assert sqlite.tables() == {"made", "alembic_version"}


# --- misspelt options --------------------------------------------------------------------------


def misspelt(name: str, close: str, section: str = "alembic") -> str:
    """Return the refusal of an option."""
    return (
        f"Option {name} of section [{section}] is unknown: did you mean {close}? Correct it, or "
        "give an option of your own another name."
    )


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("lock_timout", "lock_timeout"),
        ("lokc_timeout", "lock_timeout"),
        ("lock-timeout", "lock_timeout"),
        ("lockTimeout", "lock_timeout"),
        ("ddl_lock_timout", "ddl_lock_timeout"),
        ("transaction_per_migrations", "transaction_per_migration"),
        ("autogenerate_rule", "autogenerate_rules"),
        ("target_metdata", "target_metadata"),
        ("target_meta_data", "target_metadata"),
        ("data_migration", "data_migrations"),
        ("verison_table", "version_table"),
        ("version_table_scheme", "version_table_schema"),
        ("connection_args", "connect_args"),
        ("x_argument", "x_arguments"),
        ("sqlalchemy_url", "sqlalchemy.url"),
        ("sqlachemy.url", "sqlalchemy.url"),
    ],
)
@pytest.mark.parametrize("source", ["ini", "toml"])
def test_a_misspelt_option_is_refused(
    project: Project, sqlite: Database, name: str, close: str, source: str
) -> None:
    """An option that is one of the environment's misspelt is named with the right one."""
    if source == "toml":
        toml(project, f'"{name}" = "1"')
        config = Config(toml_file=project.folder / "pyproject.toml")
    else:
        project.set(**{name: "1"})
        config = project.config()
        name = name.lower()
    with refused(project, misspelt(name, close)):
        command.upgrade(with_x(config, f"url={sqlite.text}"), "head")


def only_a_key(name: str) -> str:
    """Return the refusal of an option that is a key after -x."""
    return (
        f"Option {name} of section [alembic] has no effect: give it after -x, as in -x {name}=…, or "
        "give an option of your own another name."
    )


def test_a_key_among_the_options_is_refused(project: Project, sqlite: Database) -> None:
    """`data` among the options would be ignored; a `url` there may be the owner's."""
    project.set(sqlalchemy__url=sqlite.text, url="sqlite:///other.db", data="true")
    with refused(project, only_a_key("data")):
        command.upgrade(project.config(), "head")


@pytest.mark.parametrize("name", ["tenant", "part", "create", "max_failures"])
def test_a_key_among_the_options_of_a_fleet_is_refused(
    fleet_project: Project, tmp_path: Path, name: str
) -> None:
    """What limits one run of a fleet is no option, and would be ignored as one."""
    fleet_project.set(
        sqlalchemy__url=f"sqlite:///{tmp_path}/{{tenant}}.db", tenants="one", **{name: "1"}
    )
    with refused(fleet_project, only_a_key(name)):
        command.upgrade(fleet_project.config(), "head")


@pytest.mark.parametrize(("name", "close"), [("tenant_url", "tenants_url"), ("job", "jobs")])
def test_a_misspelt_option_of_a_fleet_is_refused(
    fleet_project: Project, tmp_path: Path, name: str, close: str
) -> None:
    """The options of a fleet are known to it as well, and misspelt ones refused."""
    fleet_project.set(
        sqlalchemy__url=f"sqlite:///{tmp_path}/{{tenant}}.db", tenants="one", **{name: "1"}
    )
    with refused(fleet_project, misspelt(name, close)):
        command.upgrade(fleet_project.config(), "head")


def options_of_alembic() -> set[str]:
    """Return the names of options that stand in Alembic's sources and its ini templates."""
    folder = Path(alembic.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    ini = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.mako"))
    call = r"(?:get_\w*option|get_main_option|_get_toml_config_value)\(\s*\"([\w.]+)\""
    found = {*re.findall(call, code), *re.findall(r"^#? ?([a-z][\w.]+) = ", ini, re.MULTILINE)}
    return {*found, "version_path_separator", "post_write_hooks", "here"}


# What owners have been seen to keep beside Alembic's options, and what is nearest to ours.
OWNERS = [
    *("databases", "db_url", "database_url", "url", "schema", "schemas", "tables", "tenant_schema"),
    *("exclude_tables", "include_schemas", "statement_timeout", "connect_timeout", "lock_name"),
    *("my_lock_timeout", "lock_wait_timeout", "lock_timeout_seconds", "shop_target_metadata"),
    *("target_metadata_2", "version_table2", "old_version_table", "version_file", "version_schema"),
    *("compare_type", "render_as_batch", "transaction_mode", "autogenerate_schemas", "data_path"),
    *("migration_user", "timeout", "metadata", "target_schema", "target_database", "arguments"),
    *("tenants", "jobs", "replay"),  # those of another template
]


@pytest.mark.parametrize("source", ["ini", "toml"])
def test_other_options_are_left_alone(project: Project, sqlite: Database, source: str) -> None:
    """Neither Alembic's options nor an owner's own are taken for misspelt ones."""
    known = options_of_alembic()
    assert {"sourceless", "version_locations", "path_separator", "file_template"} <= known
    assert {"timezone", "output_encoding", "recursive_version_locations"} <= known
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    # Set already, deprecated, or of a type that differs from one Alembic to another.
    known -= {"script_location", "prepend_sys_path", "path_separator", "sqlalchemy.url", "here"}
    known -= {"version_path_separator", "truncate_slug_length"}
    names = sorted({*known, *OWNERS})
    if source == "toml":
        names = [
            name for name in names if name not in {"sourceless", "recursive_version_locations"}
        ]
        values = {"post_write_hooks": '[{name = "x"}]'}
        toml(project, *(f'"{name}" = {values.get(name, repr(""))}' for name in names))
        config = Config(toml_file=project.folder / "pyproject.toml")
    else:
        project.set("DEFAULT", lock_timout="a value for other options", tenant="acme")
        config = project.config()
        for name in names:
            config.set_main_option(name, "")
    command.upgrade(with_x(config, f"url={sqlite.text}"), "head")
    assert sqlite.tables() == {"made", "alembic_version"}


# --- data --------------------------------------------------------------------------------------

# As revisions test for it, also those that older versions of the template have written.
DATA = """
    if op.get_context().opts["data"]:
        op.execute("INSERT INTO ran VALUES (1)")
"""


def ran(database: Database) -> bool:
    """Tell whether the data part has run."""
    return database.rows("SELECT count(*) FROM ran") == [(1,)]


@pytest.mark.parametrize("sql", [False, True], ids=["online", "sql"])
@pytest.mark.parametrize(
    ("x", "attributes", "expected"),
    [
        (["data=true"], {}, True),
        (["data=True"], {}, True),
        (["data=TRUE"], {}, True),
        (["data=False"], {}, False),
        ([], {"data": True}, True),
        ([], {"data": False}, False),
        ([], {"data": None}, False),
        (["data=false"], {"data": True}, False),
        (["data=True"], {"data": False}, True),
    ],
)
def test_the_data_part_runs_however_it_is_asked_for(
    project: Project,
    sqlite: Database,
    x: list[str],
    attributes: dict[str, object],
    expected: bool,
    sql: bool,
) -> None:
    """True and false count in any case of letters, and Config.attributes["data"] too; -x first."""
    sqlite.run("CREATE TABLE ran (id INTEGER)")
    project.revision("a1", DATA)
    config = with_x(project.config(sqlite.text, **attributes), *x)
    config.output_buffer = buffer = io.StringIO() if sql else None
    command.upgrade(config, "head", sql=sql)
    assert config.cmd_opts.x == x  # type: ignore[union-attr]
    assert ran(sqlite) == (expected and not sql)
    script = buffer.getvalue() if buffer else ""
    assert ("INSERT INTO ran" in script) == (expected and sql)


def test_data_is_asked_for_once(project: Project, sqlite: Database) -> None:
    """What one command of a Config asks for is not left to the next one."""
    sqlite.run("CREATE TABLE ran (id INTEGER)")
    project.revision("a1", DATA)
    config = project.config(sqlite.text, data=True)
    command.upgrade(config, "head")
    assert ran(sqlite)
    sqlite.run("DELETE FROM ran")
    command.stamp(config, "base")
    del config.attributes["data"]
    command.upgrade(config, "head")
    assert not ran(sqlite)


@pytest.mark.parametrize("given", ["x", "attribute"])
@pytest.mark.parametrize("value", ["yes", "1", "", "ture"])
def test_data_is_true_or_false(project: Project, sqlite: Database, given: str, value: str) -> None:
    """Anything else is refused before anything runs, also where no revision has a data part."""
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    config = project.config(sqlite.text, **({"data": value} if given == "attribute" else {}))
    with_x(config, *([f"data={value}"] if given == "x" else []))
    with refused(project, f"Option data is {value!r}: expected true or false."):
        command.upgrade(config, "head")


def test_data_without_a_value_is_refused(project: Project, sqlite: Database) -> None:
    """A bare `-x data` on the command line is refused, and the revision is not stamped."""
    project.revision("a1", DATA)
    done = project.alembic(*("-x", f"url={sqlite.text}", "-x", "data", "upgrade", "head"), ok=False)
    assert done.stdout == "FAILED: Option data is '': expected true or false.\n"
    assert not Path(str(sqlite.url.database)).exists()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_data_parts_of_a_fleet_run(fleet_project: Project, tmp_path: Path, jobs: str) -> None:
    """In a fleet `-x data=True` runs the data part in each tenant, by worker processes too."""
    tenants = [Database("sqlite", url_of(tmp_path / f"{name}.db")) for name in ("one", "two")]
    for tenant in tenants:
        tenant.run("CREATE TABLE ran (id INTEGER)")
    fleet_project.set(sqlalchemy__url=f"sqlite:///{tmp_path}/{{tenant}}.db", tenants="one two")
    fleet_project.revision("a1", DATA)
    fleet_project.alembic("-x", f"jobs={jobs}", "-x", "data=True", "upgrade", "head")
    assert [ran(tenant) for tenant in tenants] == [True, True]


@pytest.mark.parametrize("begun", [False, True], ids=["own-transaction", "callers-transaction"])
def test_migrations_asks_for_data(project: Project, sqlite: Database, begun: bool) -> None:
    """Migrations(connection, data=True) runs the data part, and without it none runs."""
    sqlite.run("CREATE TABLE ran (id INTEGER)")
    project.revision("a1", DATA)
    project.python(
        f"""
        from migrations.commands import Migrations
        from sqlalchemy import create_engine
        with create_engine({sqlite.text!r}).connect() as connection:
            if {begun}:
                connection.begin()
            Migrations(connection).upgrade()
            assert connection.exec_driver_sql("SELECT count(*) FROM ran").scalar() == 0
            if not {begun}:
                connection.rollback()
            Migrations(connection).downgrade("base")
            Migrations(connection, data=True).upgrade()
            connection.commit()
        """
    )
    assert ran(sqlite)


@pytest.mark.parametrize(
    ("option", "args", "said"),
    [
        pytest.param("true", ["upgrade", "head"], True, id="upgrade"),
        pytest.param("true", ["-x", "data=false", "upgrade", "head"], False, id="decided"),
        pytest.param("true", ["-x", "data=true", "upgrade", "head"], False, id="asked-for"),
        pytest.param("true", ["current"], False, id="current"),
        pytest.param(None, ["upgrade", "head"], False, id="no-data-migrations"),
    ],
)
def test_data_that_is_left_out_is_said(
    project: Project, sqlite: Database, option: str | None, args: list[str], said: bool
) -> None:
    """With data_migrations, an upgrade that was not asked for data says that it leaves them out."""
    project.set(sqlalchemy__url=sqlite.text, data_migrations=option)
    project.revision("a1")
    line = "INFO  [alembic.env] The data parts of revisions are left out: -x data=true would run"
    assert (line in project.alembic(*args).stderr) == said


# --- arguments of the driver -------------------------------------------------------------------

# The arguments, and what the driver's connection must then say of them.
ARGUMENTS = {
    "sqlite": ('{"isolation_level": "EXCLUSIVE"}', "isolation_level", "EXCLUSIVE"),
    "postgresql+psycopg": ('{"prepare_threshold": null}', "prepare_threshold", None),
    "postgresql+psycopg_async": ('{"prepare_threshold": null}', "prepare_threshold", None),
    "postgresql+asyncpg": ('{"statement_cache_size": 0}', "_config.statement_cache_size", 0),
    "mysql+pymysql": ('{"max_allowed_packet": 99999}', "max_allowed_packet", 99999),
}


@pytest.mark.parametrize("drivername", ARGUMENTS)
def test_arguments_reach_the_driver(
    project: Project, request: pytest.FixtureRequest, drivername: str
) -> None:
    """connect_args goes to connect() of the driver, null and numbers as JSON has them."""
    if not any(drivername in names for names in DRIVERS.values()):
        pytest.skip("greenlet is not installed")
    database: Database = request.getfixturevalue(kind_of(drivername))
    option, name, expected = ARGUMENTS[drivername]
    project.set(connect_args=option)
    project.revision(
        "a1",
        "from operator import attrgetter\n"
        "driver = op.get_bind().connection.driver_connection\n"
        f"context.config.attributes['seen'].append(attrgetter({name!r})(driver))",
    )
    seen: list[object] = []
    command.upgrade(project.config(database.url_for(drivername), seen=seen), "head")
    assert seen == [expected]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            "connect_args = {application_name = \"%(here)s\", options = '-c statement_timeout=77s'}",
            id="table",
        ),
        pytest.param(
            'connect_args = \'{"application_name": "%(here)s", "options": "-c '
            "statement_timeout=77s\"}'",
            id="text",
        ),
    ],
)
def test_arguments_stand_in_pyproject(project: Project, postgresql: Database, line: str) -> None:
    """In TOML connect_args is a table or a text, with %(here)s filled in."""
    toml(project, line)
    project.revision(
        "a1",
        "bind = op.get_bind()\n"
        "for name in ('application_name', 'statement_timeout'):\n"
        "    value = bind.exec_driver_sql(f'SHOW {name}').scalar()\n"
        "    context.config.attributes['seen'].append(value)",
    )
    seen: list[str] = []
    config = Config(toml_file=project.folder / "pyproject.toml", attributes={"seen": seen})
    with_x(config, f"url={postgresql.text}")
    command.upgrade(config, "head")
    assert str(project.folder).startswith(seen[0])
    assert seen[1] == "77s"


def test_arguments_reach_the_connections_of_a_fleet(
    fleet_project: Project, postgresql: Database
) -> None:
    """connect_args counts for each connection that a fleet makes."""
    postgresql.run("CREATE SCHEMA one")
    fleet_project.set(
        sqlalchemy__url=postgresql.text.replace("%", "%%"),
        tenants="one",
        connect_args='{"application_name": "fleet"}',
    )
    fleet_project.revision(
        "a1", "op.execute(\"CREATE TABLE who AS SELECT current_setting('application_name') AS n\")"
    )
    fleet_project.alembic("upgrade", "head")
    assert postgresql.rows("SELECT n FROM one.who") == [("fleet",)]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("{'password': 's3cret'}", id="single-quotes"),
        pytest.param('["s3cret"]', id="list"),
        pytest.param('"s3cret"', id="text"),
        pytest.param("password=s3cret", id="no-json"),
        pytest.param("5", id="number"),
    ],
)
def test_arguments_that_are_no_object_are_refused(
    project: Project, sqlite: Database, value: str
) -> None:
    """connect_args that is no object of JSON is one sentence without the value, on any connection."""
    project.set(connect_args=value)
    message = (
        "Option connect_args cannot be read: expected an object of JSON, such as "
        '{"connect_timeout": 10}, with its names and texts in double quotes.'
    )
    for config in (project.config(sqlite.text), project.config(connection=sqlite.engine())):
        with refused(project, message):
            command.upgrade(config, "head")


@pytest.mark.parametrize(
    ("drivername", "option", "name"),
    [
        ("sqlite", '{"colour": "s3cret"}', "colour"),
        ("sqlite+aiosqlite", '{"colour": "s3cret"}', "colour"),
        ("postgresql+psycopg", '{"colour": "s3cret"}', "colour"),
        ("postgresql+psycopg", '{"connect_timeout": "s3cret"}', "connect_timeout"),
        ("postgresql+asyncpg", '{"colour": "s3cret"}', "colour"),
        ("mysql+pymysql", '{"colour": "s3cret"}', "colour"),
        ("mysql+aiomysql", '{"colour": "s3cret"}', "colour"),
        ("mysql+asyncmy", '{"colour": "s3cret"}', "colour"),
    ],
)
def test_arguments_that_a_driver_refuses_are_named(
    project: Project,
    request: pytest.FixtureRequest,
    drivername: str,
    option: str,
    name: str,
) -> None:
    """An argument that the driver does not take is named, without its value."""
    if not any(drivername in names for names in DRIVERS.values()):
        pytest.skip("greenlet is not installed")
    database: Database = request.getfixturevalue(kind_of(drivername))
    project.set(connect_args=option)
    url = database.url_for(drivername)
    done = project.alembic("-x", f"url={url}", "upgrade", "head", ok=False)
    assert done.stdout == (
        f"FAILED: The driver of {drivername}:// does not take {name!r} of option connect_args, or "
        "not its value: correct it, as the driver's connect() has it.\n"
    )
    assert "s3cret" not in done.stderr


# --- metadata without tables -------------------------------------------------------------------


def empty(name: str) -> str:
    """Return the refusal of a MetaData without tables."""
    return (
        f"The MetaData {name} has no tables, since no module with models was imported: name one in "
        "target_metadata that imports all models, or import them first."
    )


@pytest.mark.parametrize("run", ["autogenerate", "check"])
@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("empty:metadata", "empty:metadata"),
        ("models:metadata empty:metadata", "empty:metadata"),
        ("empty:bound", "empty:bound"),
    ],
)
def test_models_that_were_not_imported_are_missed(
    project: Project, sqlite: Database, run: str, option: str, name: str
) -> None:
    """A MetaData without tables, one of several too, neither agrees with nor drops anything."""
    sqlite.run("CREATE TABLE kept (id INTEGER)")
    (project.folder / "empty.py").write_text(
        "from sqlalchemy import MetaData\nmetadata = MetaData()\n"
        "bound = MetaData(info={'bind_key': 'other'})\n"
    )
    project.set(target_metadata=option)
    with refused(project, empty(name)):
        RUNS[run](project.config(sqlite.text))
    command.current(project.config(sqlite.text))
    command.upgrade(project.config(sqlite.text), "head")


def test_metadata_of_a_program_has_tables_too(project: Project, sqlite: Database) -> None:
    """Config.attributes["target_metadata"] without tables is refused, but not where none compares."""
    sqlite.run("CREATE TABLE kept (id INTEGER)")
    config = project.config(sqlite.text, target_metadata=MetaData())
    with refused(project, empty("that the program gives")):
        command.check(config)
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    command.upgrade(config, "head")
    command.current(config)
    assert sqlite.tables() == {"kept", "made", "alembic_version"}


def test_registered_objects_are_models(project: Project, sqlite: Database) -> None:
    """Metadata without tables that has other objects registered in its info is compared."""
    metadata = MetaData(info={"replaceable_objects": {("view", "v"): None}})
    config = project.config(sqlite.text, target_metadata=metadata)
    command.check(config)


@pytest.mark.parametrize("method", ["check", "create_all", "apply"])
def test_migrations_refuses_models_without_tables(
    project: Project, sqlite: Database, method: str
) -> None:
    """check(), create_all() and apply() of an empty MetaData are refused, the others run."""
    sqlite.run("CREATE TABLE kept (id INTEGER)")
    project.revision("a1")
    project.python(
        f"""
        from alembic.util import CommandError
        from migrations.commands import Migrations
        from sqlalchemy import MetaData, create_engine
        with create_engine({sqlite.text!r}).connect() as connection:
            migrations = Migrations(connection)
            try:
                migrations.{method}(MetaData())
            except CommandError as error:
                assert str(error) == {empty("that the program gives")!r}, error
            else:
                raise SystemExit("not refused")
            migrations.upgrade()
            assert migrations.current() == ("a1",)
            assert "kept" in migrations.render()
        """
    )
    assert sqlite.tables() == {"kept", "alembic_version"}


def test_a_fleet_refuses_models_without_tables(fleet_project: Project, tmp_path: Path) -> None:
    """In a fleet too, metadata without tables is refused by revision --autogenerate and check."""
    (tmp_path / "one.db").touch()
    fleet_project.set(sqlalchemy__url=f"sqlite:///{tmp_path}/{{tenant}}.db", tenants="one")
    for run in ("autogenerate", "check"):
        with refused(fleet_project, empty("that the program gives")):
            RUNS[run](fleet_project.config(target_metadata=MetaData()))


# --- which database ----------------------------------------------------------------------------


def lines(stderr: str) -> list[str]:
    """Return what the environment logs about the database of a run."""
    return [
        line
        for line in stderr.splitlines()
        if "[alembic.env]" in line and ("Running on" in line or "DATABASE_URL" in line)
    ]


def test_a_run_says_where_it_runs(project: Project, postgresql: Database) -> None:
    """Each run of the command logs the database and host once, without user or password."""
    project.revision("a1")
    url = postgresql.url.set(password="s3cret")
    text = url.render_as_string(hide_password=False)
    for args in (["upgrade", "head"], ["current"], ["check"]):
        done = project.alembic("-x", f"url={text}", *args, ok=args != ["check"])
        where = f" on {url.host}" + (f":{url.port}" if url.port else "") if url.host else ""
        expected = f"INFO  [alembic.env] Running on database {url.database!r}{where}."
        assert lines(done.stderr) == [expected]
        assert "Running on" not in done.stdout
        assert "s3cret" not in done.stderr


def test_a_program_and_a_script_do_not_say_where(
    project: Project, sqlite: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a program nor `--sql`, which run on nothing that needs telling, logs the line."""
    caplog.set_level("INFO")
    project.revision("a1")
    project.set(sqlalchemy__url=sqlite.text)
    command.upgrade(project.config(), "head")
    assert "Running on" not in caplog.text
    assert lines(project.alembic("upgrade", "head", "--sql").stderr) == []


def test_a_fleet_says_its_url(fleet_project: Project, tmp_path: Path) -> None:
    """A fleet logs the database of its URL once, with {tenant} in it, also with worker processes."""
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.db").touch()
    url = f"sqlite:///{tmp_path}/{{tenant}}.db"
    fleet_project.set(sqlalchemy__url=url, tenants="one two three")
    fleet_project.revision("a1")
    done = fleet_project.alembic("-x", "jobs=2", "upgrade", "head")
    file = f"{tmp_path}/{{tenant}}.db"
    assert lines(done.stderr) == [f"INFO  [alembic.env] Running on database {file!r}."]


SAME = [
    ("postgresql+psycopg://a:b@localhost/shop", "postgresql://c:d@127.0.0.1:5432/shop"),
    ("postgresql+asyncpg://a:b@db.example:5432/shop?ssl=require", "postgres://x@db.example/shop"),
    ("mysql+pymysql://root@127.0.0.1/shop", "mariadb://me:s3cret@localhost:3306/shop"),
    ("sqlite:///shop.db", "sqlite+aiosqlite:///{here}/shop.db"),
]
OTHER = [
    (
        "sqlite:///{here}/app.db",
        "postgresql://me:s3cret@db.example:6432/prod",
        "database 'prod' on db.example:6432",
        "database '{here}/app.db'",
    ),
    (
        "sqlite:///{here}/app.db",
        "sqlite:///{here}/prod.db",
        "database '{here}/prod.db'",
        "database '{here}/app.db'",
    ),
    (
        "sqlite:///{here}/app.db",
        "no url, s3cret",
        "no database that can be read",
        "database '{here}/app.db'",
    ),
    (
        "sqlite:///{here}/app.db",
        "postgresql://me:s3c@s3cret@db.example/prod",
        "a database whose name is not shown, since the URL has an @ too many",
        "database '{here}/app.db'",
    ),
]


@pytest.mark.parametrize(("ini", "env", "lost", "used"), OTHER)
def test_a_database_url_that_lost_is_named(
    project: Project, ini: str, env: str, lost: str, used: str
) -> None:
    """DATABASE_URL that names another database than the ini file is a WARNING with both."""
    project.revision("a1")
    here = str(project.folder)
    project.set(sqlalchemy__url=ini.format(here=here))
    for args in (["upgrade", "head"], ["upgrade", "head", "--sql"]):
        done = project.alembic(*args, DATABASE_URL=env.format(here=here))
        assert lines(done.stderr)[0] == (
            f"WARNI [alembic.env] DATABASE_URL names {lost.format(here=here)} and is not used: "
            f"sqlalchemy.url comes first, and names {used.format(here=here)}."
        )
        assert "s3cret" not in done.stderr
        assert "DATABASE_URL" not in done.stdout
    done = project.alembic("-x", "url=sqlite:///x.db", "current", DATABASE_URL=env)
    assert "DATABASE_URL" not in done.stderr


@pytest.mark.parametrize(("ini", "env"), SAME)
def test_a_database_url_of_the_same_database_is_not_named(
    project: Project, ini: str, env: str
) -> None:
    """Another driver, user or spelling of one database is no other database."""
    here = str(project.folder)
    project.set(sqlalchemy__url=ini.format(here=here))
    done = project.alembic("upgrade", "head", "--sql", DATABASE_URL=env.format(here=here))
    assert lines(done.stderr) == []


# --- --sql and Migrations with what is no connection -------------------------------------------


def test_a_script_refuses_what_a_run_refuses(project: Project) -> None:
    """`--sql` with a text for a connection is refused in the words of a run."""
    message = (
        'Config.attributes["connection"] is of type str: expected a sqlalchemy Connection or '
        "Engine."
    )
    for sql in (False, True):
        with refused(project, message):
            command.upgrade(project.config(connection="sqlite://"), "head", sql=sql)


def test_models_with_tables_are_needed_no_more(project: Project, sqlite: Database) -> None:
    """A table in the metadata is enough, and the revision is written."""
    metadata = MetaData()
    Table("made", metadata, Column("id", Integer, primary_key=True))
    with pytest.raises(CommandError, match="New upgrade operations"):
        command.check(project.config(sqlite.text, target_metadata=metadata))


def test_reason_of_the_server_is_shown_beside_connect_args(
    project: Project, mariadb: Database
) -> None:
    """A login that the server refuses is told in the server's words, also if it is in connect_args."""
    project.set(connect_args='{"user": "nobody_of_this_name", "password": "secret-word"}')
    done = project.alembic("-x", f"url={mariadb.text}", "current", ok=False)
    assert "Access denied" in done.stderr
    assert "secret-word" not in done.stdout + done.stderr
