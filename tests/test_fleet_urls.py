"""A fleet whose tenants have databases of their own, by {tenant} in the URL."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.command import upgrade
from alembic.util import CommandError
from conftest import DRIVERS, Database, Project, imported, kind_of
from sqlalchemy import URL, make_url
from test_settings import with_x

SQLITE = pytest.mark.parametrize("driver", DRIVERS["sqlite"])
OWN = "op.create_table('own', sa.Column('id', sa.Integer))"
FILL = "op.execute('INSERT INTO own VALUES (1)')"
MISSING = (
    "there is no schema or database of this name, correct it or create what is missing by "
    "-x create=true."
)


@pytest.fixture
def files(fleet_project: Project) -> Project:
    """A project with two revisions, whose tenants are files of their names in the folder data."""
    (fleet_project.folder / "data").mkdir()
    fleet_project.set(sqlalchemy__url="sqlite:///%(here)s/data/{tenant}.db", tenants="ant bee")
    fleet_project.revision("a1", OWN, "op.drop_table('own')")
    fleet_project.revision("b2", FILL, "op.execute('DELETE FROM own')", down="a1")
    return fleet_project


def with_driver(project: Project, driver: str, *tenants: str) -> None:
    """Let the URL have this driver, and create the files of tenants as empty ones."""
    project.set(sqlalchemy__url=f"{driver}:///%(here)s/data/{{tenant}}.db")
    for tenant in tenants:
        file(project, tenant).touch()


def file(project: Project, tenant: str) -> Path:
    """Return the file of a tenant."""
    return project.folder / "data" / f"{tenant}.db"


def made(project: Project) -> set[str]:
    """Return the names of the files that there are."""
    return {each.name for each in (project.folder / "data").iterdir()}


def at(project: Project, tenant: str) -> Database:
    """Return the database of a tenant."""
    return Database("sqlite", URL.create("sqlite", database=str(file(project, tenant))))


def last(output: str) -> str:
    """Return the last line of an output."""
    return output.splitlines()[-1]


def refusal(project: Project, *args: str) -> str:
    """Run a command that fails, and return the sentence that it says."""
    done = project.alembic(*args, ok=False)
    assert "Traceback" not in done.stderr
    return last(done.stderr).partition("] ")[2]


@SQLITE
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("replay", ["false", "true"])
def test_upgrade_and_downgrade(files: Project, driver: str, jobs: str, replay: str) -> None:
    """Each tenant's file is upgraded and downgraded, and once more finds nothing to do."""
    with_driver(files, driver, "ant", "bee")
    args = ["-x", f"jobs={jobs}", "-x", f"replay={replay}"]
    assert last(files.alembic(*args, "upgrade", "a1").stdout) == "2 upgraded, 0 current, 0 failed"
    for tenant in ("ant", "bee"):
        assert at(files, tenant).versions() == {"a1"}
        assert at(files, tenant).rows("SELECT * FROM own") == []
    assert last(files.alembic(*args, "upgrade", "head").stdout) == "2 upgraded, 0 current, 0 failed"
    assert last(files.alembic(*args, "upgrade", "head").stdout) == "0 upgraded, 2 current, 0 failed"
    for tenant in ("ant", "bee"):
        assert at(files, tenant).versions() == {"b2"}
        assert at(files, tenant).rows("SELECT * FROM own") == [(1,)]
    done = files.alembic(*args, "-x", "tenant=bee", "downgrade", "base")
    assert last(done.stdout) == "1 downgraded, 0 current, 0 failed"
    assert at(files, "bee").tables() == {"alembic_version"}
    assert at(files, "ant").versions() == {"b2"}
    assert made(files) == {"ant.db", "bee.db"}


def test_replay_without_its_file_says_so(files: Project) -> None:
    """Where the owner has deleted replay.py, replay=true is an error that names it."""
    with_driver(files, "sqlite", "ant", "bee")
    (files.folder / "migrations/replay.py").unlink()
    said = refusal(files, "-x", "replay=true", "upgrade", "head")
    assert said.startswith("replay.py is not in this environment, and replay=true needs it")
    assert at(files, "ant").tables() == set()


@pytest.mark.parametrize(
    ("option", "block", "reason"),
    [
        ("true", False, "transaction_per_migration commits after each revision"),
        ("false", True, "c3: it asks the connection for in_transaction"),
    ],
    ids=["option", "block"],
)
def test_several_transactions_are_not_replayed(
    files: Project, option: str, block: bool, reason: str
) -> None:
    """What commits on the way cannot be one script: the log says so, and the revisions run."""
    with_driver(files, "sqlite", "ant", "bee")
    files.set(transaction_per_migration=option)
    if block:
        files.revision(
            "c3", "with op.get_context().autocommit_block():\n    op.execute('SELECT 1')", down="b2"
        )
    done = files.alembic("-x", "replay=true", "upgrade", "head")
    assert reason in done.stderr
    assert last(done.stdout) == "2 upgraded, 0 current, 0 failed"
    assert at(files, "ant").versions() == {"c3" if block else "b2"}


def test_unknown_version_is_the_tenants_own_error(files: Project) -> None:
    """A tenant at a revision without a file fails alone; an unknown destination fails at once."""
    with_driver(files, "sqlite", "ant", "bee")
    files.alembic("upgrade", "a1")
    at(files, "ant").run("UPDATE alembic_version SET version_num = 'zz'")
    done = files.alembic("-x", "replay=true", "upgrade", "head", ok=False)
    assert last(done.stdout) == "1 upgraded, 0 current, 1 failed"
    assert "The database is at revision zz, which this code does not know" in done.stderr
    assert "nowhere" in refusal(files, "-x", "replay=true", "upgrade", "nowhere")
    files.alembic("-x", "tenant=all", "-x", "replay=true", "stamp", "--purge", "b2")
    assert at(files, "ant").versions() == at(files, "bee").versions() == {"b2"}


def test_tenants_of_the_wrong_kind_are_refused(files: Project) -> None:
    """In TOML the option may be a text or a list of names, and nothing else."""
    (files.folder / "alembic.ini").unlink()
    (files.folder / "pyproject.toml").write_text(
        '[tool.alembic]\nscript_location = "%(here)s/migrations"\ntenants = 5\n'
    )
    url = "sqlite:///{tenant}.db"
    done = files.alembic("upgrade", "head", ok=False, DATABASE_URL=url)
    assert "Option tenants is 5: expected text or a list of names." in done.stdout + done.stderr


def test_schema_of_the_version_table_is_refused(files: Project) -> None:
    """In a fleet each tenant has its own version table, and the option has no meaning."""
    files.set(version_table_schema="other")
    said = refusal(files, "upgrade", "head")
    assert said.startswith("Option version_table_schema has no meaning in a fleet")


def test_url_that_knows_no_tenants(files: Project) -> None:
    """Without the option tenants, tenants_url is not asked for a tenant that is named."""
    with_driver(files, "sqlite", "ant")
    files.set(tenants="", tenants_url="sqlite:///%(here)s/nowhere/none.db")
    files.alembic("-x", "tenant=ant", "upgrade", "head")
    assert at(files, "ant").versions() == {"b2"}


def test_file_that_is_no_database_is_named(files: Project) -> None:
    """A command that reads says which tenant it could not read."""
    with_driver(files, "sqlite", "ant")
    file(files, "ant").write_text("no database" * 100)
    said = refusal(files, "-x", "tenant=ant", "check")
    assert said.startswith("Tenant 'ant' failed: ")
    assert "file is not a database" in said


@pytest.mark.parametrize("replay", ["false", "true"])
def test_broken_foreign_key_is_named(files: Project, replay: str) -> None:
    """A tenant whose rows lose their parents fails, also by a script, and keeps what it has."""
    with_driver(files, "sqlite", "ant", "bee")
    files.alembic("upgrade", "head")
    for tenant in ("ant", "bee"):
        at(files, tenant).run(
            "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
            "CREATE TABLE child (id INTEGER REFERENCES parent (id))",
            "INSERT INTO parent VALUES (1)",
        )
    at(files, "bee").run("INSERT INTO child VALUES (1)")
    files.revision("c3", "op.execute('DELETE FROM parent')", down="b2")
    done = files.alembic("-x", f"replay={replay}", "upgrade", "head", ok=False)
    assert "The migration breaks foreign keys" in done.stdout + done.stderr
    assert last(done.stdout) == "1 upgraded, 0 current, 1 failed"
    assert at(files, "bee").versions() == {"b2"}
    assert at(files, "bee").rows("SELECT * FROM parent") == [(1,)]
    assert at(files, "ant").versions() == {"c3"}


@SQLITE
@pytest.mark.parametrize("replay", ["false", "true"])
def test_missing_file(files: Project, driver: str, replay: str) -> None:
    """A listed tenant without a file fails and none is made; with create=true it is made."""
    with_driver(files, driver, "ant")
    args = ["-x", f"replay={replay}", "-x", "jobs=2"]
    done = files.alembic(*args, "upgrade", "head", ok=False)
    assert last(done.stdout) == "1 upgraded, 0 current, 1 failed"
    assert f"Tenant 'bee' failed: {MISSING}" in done.stderr
    assert made(files) == {"ant.db"}
    done = files.alembic(*args, "-x", "create=true", "upgrade", "head")
    assert last(done.stdout).startswith("1 upgraded, 1 current, 0 failed")
    for tenant in ("ant", "bee"):
        assert at(files, tenant).versions() == {"b2"}
        assert at(files, tenant).rows("SELECT * FROM own") == [(1,)]


@SQLITE
def test_named_tenants(files: Project, driver: str) -> None:
    """A named tenant without a file is unknown, whatever else is named; with create=true it is made."""
    with_driver(files, driver, "ant")
    for command in (["upgrade", "head"], ["current"], ["check"]):
        said = refusal(files, "-x", "tenant=cat", *command)
        assert said == f"Tenant 'cat' is unknown: {MISSING}"
    refusal(files, "-x", "tenant=ant,cat", "upgrade", "head")
    assert made(files) == {"ant.db"}
    assert at(files, "ant").tables() == set()
    files.alembic("-x", "tenant=ant,cat", "-x", "create=true", "upgrade", "head")
    assert made(files) == {"ant.db", "cat.db"}
    assert at(files, "cat").rows("SELECT * FROM own") == [(1,)]


@SQLITE
def test_current(files: Project, driver: str) -> None:
    """`current` tells where each file stands, those that are missing first, and makes none."""
    with_driver(files, driver, "ant", "bee", "cat")
    files.set(tenants="ant bee cat dog")
    files.alembic("-x", "tenant=ant", "upgrade", "head")
    files.alembic("-x", "tenant=bee", "upgrade", "a1")
    shown = files.alembic("current").stdout.splitlines()
    assert shown[:4] == [
        "dog: missing (missing)",
        "bee: a1 (behind)",
        "cat: base (behind)",
        "ant: b2 (head)",
    ]
    assert made(files) == {"ant.db", "bee.db", "cat.db"}
    assert at(files, "cat").tables() == set()


@SQLITE
def test_check_and_revision(files: Project, driver: str) -> None:
    """`revision --autogenerate` and `check` look at the first tenant; `check` at all versions too."""
    for revision in ("a1", "b2"):
        (files.folder / "migrations" / "versions" / f"{revision}.py").unlink()
    with_driver(files, driver, "ant", "bee")
    files.alembic("revision", "--autogenerate", "-m", "first", "--rev-id", "a1")
    (written,) = (files.folder / "migrations" / "versions").glob("*.py")
    tables = set(re.findall(r"create_table\(\s*['\"](\w+)", written.read_text()))
    assert tables
    assert at(files, "ant").tables() == set()
    files.alembic("-x", "tenant=ant", "upgrade", "head")
    assert at(files, "ant").tables() == tables | {"alembic_version"}
    said = refusal(files, "check")
    assert said.startswith("1 of 2 tenants are not at a1, where 'ant' is: 'bee' (base);")
    files.alembic("upgrade", "head")
    assert at(files, "bee").tables() == tables | {"alembic_version"}
    files.alembic("check")
    at(files, "bee").run(f"DROP TABLE {max(tables)}")
    files.alembic("check")
    refusal(files, "-x", "tenant=bee", "check")
    file(files, "bee").write_text("This is no database.")
    said = refusal(files, "check")
    assert said == (
        "1 of 2 tenants are not at a1, where 'ant' is: 'bee' (unreadable); the log says what is "
        "wrong."
    )


@SQLITE
def test_scripts(files: Project, driver: str) -> None:
    """`--sql` writes a part for each tenant, which run on its file gives what an upgrade gives."""
    with_driver(files, driver)
    script = files.alembic("upgrade", "head", "--sql").stdout
    assert made(files) == set()
    _, *parts = re.split(r"^-- '(.+)'$", script, flags=re.MULTILINE)
    assert [Path(url).name for url in parts[::2]] == ["ant.db", "bee.db"]
    assert all(url.startswith(f"{driver}:///") for url in parts[::2])
    for tenant, part in zip(("ant", "bee"), parts[1::2], strict=True):
        statements = re.sub(r"^--.*$", "", part, flags=re.MULTILINE).split(";")
        at(files, tenant).run(
            *(line for line in statements if line.strip() not in {"", "BEGIN", "COMMIT"})
        )
    assert last(files.alembic("upgrade", "head").stdout) == "0 upgraded, 2 current, 0 failed"
    for tenant in ("ant", "bee"):
        assert at(files, tenant).rows("SELECT * FROM own") == [(1,)]


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("../x", "'..'"),
        ("a/b", "'/'"),
        ("a@b", "'@'"),
        ("50%", "'%'"),
        ("a\\b", r"'\\'"),
        ("..", "'..'"),
    ],
)
@pytest.mark.parametrize(
    "command", [["upgrade", "head"], ["upgrade", "head", "--sql"], ["current"]]
)
def test_name_that_would_leave_its_place(
    files: Project, name: str, sign: str, command: list[str]
) -> None:
    """A name that could lead to another file or host is refused by name, and nothing is made."""
    before = {each for each in files.folder.rglob("*") if each.suffix != ".pyc"}
    expected = (
        f"The name {name!r} cannot be a tenant's: in a URL it would leave its place, because of "
        f"{sign}."
    )
    assert refusal(files, "-x", f"tenant={name}", "-x", "create=true", *command) == expected
    files.set(tenants=f"ant {name}".replace("%", "%%"))
    assert refusal(files, "-x", "create=true", *command) == expected
    assert {each for each in files.folder.rglob("*") if each.suffix != ".pyc"} == before


@SQLITE
def test_name_that_means_no_file(files: Project, driver: str) -> None:
    """A name that SQLite takes for a database in memory is refused, since all would be lost."""
    files.set(sqlalchemy__url=f"{driver}:///{{tenant}}", tenants=":memory:")
    said = refusal(files, "-x", "create=true", "upgrade", "head")
    assert said.startswith("The name ':memory:' cannot be a tenant's: ")


@SQLITE
def test_two_runners(files: Project, driver: str) -> None:
    """Of two runs at once on a fleet of files both succeed, and each revision of each runs once."""
    tenants = [f"t{number}" for number in range(12)]
    with_driver(files, driver, *tenants)
    files.set(tenants=" ".join(tenants))
    commands = [files.start("-x", "jobs=2", "upgrade", "head") for _ in range(2)]
    done = [command.communicate(timeout=60) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], done
    assert sum(int(last(output).split()[0]) for output, _ in done) == 12
    for tenant in tenants:
        assert at(files, tenant).versions() == {"b2"}
        assert at(files, tenant).rows("SELECT * FROM own") == [(1,)]


NAMES = [
    "with space",
    "it's",
    'say "so"',
    "what?",
    "a#b",
    "a?mode=memory",
    "ünïcode",
    "$user",
    "a&b=c",
]


@SQLITE
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_name_is_the_file_to_the_letter(files: Project, driver: str, jobs: str) -> None:
    """A name with spaces, quotes, ? or # is that of the file, and of no other."""
    with_driver(files, driver)
    (files.folder / "names.py").write_text(f"def names(connection):\n    return {NAMES!r}\n")
    files.set(tenants="names:names", tenants_url="sqlite://")
    files.alembic("-x", f"jobs={jobs}", "-x", "create=true", "upgrade", "head")
    assert made(files) == {f"{name}.db" for name in NAMES}
    for name in NAMES:
        assert at(files, name).versions() == {"b2"}
    done = files.alembic("-x", f"tenant={NAMES[0]}", "downgrade", "base")
    assert last(done.stdout) == "1 downgraded, 0 current, 0 failed"
    assert at(files, NAMES[0]).tables() == {"alembic_version"}
    assert at(files, NAMES[1]).rows("SELECT * FROM own") == [(1,)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        pytest.param(
            "postgresql+psycopg://me:secret{tenant}@localhost/own",
            "The database URL has {tenant} in its password or its query: expected it in the name of "
            "the database, of the user or of the host.",
            id="password",
        ),
        pytest.param(
            "sqlite:///data/{tenant}.db?mode={tenant}",
            "The database URL has {tenant} in its password or its query: expected it in the name of "
            "the database, of the user or of the host.",
            id="query",
        ),
        pytest.param(
            "sqlite:///data/own.db",
            "A fleet on sqlite has a database for each tenant: in the database URL, write {tenant} for "
            "its name.",
            id="sqlite-without",
        ),
    ],
)
def test_refused_url(files: Project, url: str, said: str) -> None:
    """A URL in which {tenant} stands in a wrong place, or where it has to, is refused."""
    for command in (["upgrade", "head"], ["current"], ["upgrade", "head", "--sql"]):
        assert refusal(files, "-x", f"url={url}", "-x", "create=true", *command) == said
    assert made(files) == set()


@SQLITE
@pytest.mark.parametrize("option", ["SELECT name FROM tenant ORDER BY name DESC", "names:ask"])
def test_tenants_url(files: Project, driver: str, option: str) -> None:
    """A SELECT or a function asks the database of tenants_url, and without one is refused."""
    with_driver(files, driver, "ant", "bee")
    (files.folder / "names.py").write_text(
        "from sqlalchemy import text\n\ndef ask(connection):\n"
        "    return connection.execute(text('SELECT name FROM tenant ORDER BY name DESC')).scalars()\n"
    )
    files.set(tenants=option)
    said = refusal(files, "upgrade", "head")
    assert said == (
        "Option tenants asks a database, and the URL names one for each tenant: set option "
        "tenants_url to the URL of the database that knows the tenants."
    )
    assert at(files, "ant").tables() == set()
    registry = Database("sqlite", URL.create("sqlite", database=str(files.folder / "registry.db")))
    registry.run("CREATE TABLE tenant (name TEXT)", "INSERT INTO tenant VALUES ('ant'), ('bee')")
    files.set(tenants_url=f"{driver}:///%(here)s/registry.db")
    done = files.alembic("-x", "jobs=2", "upgrade", "head")
    assert last(done.stdout) == "2 upgraded, 0 current, 0 failed"
    for tenant in ("ant", "bee"):
        assert at(files, tenant).versions() == {"b2"}
    assert files.alembic("current").stdout.startswith("bee: b2 (head)\nant: b2 (head)\n")
    script = files.alembic("upgrade", "head", "--sql").stdout
    assert re.findall(r"(\w+)\.db'$", script, re.MULTILINE) == ["bee", "ant"]
    assert registry.tables() == {"tenant"}


@pytest.fixture(params=[name for kind in ("postgresql", "mariadb") for name in DRIVERS[kind]])
def servers(
    request: pytest.FixtureRequest, fleet_project: Project
) -> Iterator[tuple[Project, str, list[Database]]]:
    """A project and the URL, with {tenant}, of two databases on a server, for each driver in turn."""
    driver = str(request.param)
    main: Database = request.getfixturevalue(kind_of(driver))
    names = [f"{main.url.database}_{tenant}" for tenant in ("ant", "bee")]
    engine = main.engine().execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in names:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = main.url_for(driver).replace(str(main.url.database), "{tenant}")
    fleet_project.set(sqlalchemy__url=url.replace("%", "%%"), tenants=" ".join(names))
    fleet_project.revision("a1", OWN, "op.drop_table('own')")
    fleet_project.revision("b2", FILL, "op.execute('DELETE FROM own')", down="a1")
    yield fleet_project, url, [Database(main.kind, main.url.set(database=name)) for name in names]
    with engine.connect() as connection:
        for name in names:
            force = " WITH (FORCE)" if main.kind == "postgresql" else ""
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_databases_of_a_server(servers: tuple[Project, str, list[Database]], jobs: str) -> None:
    """On a server each tenant's database is reached by its URL, by every driver."""
    project, _, databases = servers
    done = project.alembic("-x", f"jobs={jobs}", "upgrade", "head")
    assert last(done.stdout) == "2 upgraded, 0 current, 0 failed"
    for database in databases:
        assert database.versions() == {"b2"}
        assert database.rows("SELECT * FROM own") == [(1,)]
    args = ["-x", f"jobs={jobs}", "-x", f"tenant={databases[0].url.database}", "-x", "replay=true"]
    project.alembic(*args, "downgrade", "base")
    assert databases[0].tables() == {"alembic_version"}
    assert databases[1].rows("SELECT * FROM own") == [(1,)]
    done = project.alembic("-x", f"jobs={jobs}", "-x", "replay=true", "upgrade", "head")
    assert last(done.stdout) == "1 upgraded, 1 current, 0 failed"
    assert databases[0].rows("SELECT * FROM own") == [(1,)]


@pytest.mark.parametrize("replay", ["false", "true"])
def test_database_that_does_not_exist(
    servers: tuple[Project, str, list[Database]], replay: str
) -> None:
    """A database that does not exist fails its tenant, and the others go on; two are one entry."""
    project, _, databases = servers
    names = [str(database.url.database) for database in databases]
    nowhere = f"{names[0]}_nowhere"
    project.set(tenants=f"{names[0]} {nowhere} {names[1]}")
    done = project.alembic("-x", "jobs=2", "-x", f"replay={replay}", "upgrade", "head", ok=False)
    assert last(done.stdout) == "2 upgraded, 0 current, 1 failed"
    assert f"Tenant '{nowhere}' failed: Cannot connect to database '{nowhere}'" in done.stderr
    for database in databases:
        assert database.rows("SELECT * FROM own") == [(1,)]
    shown = project.alembic("current").stdout.splitlines()
    assert shown[0].startswith(f"{nowhere}: ")
    assert shown[0].endswith(" (unknown)")
    assert shown[1:3] == [f"{name}: b2 (head)" for name in names]
    project.set(tenants=f"{nowhere} {nowhere}2 {nowhere}3")
    done = project.alembic("-x", f"replay={replay}", "upgrade", "head", ok=False)
    assert last(done.stdout) == "0 upgraded, 0 current, 3 failed"
    entries = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    (line,) = [line for line in entries if " failed: " in line]
    assert f"3 tenants ('{nowhere}', '{nowhere}2', '{nowhere}3') failed: Cannot connect to " in line
    assert "database '{tenant}'" in line


def test_connection_to_a_tenants_own_database(files: Project) -> None:
    """A connection to a tenant's file is that tenant, and is left as it was."""
    with_driver(files, "sqlite", "ant", "bee")
    code = f"""
    from migrations.commands import Migrations
    from sqlalchemy import create_engine
    engine = create_engine("sqlite:///{file(files, "bee")}")
    with engine.connect() as connection:
        Migrations(connection).upgrade()
        assert not connection.in_transaction()
        assert Migrations(connection).current() == ("b2",)
    with engine.connect() as connection, connection.begin() as transaction:
        Migrations(connection).downgrade("base")
        transaction.rollback()
    """
    files.python(code)
    assert at(files, "bee").rows("SELECT * FROM own") == [(1,)]
    assert at(files, "bee").versions() == {"b2"}
    assert at(files, "ant").tables() == set()


@pytest.mark.parametrize("driver", DRIVERS["mariadb"])
def test_password_is_never_shown(mariadb: Database, fleet_project: Project, driver: str) -> None:
    """A password with % and @ works with {tenant}, and no output shows it, nor a wrong one."""
    user, password = f"u{uuid.uuid4().hex[:12]}", "p%4@s%%/w"
    mariadb.run(
        f"CREATE USER {user} IDENTIFIED BY '{password}'",
        f"GRANT ALL ON {mariadb.url.database}.* TO {user}",
    )
    try:
        url = mariadb.url.set(drivername=driver, username=user, database="{tenant}")
        right, wrong = (
            url.set(password=each).render_as_string(hide_password=False)
            for each in (password, f"{password}wrong")
        )
        fleet_project.set(
            sqlalchemy__url=right.replace("%", "%%"),
            tenants=str(mariadb.url.database),
        )
        fleet_project.revision("a1", OWN, "op.drop_table('own')")
        written = [fleet_project.alembic("upgrade", "head")]
        assert mariadb.versions() == {"a1"}
        written += [
            fleet_project.alembic(*args)
            for args in (["current"], ["downgrade", "base"], ["upgrade", "head", "--sql"])
        ]
        assert mariadb.tables() == {"alembic_version"}
        fleet_project.set(sqlalchemy__url=wrong.replace("%", "%%"))
        written.append(fleet_project.alembic("-x", "jobs=2", "upgrade", "head", ok=False))
        assert "Cannot connect to database" in written[-1].stderr
        for done in written:
            for secret in ("p%4", "p%25", "s%%", "s%25", "wwrong"):
                assert secret not in done.stdout + done.stderr
    finally:
        mariadb.run(f"DROP USER {user}")


def test_name_that_a_server_would_cut(
    servers: tuple[Project, str, list[Database]],
) -> None:
    """A name of which the server would read the beginning alone is refused, before it is connected."""
    project, _, (first, _) = servers
    kind, longest = ("bytes", 63) if first.kind == "postgresql" else ("characters", 64)
    name = str(first.url.database).ljust(longest + 1, "x")
    project.set(tenants=name)
    done = project.alembic("upgrade", "head", ok=False)
    assert done.stdout == (
        f"FAILED: The name {name!r} cannot be a tenant's: it has {longest + 1} {kind}, and the "
        f"server takes {longest}.\n"
    )
    assert first.tables() == set()


def test_more_jobs_than_connections(servers: tuple[Project, str, list[Database]]) -> None:
    """Connections are counted before the start where all tenants are on one server."""
    project, _, databases = servers
    done = project.alembic("-x", "jobs=160", "upgrade", "head", ok=False)
    assert done.stdout.startswith("FAILED: 160 jobs need 160 connections, and the server has ")
    assert [database.tables() for database in databases] == [set(), set()]


def test_connection_to_another_tenant(files: Project) -> None:
    """A connection to one tenant's database is refused for another tenant, and for several."""
    for tenant in ("ant", "bee"):
        at(files, tenant).run("CREATE TABLE mine (id INTEGER)")
    with at(files, "ant").engine().connect() as connection:
        for given, said in (
            ("bee", "The connection leads to database"),
            (
                ["ant", "bee"],
                "2 tenants are named, and the connection leads to the database of one",
            ),
        ):
            with pytest.raises(CommandError, match=said):
                upgrade(files.config(connection=connection, tenant=given), "head")
        with pytest.raises(CommandError, match="-x part asks for a part of the fleet: leave it"):
            upgrade(with_x(files.config(connection=connection), "part=0/2"), "head")
        assert at(files, "ant").tables() == {"mine"}
        upgrade(files.config(connection=connection, tenant="ant"), "head")
    assert at(files, "ant").versions() == {"b2"}
    assert at(files, "bee").tables() == {"mine"}


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("postgresql+psycopg", "template1"),
        ("postgresql+psycopg", "postgres"),
        ("mysql+pymysql", "MySQL"),
    ],
)
def test_no_tenant_in_databases_of_the_server(files: Project, driver: str, name: str) -> None:
    """The databases of the server itself are refused, before anything is connected."""
    url = f"url={driver}://nobody@nowhere.invalid/{{tenant}}"
    said = refusal(files, "-x", url, "-x", f"tenant={name}", "upgrade", "head")
    assert said == f"The name {name!r} cannot be a tenant's: it is the server's own."


def test_file_uri_that_does_not_exist(files: Project) -> None:
    """A missing SQLite file of a file: URI is missing as well, and is not created by a look at it."""
    files.set(sqlalchemy__url="sqlite:///file:%(here)s/data/{tenant}.db?uri=true", tenants="cat")
    assert "cat: missing (missing)" in files.alembic("current").stdout
    for args in (["upgrade", "head"], ["check"]):
        assert "Traceback" not in files.alembic(*args, ok=False).stderr
    assert made(files) == set()


def test_a_name_that_no_file_can_have(files: Project) -> None:
    """A name with a lone surrogate is refused for what it is."""
    module = imported(files.folder / "migrations", "tenant_names")
    url = make_url("sqlite:///{tenant}.db")
    reason = module.fault_in_url("a\udcff", url, "alembic_version")
    assert reason == "it has a character that no database takes"
