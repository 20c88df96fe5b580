"""The scaffold: a whole project around each environment, which passes its own checks and builds."""

from __future__ import annotations

import configparser
import functools
import inspect
import itertools
import json
import os
import re
import shutil
import sys
import uuid
import venv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml
from alembic.command import current
from conftest import ROOT, Database, Project, run, tree
from mako.template import Template
from pytest_cookies.plugin import Cookies
from sqlalchemy import make_url

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Scaffold:
    """A supported combination of answers, and the driver that it brings."""

    environment: str
    database: str
    driver: str
    # How pyproject.toml names the driver.
    requirement: str | None

    def __str__(self) -> str:
        return f"{self.environment}-{self.database}"

    @property
    def answers(self) -> dict[str, str]:
        """The answers to the questions of cookiecutter.json."""
        return {"environment": self.environment, "database": self.database}


SCAFFOLDS = [
    Scaffold("shared", "sqlite", "sqlite", None),
    Scaffold("shared", "postgresql", "postgresql+psycopg", "psycopg[binary]"),
    Scaffold("shared", "mariadb", "mysql+pymysql", "pymysql"),
    Scaffold("sync", "sqlite", "sqlite", None),
    Scaffold("sync", "postgresql", "postgresql+psycopg", "psycopg[binary]"),
    Scaffold("sync", "mariadb", "mysql+pymysql", "pymysql"),
    Scaffold("asyncio", "sqlite", "sqlite+aiosqlite", "aiosqlite"),
    Scaffold("asyncio", "postgresql", "postgresql+asyncpg", "asyncpg"),
    Scaffold("asyncio", "mariadb", "mysql+aiomysql", "aiomysql"),
    Scaffold("multitenant", "postgresql", "postgresql+psycopg", "psycopg[binary]"),
    Scaffold("multitenant", "mariadb", "mysql+pymysql", "pymysql"),
]

BAD_PROJECT_NAME = "expected letters, digits, spaces and . , ' ( ) & + - after a letter or digit."
BAD_SLUG = (
    "expected lower-case letters and digits, a letter first, in words joined by single hyphens, "
    "such as 'my-project'."
)
BAD_PACKAGE = "expected a lower-case Python identifier that is no keyword, such as 'my_project'."
NO_SCHEMAS = "which has no schemas for the tenants: choose database postgresql or mariadb."
TAKEN = "a name that the project needs for something else: choose another, such as"

# The longest names that give a working project.
LONGEST = {"project_slug": "s" * 70, "package_name": "p" * 42}

# Answers, and what is said about them.
REFUSED: list[tuple[dict[str, str], str]] = [
    ({"project_name": "-dash"}, f"project_name is '-dash': {BAD_PROJECT_NAME}"),
    ({"project_name": 'The "best"'}, f"project_name is 'The \"best\"': {BAD_PROJECT_NAME}"),
    ({"project_name": "back\\slash"}, f"project_name is 'back\\\\slash': {BAD_PROJECT_NAME}"),
    ({"project_name": "3D Models"}, f"project_slug is '3d-models': {BAD_SLUG}"),
    ({"project_slug": "my_project"}, f"project_slug is 'my_project': {BAD_SLUG}"),
    ({"project_slug": "../up"}, f"project_slug is '../up': {BAD_SLUG}"),
    (
        {"project_slug": "s" * 71, "package_name": "short"},
        f"project_slug is '{'s' * 71}', 71 characters long: expected 70 at most.",
    ),
    ({"project_name": "Python"}, f"project_slug is 'python', {TAKEN} 'python-app'."),
    (
        {"project_slug": "pytest-alembic", "package_name": "fine"},
        f"project_slug is 'pytest-alembic', {TAKEN} 'pytest-alembic-app'.",
    ),
    ({"package_name": "My_Project"}, f"package_name is 'My_Project': {BAD_PACKAGE}"),
    ({"project_name": "Class"}, f"package_name is 'class': {BAD_PACKAGE}"),
    (
        {"package_name": "p" * 43},
        f"package_name is '{'p' * 43}', 43 characters long: expected 42 at most.",
    ),
    ({"package_name": "sqlalchemy"}, f"package_name is 'sqlalchemy', {TAKEN} 'sqlalchemy_app'."),
    ({"project_name": "JSON"}, f"package_name is 'json', {TAKEN} 'json_app'."),
    ({"project_name": "Test"}, f"package_name is 'test', {TAKEN} 'test_app'."),
    ({"project_name": "Test models"}, f"package_name is 'test_models', {TAKEN} 'test_models_app'."),
    ({"project_name": "MySQL"}, f"package_name is 'mysql', {TAKEN} 'mysql_app'."),
    (
        {"environment": "multitenant", "database": "sqlite"},
        f"environment multitenant does not go with database sqlite, {NO_SCHEMAS}",
    ),
]

# Names of projects with the slug and the package that are derived from them.
NAMES = [
    ("My Project", "my-project", "my_project"),
    ("O'Reilly & Sons (Books), Ltd.", "o-reilly-sons-books-ltd", "o_reilly_sons_books_ltd"),
    ("Ünïcode  Café", "unicode-cafe", "unicode_cafe"),
    ("東京", "dong-jing", "dong_jing"),
    ("C++ 2.0 -", "c-2-0", "c_2_0"),
    ("Null", "null", "null"),
]

# Those whose README and wheel are tried in virtual environments: each environment and database
# occurs. The others run their tests with this Python.
BUILT = [
    scaffold
    for scaffold in SCAFFOLDS
    if str(scaffold)
    in {"shared-sqlite", "sync-mariadb", "asyncio-postgresql", "multitenant-postgresql"}
]
AUTOGENERATED = [
    scaffold
    for scaffold in SCAFFOLDS
    if str(scaffold) in {"sync-sqlite", "asyncio-postgresql", "multitenant-mariadb"}
]

CHOICES = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))

HEAD, SHARED_HEAD = "7d1c4a52e0b9", "2b90c6e1f4a8"
FIRST, SHARED_FIRST = f"{HEAD}_create_the_tables.py", f"{SHARED_HEAD}_create_the_tenants.py"
PACKAGE = ("__init__", "cli", "database", "models", "replaceable", "startup")
TESTS = ("conftest", "test_migrations", "test_models", "test_startup")

runs = pytest.mark.skipif(
    "check_heads" not in inspect.signature(current).parameters,
    reason="A scaffolded project needs Alembic 1.17.1.",
)


def tool(folder: Path, *args: str | Path, **env: str) -> str:
    """Run a module of the tests' own Python in a project, whose package it finds in src/."""
    return run(folder, sys.executable, "-m", *args, PYTHONPATH="src", **env)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder with what they hold."""
    return {name: held for name, (_, held) in tree(folder).items() if held is not None}


def toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def in_yaml(path: Path) -> Any:
    """Return what a YAML file holds."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def bake(cookies_session: Cookies) -> Callable[..., Path]:
    """Bake a project that nobody changes, once for each set of answers."""

    @functools.cache
    def bake(**answers: str) -> Path:
        result = cookies_session.bake(extra_context=answers, template=str(ROOT))
        assert result.exit_code == 0, result.exception
        path: Path = result.project_path
        return path

    return bake


@pytest.fixture(params=SCAFFOLDS, ids=str)
def scaffold(request: pytest.FixtureRequest) -> Scaffold:
    """Each supported combination in turn."""
    found: Scaffold = request.param
    return found


@pytest.fixture
def baked(scaffold: Scaffold, bake: Callable[..., Path]) -> Path:
    """The project of a combination, to read only."""
    return bake(**scaffold.answers)


@pytest.fixture
def project(baked: Path, tmp_path: Path) -> Path:
    """A copy of the project of a combination, to work in."""
    return Path(shutil.copytree(baked, tmp_path / "project"))


@pytest.fixture
def fresh(scaffold: Scaffold, request: pytest.FixtureRequest) -> Database:
    """An empty database for a combination."""
    found: Database = request.getfixturevalue(scaffold.database)
    return found


@pytest.fixture(scope="session")
def type_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mypy keeps what it knows of SQLAlchemy from one project to the next."""
    return tmp_path_factory.mktemp("mypy")


# --- the files ---------------------------------------------------------------------------------


def test_every_combination_stands_in_one_table() -> None:
    """Each environment goes with each database, or is refused with it."""
    supported = {(scaffold.environment, scaffold.database) for scaffold in SCAFFOLDS}
    refused = {
        (answers["environment"], answers["database"])
        for answers, _ in REFUSED
        if "environment" in answers
    }
    every = set(itertools.product(CHOICES["environment"], CHOICES["database"]))
    assert supported | refused == every
    assert not supported & refused
    assert {scaffold.environment for scaffold in BUILT} == set(CHOICES["environment"])
    assert {scaffold.database for scaffold in BUILT} == set(CHOICES["database"])


def environments(scaffold: Scaffold) -> dict[str, bytes]:
    """Return the files that the templates give a project."""
    templates = {"migrations": scaffold.environment}
    if scaffold.environment == "multitenant":
        templates["migrations_shared"] = "sync"
    return {
        f"{folder}/{path.name}": path.read_bytes()
        for folder, template in templates.items()
        for path in (ROOT / "templates" / template).iterdir()
        if path.is_file() and path.name != "alembic.ini.mako"
    }


def test_environment_is_that_of_its_template(scaffold: Scaffold, baked: Path) -> None:
    """A project has each file of its environment, the same to the byte."""
    found, expected = contents(baked), environments(scaffold)
    assert {name: found.get(name) for name in expected} == expected


def test_tree_has_the_files_of_its_combination(scaffold: Scaffold, baked: Path) -> None:
    """A project has the files of its environment and database, and none of another's."""
    expected = {
        *(".env.example", ".github/workflows/tests.yml", ".gitignore", "README.md"),
        *("alembic.ini", "pyproject.toml", "src/my_project/py.typed"),
        *(f"src/my_project/{name}.py" for name in PACKAGE),
        *(f"tests/{name}.py" for name in TESTS),
        f"migrations/versions/{FIRST}",
    }
    if scaffold.database != "sqlite":
        expected |= {"compose.yaml"}
    if scaffold.environment == "multitenant":
        expected |= {"tests/test_migrations_shared.py"}
        expected |= {f"migrations_shared/versions/{SHARED_FIRST}"}
    assert set(contents(baked)) == expected | environments(scaffold).keys()


def test_nothing_is_left_to_render(baked: Path) -> None:
    """No file is empty or shows that it was rendered: no braces, no blank lines in a row."""
    for name, content in contents(baked).items():
        text = content.decode("utf-8")
        if name == "src/my_project/py.typed":
            assert text == ""
            continue
        if name == ".github/workflows/tests.yml":
            text = re.sub(r"\$\{\{ [\w.]+ \}\}", "", text)
        assert [mark for mark in ("{{", "{%", "{#") if mark in text] == [], name
        assert text.strip(), name
        assert text.endswith("\n"), name
        assert not text.endswith("\n\n"), name
        if not name.endswith((".py", ".mako")):
            assert "\n\n\n" not in text, name


def test_ini_is_the_one_of_alembic_init(scaffold: Scaffold, baked: Path) -> None:
    """alembic.ini is what `alembic init` writes, but for the lines that tell of the project."""
    template = ROOT / "templates" / scaffold.environment / "alembic.ini.mako"
    mako = Template(template.read_text(encoding="utf-8"))
    lines = mako.render(script_location="%(here)s/migrations").splitlines()
    text = (baked / "alembic.ini").read_text(encoding="utf-8")
    fleet = scaffold.environment == "multitenant"
    assert set(lines) - set(text.splitlines()) == {
        "prepend_sys_path = %(here)s",
        "target_metadata =",
        *(["tenants ="] if fleet else []),
    }
    assert not re.search(r"\$\{|<%|^\s*%", text, re.MULTILINE)
    ini = configparser.ConfigParser({"here": "."})
    ini.read_string(text)
    assert ini["alembic"]["script_location"] == "./migrations"
    assert ini["alembic"]["prepend_sys_path"] == "./src"
    assert ini["alembic"]["target_metadata"] == "my_project.models:Base.metadata"
    assert ini.has_section("shared") == fleet


@pytest.mark.parametrize("check", ["check", "format"])
def test_project_passes_ruff(baked: Path, check: str) -> None:
    """`ruff check` and `ruff format` find nothing, as the project configures them."""
    tool(baked, "ruff", check, "--no-cache", *(["--check"] if check == "format" else []), ".")


@runs
def test_project_passes_the_type_checker(baked: Path, type_cache: Path) -> None:
    """`mypy --strict` finds nothing, as the project configures it."""
    tool(baked, "mypy", "--strict", "--cache-dir", type_cache)


@pytest.mark.parametrize("version", CHOICES["python_version"])
def test_oldest_python_is_the_one_asked_for(bake: Callable[..., Path], version: str) -> None:
    """The files agree on the oldest Python, and pass ruff, which goes by it."""
    baked = bake(environment="multitenant", database="postgresql", python_version=version)
    assert toml(baked / "pyproject.toml")["project"]["requires-python"] == f">={version}"
    readme = (baked / "README.md").read_text(encoding="utf-8")
    assert f"Needs Python {version} or newer" in readme
    job = in_yaml(baked / ".github/workflows/tests.yml")["jobs"]["tests"]
    assert job["strategy"]["matrix"]["python"] == list(dict.fromkeys([version, "3.14"]))
    tool(baked, "ruff", "check", "--no-cache", ".")
    tool(baked, "ruff", "format", "--no-cache", "--check", ".")


# --- what the files say ------------------------------------------------------------------------


def test_project_depends_on_what_it_runs_on(scaffold: Scaffold, baked: Path) -> None:
    """pyproject.toml names Alembic, SQLAlchemy and one driver, and not what it was made with."""
    project = toml(baked / "pyproject.toml")["project"]
    is_async = scaffold.environment == "asyncio"
    expected = {"alembic", "sqlalchemy[asyncio]" if is_async else "sqlalchemy"}
    found = [requirement.partition(">=")[0] for requirement in project["dependencies"]]
    assert set(found) == expected | ({scaffold.requirement} - {None})
    assert len(set(found)) == len(found)
    assert not [
        name for name, content in contents(baked).items() if b"alembic-templates" in content
    ]
    assert project["requires-python"] == f">={CHOICES['python_version'][0]}"


def test_files_agree_on_the_database(scaffold: Scaffold, baked: Path) -> None:
    """Where a database URL stands, its driver, server and password are those of the services."""
    text = (baked / ".env.example").read_text(encoding="utf-8").removeprefix("DATABASE_URL=")
    url = make_url(text.strip())
    assert url.drivername == scaffold.driver
    readme = (baked / "README.md").read_text(encoding="utf-8")
    assert f'"${{DATABASE_URL:-{text.strip()}}}"' in readme
    job = in_yaml(baked / ".github/workflows/tests.yml")["jobs"]["tests"]
    (step,) = (step for step in job["steps"] if step.get("run") == "pytest")
    assert ("docker compose" in readme) == (scaffold.database != "sqlite")
    if scaffold.database == "sqlite":
        assert url.database == "my_project.db"
        assert "services" not in job
        assert "env" not in step
        return
    assert make_url(step["env"]["DATABASE_URL"]) == url.set(
        database="postgres" if scaffold.database == "postgresql" else ""
    )
    assert step["env"]["DATABASE_URL"] in (baked / "tests/conftest.py").read_text(encoding="utf-8")
    service = in_yaml(baked / "compose.yaml")["services"]["database"]
    on_ci = job["services"]["database"]
    assert service["image"] == on_ci["image"]
    assert service["image"].partition(":")[0] == {"postgresql": "postgres"}.get(
        scaffold.database, scaffold.database
    )
    assert service["ports"] == [f"{url.host}:{url.port}:{url.port}"]
    assert on_ci["ports"] == [f"{url.port}:{url.port}"]
    settings = service["environment"]
    name, password = {
        "postgresql": ("POSTGRES_DB", "POSTGRES_PASSWORD"),
        "mariadb": ("MARIADB_DATABASE", "MARIADB_ROOT_PASSWORD"),
    }[scaffold.database]
    assert settings == {name: url.database, password: url.password}
    assert on_ci["env"] == {password: url.password}


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slug", "package"), NAMES, ids=[names[1] for names in NAMES])
def test_names_are_derived(bake: Callable[..., Path], name: str, slug: str, package: str) -> None:
    """From the name of a project come those of its folder, distribution, package and database."""
    baked = bake(project_name=name, environment="sync", database="postgresql")
    assert baked.name == slug
    metadata = toml(baked / "pyproject.toml")["project"]
    assert (metadata["name"], metadata["description"]) == (slug, name)
    assert metadata["scripts"] == {slug: f"{package}.cli:main"}
    code = f"import {package}; print(ascii({package}.__doc__))"
    assert run(baked, sys.executable, "-c", code, PYTHONPATH="src").strip() == ascii(f"{name}.")
    service = in_yaml(baked / "compose.yaml")["services"]["database"]
    assert service["environment"]["POSTGRES_DB"] == package
    tool(baked, "ruff", "check", "--no-cache", ".")
    tool(baked, "ruff", "format", "--no-cache", "--check", ".")


@runs
def test_longest_names_work(bake: Callable[..., Path], tmp_path: Path, mariadb: Database) -> None:
    """With the longest names that are not refused, a project is formatted and passes its tests."""
    baked = bake(environment="multitenant", database="mariadb", **LONGEST)
    tool(baked, "ruff", "format", "--no-cache", "--check", ".")
    project = Path(shutil.copytree(baked, tmp_path / "project"))
    assert " passed" in tool(project, "pytest", DATABASE_URL=mariadb.text)


@pytest.mark.parametrize(
    ("answers", "message"),
    REFUSED,
    ids=["-".join(value[:20] for value in answers.values()) for answers, _ in REFUSED],
)
def test_refused_answers(
    cookies: Cookies,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    answers: dict[str, str],
    message: str,
) -> None:
    """Answers that give no working project are refused in one line, and nothing is written."""
    result = cookies.bake(extra_context=answers, template=str(ROOT))
    assert result.exit_code != 0
    assert capfd.readouterr().err == f"error: {message}\n"
    (output,) = (tmp_path / "cookies").iterdir()
    assert list(output.iterdir()) == []


# --- where it is baked from --------------------------------------------------------------------


def test_command_gives_the_same_tree(bake: Callable[..., Path], tmp_path: Path) -> None:
    """`cookiecutter CHECKOUT --no-input` writes what the tests look at."""
    run(tmp_path, sys.executable, "-m", "cookiecutter", ROOT, "--no-input")
    assert tree(tmp_path / "my-project") == tree(bake())


# --- a project at work -------------------------------------------------------------------------


def assert_at_head(database: Database, scaffold: Scaffold, tenant: str | None = None) -> None:
    """Look for the tables, the view and the version in the database, and in the tenant's schema."""
    inspector = sqlalchemy.inspect(database.engine())
    tables = {"alembic_version", "customer", "invoice"}
    if scaffold.environment == "multitenant":
        assert set(inspector.get_table_names()) == {"alembic_version", "tenant"}
        assert database.versions() == {SHARED_HEAD}
        assert database.rows("SELECT name FROM tenant") == ([(tenant,)] if tenant else [])
        if tenant is None:
            return
    assert set(inspector.get_table_names(schema=tenant)) == tables
    assert inspector.get_view_names(schema=tenant) == ["customer_total"]
    prefix = f"{tenant}." if tenant else ""
    assert database.versions(f"{prefix}alembic_version") == {HEAD}
    assert database.rows(f"SELECT * FROM {prefix}customer_total") == []


@runs
@pytest.mark.parametrize(
    "scaffold", [scaffold for scaffold in SCAFFOLDS if scaffold not in BUILT], ids=str
)
def test_project_passes_its_own_tests(scaffold: Scaffold, project: Path, fresh: Database) -> None:
    """`python -m pytest` passes in the project, and leaves the database of DATABASE_URL alone."""
    url = fresh.url_for(scaffold.driver)
    assert " passed" in tool(project, "pytest", DATABASE_URL=url)
    assert fresh.tables() == set()


@pytest.mark.packaging
@pytest.mark.parametrize("scaffold", BUILT, ids=str)
def test_readme_commands(
    scaffold: Scaffold, project: Path, fresh: Database, tmp_path: Path
) -> None:
    """The README's commands, as they stand, bring the database to head and pass every check."""
    # Nothing but this Python and the system's commands: .venv has to bring all else.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python3").symlink_to(Path(sys.executable).resolve())
    env = {
        "PATH": os.pathsep.join([str(bin_folder), os.defpath]),
        "HOME": os.environ["HOME"],
        "DATABASE_URL": fresh.url_for(scaffold.driver),
    }
    tenant = "acme" if scaffold.environment == "multitenant" else None
    readme = (project / "README.md").read_text(encoding="utf-8")
    install, check = re.findall(r"^```sh\n(.+?)^```$", readme, re.MULTILINE | re.DOTALL)
    run(project, "sh", "-ec", install, **env)
    code = "import sys; print(sys.version)"
    assert run(project, ".venv/bin/python", "-c", code) == f"{sys.version}\n"
    assert_at_head(fresh, scaffold, tenant)
    assert " passed" in run(project, "sh", "-ec", check, **env)
    assert_at_head(fresh, scaffold, tenant)


@pytest.mark.packaging
@pytest.mark.parametrize("scaffold", BUILT, ids=str)
def test_wheel_brings_its_migrations(
    scaffold: Scaffold, project: Path, fresh: Database, tmp_path: Path
) -> None:
    """From the wheel alone, an application upgrades an empty database as it starts."""
    home = os.environ["HOME"]
    run(project, sys.executable, "-m", "build", HOME=home)
    (built,) = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".pyc")]
    wheel = shutil.copy(built, tmp_path)
    shutil.rmtree(project)
    venv.EnvBuilder(symlinks=True).create(tmp_path / "venv")
    python, command = (tmp_path / "venv" / "bin" / name for name in ("python", "my-project"))
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(tmp_path, *pip, "install", "-q", wheel, HOME=home)
    (tmp_path / "empty").mkdir()
    in_venv = functools.partial(
        run, tmp_path / "empty", DATABASE_URL=fresh.url_for(scaffold.driver)
    )
    assert re.search(r"^FAILED: .+\bhead\b", in_venv(command, "ready", ok=False))
    start = "start(make_engine(), upgrade=True)"
    if scaffold.environment == "asyncio":
        start = f"import asyncio; asyncio.run({start})"
    imports = "from my_project.database import make_engine; from my_project.startup import start"
    in_venv(python, "-W", "error", "-c", f"{imports}; {start}")
    assert_at_head(fresh, scaffold)
    in_venv(command, "ready")
    if scaffold.environment == "multitenant":
        in_venv(command, "add_tenant", "acme")
        assert_at_head(fresh, scaffold, "acme")


@pytest.fixture
def tenant(scaffold: Scaffold, fresh: Database) -> Iterator[str | None]:
    """The name of a tenant, None where there are none; on MariaDB it is a database, to be dropped."""
    name = f"tenant_{uuid.uuid4().hex[:12]}" if scaffold.environment == "multitenant" else None
    yield name
    if name and scaffold.database == "mariadb":
        fresh.run(f"DROP DATABASE IF EXISTS {name}")


# What a user changes in models.py: the view, the class of its rows, and a table.
CHANGES = {
    "SUM(amount) AS total": "SUM(amount) AS total, COUNT(*) AS invoices",
    "    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))\n": "    total: Mapped[Decimal] = "
    "mapped_column(Numeric(10, 2))\n    invoices: Mapped[int]\n",
    "unique=True)\n": "unique=True)\n    email: Mapped[str | None] = mapped_column(String(100))\n",
}


@runs
@pytest.mark.parametrize("scaffold", AUTOGENERATED, ids=str)
def test_change_of_a_view_and_a_table(
    scaffold: Scaffold,
    project: Path,
    fresh: Database,
    tenant: str | None,
    type_cache: Path,
) -> None:
    """Autogenerate writes one formatted revision that replaces the view and adds the column."""
    env = {"PYTHONPATH": "src", "DATABASE_URL": fresh.url_for(scaffold.driver)}
    alembic = Project(project, {"PATH": os.environ["PATH"], "HOME": str(project), **env}).alembic
    if tenant:
        alembic("--name", "shared", "upgrade", "head")
        add_tenant = "from my_project.cli import main; main()"
        run(project, sys.executable, "-c", add_tenant, "add_tenant", tenant, **env)
    else:
        alembic("upgrade", "head")
    alembic("check")
    models = project / "src/my_project/models.py"
    text = models.read_text(encoding="utf-8")
    for old, new in CHANGES.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    models.write_text(text, encoding="utf-8")
    alembic("check", ok=False)
    alembic("revision", "--autogenerate", "-m", "count the invoices")
    (path,) = set((project / "migrations/versions").glob("*.py")) - {
        project / "migrations/versions" / FIRST
    }
    upgrade, downgrade = path.read_text(encoding="utf-8").split("def downgrade")
    for body, column in ((upgrade, "add_column"), (downgrade, "drop_column")):
        assert re.findall(r"\bop\.(\w+_(?:view|trigger|function))\(", body) == ["replace_view"]
        assert body.count(f"{column}(") == 1
    tool(project, "ruff", "check", "--no-cache", ".")
    tool(project, "ruff", "format", "--no-cache", "--check", ".")
    tool(project, "mypy", "--cache-dir", type_cache)
    alembic("upgrade", "head")
    alembic("check")
    prefix = f"{tenant}." if tenant else ""
    assert fresh.rows(f"SELECT customer_id, total, invoices FROM {prefix}customer_total") == []
    assert fresh.rows(f"SELECT email FROM {prefix}customer") == []
