"""The scaffold: a whole project around each environment, which passes its own checks and builds."""

from __future__ import annotations

import configparser
import functools
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import uuid
import venv
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml
from conftest import ROOT, Database, Project, run, tree
from dotenv import dotenv_values
from mako.template import Template
from processes import kept_environment, run_python
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
LONGEST = {"project_slug": "s" * 70, "package_name": "p" * 36}

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
        {"package_name": "p" * 37},
        f"package_name is '{'p' * 37}', 37 characters long: expected 36 at most.",
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

SCAFFOLD = "{{cookiecutter.project_slug}}"

HEAD, SHARED_HEAD = "7d1c4a52e0b9", "2b90c6e1f4a8"
FIRST, SHARED_FIRST = f"{HEAD}_create_the_tables.py", f"{SHARED_HEAD}_create_the_tenants.py"
PACKAGE = ("__init__", "cli", "database", "models", "replaceable", "startup")
TESTS = ("conftest", "test_migrations", "test_models", "test_startup")

# A revision that blocks writes while it builds an index.
UNSAFE = f"""from alembic import op

revision = "b1"
down_revision = "{HEAD}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.create_index("customer_name", "customer", ["name"])
"""

# A scaffolded project needs it.
runs = pytest.mark.since("alembic", "1.17.1")


def tool(folder: Path, *args: str | Path, **env: str) -> str:
    """Run a module of the tests' own Python in a project, whose package it finds in src/."""
    return run(folder, sys.executable, "-m", *args, PYTHONPATH="src", **env)


def in_this_python(command: str) -> list[str]:
    """Return the arguments of `alembic-templates`, as the tests' own Python runs it."""
    name, *args = command.split()
    assert name.rpartition("/")[2] == "alembic-templates"
    return ["alembic_templates", *args]


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
        f"src/my_project/{folder}/{path.name}": path.read_bytes()
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
        *(".dockerignore", ".env.example", ".github/workflows/tests.yml", ".gitignore"),
        *(".pre-commit-config.yaml", "Dockerfile", "README.md", "alembic.ini", "pyproject.toml"),
        "src/my_project/py.typed",
        *(f"src/my_project/{name}.py" for name in PACKAGE),
        *(f"tests/{name}.py" for name in TESTS),
        f"src/my_project/migrations/versions/{FIRST}",
    }
    if scaffold.database != "sqlite":
        expected |= {"compose.yaml"}
    if scaffold.environment == "multitenant":
        expected |= {"tests/test_migrations_shared.py"}
        expected |= {f"src/my_project/migrations_shared/versions/{SHARED_FIRST}"}
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
            prose = re.sub("^```python\n.+?^```$", "code", text, flags=re.MULTILINE | re.DOTALL)
            assert "\n\n\n" not in prose, name


def test_ini_is_the_one_of_alembic_init(scaffold: Scaffold, baked: Path) -> None:
    """alembic.ini is what `alembic init` writes, but for the lines that tell of the project."""
    template = ROOT / "templates" / scaffold.environment / "alembic.ini.mako"
    mako = Template(template.read_text(encoding="utf-8"))
    lines = mako.render(script_location="my_project:migrations").splitlines()
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
    assert ini["alembic"]["script_location"] == "my_project:migrations"
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


@runs
@pytest.mark.parametrize(
    "scaffold",
    [each for each in SCAFFOLDS if str(each) in {"shared-sqlite", "multitenant-postgresql"}],
    ids=str,
)
def test_type_checker_knows_the_commands_of_the_environment(
    project: Path, type_cache: Path
) -> None:
    """A misspelt method of `Migrations` is an error in the application, as in any other class."""
    path = project / "src/my_project/startup.py"
    path.write_text(path.read_text(encoding="utf-8").replace(".upgrade()", ".upgrad()"))
    mypy = (sys.executable, "-m", "mypy", "--cache-dir", type_cache)
    found = run(project, *mypy, ok=False, PYTHONPATH="src")
    assert '"Migrations" has no attribute "upgrad"; maybe "upgrade"?' in found
    assert "Found 1 error in 1 file" in found


@pytest.mark.parametrize("version", CHOICES["python_version"])
def test_oldest_python_is_the_one_asked_for(bake: Callable[..., Path], version: str) -> None:
    """The files agree on the oldest Python, and pass ruff, which goes by it."""
    baked = bake(environment="multitenant", database="postgresql", python_version=version)
    assert toml(baked / "pyproject.toml")["project"]["requires-python"] == f">={version}"
    readme = (baked / "README.md").read_text(encoding="utf-8")
    assert f"for Python {version} or newer" in readme
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
    assert set(found) == expected | ({scaffold.requirement, "python-dotenv"} - {None})
    assert len(set(found)) == len(found)
    assert "alembic-templates" not in (baked / "pyproject.toml").read_text(encoding="utf-8")
    assert project["requires-python"] == f">={CHOICES['python_version'][0]}"


def test_files_agree_on_the_database(scaffold: Scaffold, baked: Path) -> None:
    """Where a database URL stands, its driver, server and password are those of the services."""
    url = make_url(str(dotenv_values(baked / ".env.example")["DATABASE_URL"]))
    assert url.drivername == scaffold.driver
    readme = (baked / "README.md").read_text(encoding="utf-8")
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
    service = in_yaml(baked / "compose.yaml")["services"]["database"]
    on_ci = job["services"]["database"]
    assert service["image"] == on_ci["image"]
    assert service["image"].partition(":")[0] == {"postgresql": "postgres"}.get(
        scaffold.database, scaffold.database
    )
    assert service["ports"] == [f"{url.host}:${{DATABASE_PORT:-{url.port}}}:{url.port}"]
    assert on_ci["ports"] == [f"{url.port}:{url.port}"]
    settings = service["environment"]
    name, password = {
        "postgresql": ("POSTGRES_DB", "POSTGRES_PASSWORD"),
        "mariadb": ("MARIADB_DATABASE", "MARIADB_ROOT_PASSWORD"),
    }[scaffold.database]
    assert settings == {name: url.database, password: url.password}
    assert on_ci["env"] == {password: url.password}


@pytest.mark.parametrize(
    "scaffold",
    [each for each in SCAFFOLDS if str(each) in {"sync-postgresql", "asyncio-mariadb"}],
    ids=str,
)
def test_port_of_the_server_is_one_variable(project: Path) -> None:
    """DATABASE_PORT moves the server of compose.yaml and the URL, in .env and in the shell."""
    example = (project / ".env.example").read_text(encoding="utf-8")
    written = re.sub("DATABASE_PORT=.*", "DATABASE_PORT=4000", example)
    (project / ".env").write_text(written, encoding="utf-8")
    code = "from my_project.database import make_engine; print(make_engine().url.port)"
    assert run(project, sys.executable, "-c", code, PYTHONPATH="src") == "4000\n"
    printed = run(project, sys.executable, "-c", code, PYTHONPATH="src", DATABASE_PORT="4001")
    assert printed == "4001\n"


def switched_on(path: Path) -> dict[str, Any]:
    """Take the # away from what names alembic-templates in a YAML file; return what it holds then."""
    text = path.read_text(encoding="utf-8")
    found = re.sub(
        r"^( +)# (?=- (?:id|run): alembic-templates|  )", r"\1", text, flags=re.MULTILINE
    )
    path.write_text(found, encoding="utf-8")
    held: dict[str, Any] = yaml.safe_load(found)
    return held


@pytest.mark.parametrize(
    "scaffold", [each for each in SCAFFOLDS if each.database == "postgresql"], ids=str
)
def test_lint_finds_an_unsafe_revision(project: Path) -> None:
    """The commands of the hook and of CI's step pass as the project comes, and find an index."""
    (hook,) = switched_on(project / ".pre-commit-config.yaml")["repos"][0]["hooks"][2:]
    steps = switched_on(project / ".github/workflows/tests.yml")["jobs"]["tests"]["steps"]
    (step,) = [each["run"] for each in steps if "alembic-templates" in each.get("run", "")]
    tool(project, *in_this_python(hook["entry"]))
    tool(project, *in_this_python(step))
    name = "src/my_project/migrations/versions/b1_index.py"
    assert re.search(hook["files"], name)
    (project / name).write_text(UNSAFE, encoding="utf-8")
    rule = "require-concurrent-index-creation"
    found = run(
        project, sys.executable, "-m", *in_this_python(hook["entry"]), ok=False, PYTHONPATH="src"
    )
    assert found.startswith(f"{name}:9: {rule}: ")
    found = run(project, sys.executable, "-m", *in_this_python(step), ok=False, PYTHONPATH="src")
    assert found.startswith(f"::error file={name},line=9,title={rule}::")


@pytest.mark.parametrize(
    "scaffold", [each for each in SCAFFOLDS if each.database != "postgresql"], ids=str
)
def test_lint_is_for_postgresql(baked: Path) -> None:
    """A project on another database does not tell of a command that has nothing to find there."""
    named = [name for name, text in contents(baked).items() if b"alembic-templates" in text]
    assert named == []


def shell_lines(readme: Path) -> list[str]:
    """Return the lines of all blocks of shell in a README, those with a prompt too."""
    text = readme.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|console)\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_lines_of_shell_are_short(scaffold: Scaffold, bake: Callable[..., Path]) -> None:
    """No line of shell in the README has more than 100 characters, with long names too."""
    names = {"project_slug": "s" * 36, "package_name": "p" * 36}
    lines = shell_lines(bake(**scaffold.answers, **names) / "README.md")
    assert len(lines) > 10
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("license", CHOICES["license"])
def test_license_is_the_one_asked_for(bake: Callable[..., Path], license: str) -> None:
    """The file LICENSE and pyproject.toml name the same licence, and without one there is none."""
    baked = bake(license=license)
    metadata = toml(baked / "pyproject.toml")["project"]
    if license == "none":
        assert "license" not in metadata
        assert not (baked / "LICENSE").exists()
        return
    assert (metadata["license"], metadata["license-files"]) == (license, ["LICENSE"])
    text = (baked / "LICENSE").read_text(encoding="utf-8")
    title, holder = text.splitlines()[:3:2]
    assert title.split()[0] == license.partition("-")[0]
    assert re.fullmatch(r"Copyright \(c\) 20\d\d the authors of My Project", holder)
    assert text.endswith("\n") and not text.endswith("\n\n")


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slug", "package"), NAMES, ids=[names[1] for names in NAMES])
def test_names_are_derived(bake: Callable[..., Path], name: str, slug: str, package: str) -> None:
    """From the name of a project come those of its folder, distribution, package and database."""
    baked = bake(project_name=name, environment="sync", database="postgresql")
    assert baked.name == slug
    metadata = toml(baked / "pyproject.toml")["project"]
    description = f"{name}, an application with a PostgreSQL database"
    assert (metadata["name"], metadata["description"]) == (slug, description)
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
    assert result.exit_code == -1  # a hook has ended it
    assert capfd.readouterr().err == f"error: {message}\n"
    (output,) = (tmp_path / "cookies").iterdir()
    assert list(output.iterdir()) == []


# --- where it is baked from --------------------------------------------------------------------


def test_command_gives_the_same_tree(bake: Callable[..., Path], tmp_path: Path) -> None:
    """`cookiecutter CHECKOUT --no-input` writes what the tests look at."""
    run(tmp_path, sys.executable, "-m", "cookiecutter", ROOT, "--no-input")
    assert tree(tmp_path / "my-project") == tree(bake())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what cookiecutter takes of the checkout, in which a test may write."""
    copy = tmp_path / "checkout"
    for name in ("hooks", "templates", SCAFFOLD):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "cookiecutter.json", copy)
    return copy


# What cookiecutter is given, as one types it in the checkout's own folder.
SOURCES = {
    "here": ". --output-dir ../made",
    "beside": "../checkout --output-dir ../made",
    "made-here": ".",
    "zip": "../checkout.zip --output-dir ../made",
    "git": "git+file://$PWD --output-dir ../made",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_environment_is_found_from_each_source(
    bake: Callable[..., Path], checkout: Path, source: str
) -> None:
    """A relative path, an archive and a URL of git each give the same project."""
    shutil.make_archive(str(checkout), "zip", checkout.parent, checkout.name)
    git = ("git", "-c", "user.name=me", "-c", "user.email=me@localhost")
    for args in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        run(checkout, *git, *args)
    folder = checkout if source == "." else checkout.parent / "made"
    run(checkout, "sh", "-ec", f"{sys.executable} -m cookiecutter --no-input {source}")
    assert tree(folder / "my-project") == tree(bake())


@pytest.mark.parametrize(("shell", "output"), [("/", "made"), ("../other", ".")])
def test_source_that_is_not_found_is_one_sentence(checkout: Path, shell: str, output: str) -> None:
    """A program's relative path is refused if no folder or two are meant, and nothing is left."""
    shutil.copytree(checkout, checkout.with_name("other"))
    # The variable has the folder of a shell, from which a program changed to another.
    command = f"env PWD={os.path.normpath(checkout / shell)} {sys.executable} -m cookiecutter . --no-input"
    assert run(checkout, "sh", "-c", f"{command} -o {output} 2>&1 >/dev/null", ok=False) == (
        "error: The folder templates of . was not found: give cookiecutter the absolute path of the "
        "checkout.\n"
    )
    assert list(checkout.parent.rglob("my-project")) == []


def test_files_that_exist_are_kept_and_named(checkout: Path) -> None:
    """Once more over a project, an edited file stays, and one that was deleted comes back."""
    command = f"{sys.executable} -m cookiecutter . --no-input --overwrite-if-exists 2>&1"
    assert run(checkout, "sh", "-ec", command) == ""
    migrations = checkout / "my-project" / "src" / "my_project" / "migrations"
    expected = contents(migrations)
    (migrations / "env.py").write_text("edited\n", encoding="utf-8")
    (migrations / "commands.py").unlink()
    assert run(checkout, "sh", "-ec", command) == (
        "src/my_project/migrations: kept env.py, which the template has otherwise. For those of the "
        "template, delete them and run this again.\n"
    )
    assert contents(migrations) == {**expected, "env.py": b"edited\n"}


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


# The project's own command, where only the tests' Python is installed.
COMMAND = "from my_project.cli import main; main()"


@pytest.fixture
def command(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the project's command in a folder; the test fails if it ends with another code.

    Without a code, the caller looks at the one that it ends with.
    """

    def command(
        *args: str, code: int | None = 0, folder: Path = project, **env: str
    ) -> subprocess.CompletedProcess[str]:
        own = {**kept_environment(), "PYTHONPATH": str(project / "src"), **env}
        done = run_python(["-c", COMMAND, *args], folder, own)
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done

    return command


SQLITE = [each for each in SCAFFOLDS if str(each) in {"shared-sqlite", "asyncio-sqlite"}]


@runs
@pytest.mark.parametrize("scaffold", SQLITE, ids=str)
def test_env_file_is_read(
    scaffold: Scaffold, project: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    """The application, its command and `alembic` read .env from any folder; the shell's URL wins."""
    named, other = (f"{scaffold.driver}:///{tmp_path / name}.db" for name in ("named", "other"))
    (project / ".env").write_text(f"DATABASE_URL={named}\n", encoding="utf-8")
    (tmp_path / ".env").write_text("DATABASE_URL=nonsense\n", encoding="utf-8")
    alembic = (sys.executable, "-m", "alembic", "-c", project / "alembic.ini")
    run(tmp_path, *alembic, "upgrade", "head", PYTHONPATH=str(project / "src"))
    command("ready", folder=tmp_path)
    make = "from my_project.database import make_engine; print(make_engine().url)"
    source = str(project / "src")
    assert run(tmp_path, sys.executable, "-c", make, PYTHONPATH=source) == f"{named}\n"
    command("downgrade", "base", folder=tmp_path)
    command("upgrade", "head", folder=tmp_path, DATABASE_URL=other)
    command("ready", folder=tmp_path, DATABASE_URL=other)
    assert command("ready", code=1).stdout == ""


@runs
@pytest.mark.parametrize("scaffold", [SQLITE[0], SCAFFOLDS[-2]], ids=str)
def test_missing_url_is_one_sentence(
    scaffold: Scaffold, project: Path, command: Callable[..., Any]
) -> None:
    """Without a database URL, the error says to copy .env.example, and there is no traceback."""
    sentence = "No database URL: copy .env.example to .env, or set DATABASE_URL."
    verbs = [["upgrade", "head"], ["current"], ["ready"]]
    if scaffold.environment == "multitenant":
        verbs += [["add-tenant", "acme"]]
    for verb in verbs:
        done = command(*verb, code=1)
        assert (done.stdout, done.stderr) == ("", f"error: {sentence}\n")
    code = (
        "from my_project.database import make_engine\n"
        "try:\n    make_engine()\nexcept Exception as error:\n    print(error)"
    )
    assert run(project, sys.executable, "-c", code, PYTHONPATH="src") == f"{sentence}\n"


@runs
@pytest.mark.parametrize("scaffold", SQLITE[:1], ids=str)
def test_command_takes_no_other_configuration(command: Callable[..., Any], project: Path) -> None:
    """Without a command, or with --config, the project's command ends as one that is misused."""
    assert "expected a command" in command(code=2).stderr
    done = command("-c", "alembic.ini", "current", code=2)
    assert "--config goes with the command alembic alone" in done.stderr
    (project / ".env").write_text("DATABASE_URL=sqlite:///test.db\n", encoding="utf-8")
    failed = command("upgrade", "nowhere", code=1).stderr.splitlines()
    assert failed[-1] == "error: Can't locate revision identified by 'nowhere'"
    assert "Traceback" in command("--raiseerr", "upgrade", "nowhere", code=1).stderr
    assert "Running upgrade  -> 7d1c4a52e0b9" in command("upgrade", "head").stderr


@runs
@pytest.mark.parametrize("scaffold", SQLITE, ids=str)
def test_command_says_where_it_runs(
    scaffold: Scaffold, command: Callable[..., Any], tmp_path: Path
) -> None:
    """The project's commands name their database, and `ready` does not make one that is not there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_there = functools.partial(
        command, folder=elsewhere, DATABASE_URL=f"{scaffold.driver}:///app.db"
    )
    refused = run_there("ready", code=1)
    place = str((elsewhere / "app.db").resolve())
    assert refused.stderr == (
        f"error: The database {place!r} does not exist: run upgrade head first, "
        "or correct the path in DATABASE_URL.\n"
    )
    assert list(elsewhere.iterdir()) == []
    line = "INFO  [alembic.env] Running on database 'app.db'."
    for verb in (["upgrade", "head"], ["current"], ["ready"]):
        assert run_there(*verb).stderr.splitlines().count(line) == 1
    assert run_there("history").stderr == ""


FLEETS = [each for each in SCAFFOLDS if each.environment == "multitenant"]


@runs
@pytest.mark.parametrize("scaffold", FLEETS, ids=str)
def test_failed_tenant_has_no_traceback(
    scaffold: Scaffold, fresh: Database, tenant: str, project: Path, command: Callable[..., Any]
) -> None:
    """A fleet's error in the project's command has a traceback only with --raiseerr."""
    run_on = functools.partial(command, DATABASE_URL=fresh.url_for(scaffold.driver))
    run_on("--name", "shared", "upgrade", "head")
    run_on("add-tenant", tenant)
    revision = project / "src" / "my_project" / "migrations" / "versions" / "0bad_bad.py"
    revision.write_text(
        f'revision = "0bad"\ndown_revision = "{HEAD}"\n\n\n'
        'def upgrade() -> None:\n    raise ValueError("bad row")\n',
        encoding="utf-8",
    )
    failed = run_on("upgrade", "head", code=1).stderr
    assert "ValueError: bad row (revision 0bad, line 6)" in failed
    assert "Running on database" in failed
    assert "Traceback" not in failed
    assert "Traceback" in run_on("--raiseerr", "upgrade", "head", code=1).stderr


@runs
@pytest.mark.parametrize("scaffold", FLEETS, ids=str)
def test_tenant_is_added_once(
    scaffold: Scaffold, fresh: Database, tenant: str, command: Callable[..., Any]
) -> None:
    """`add-tenant` twice, also at the same time, makes one tenant and says so in one sentence."""
    url = fresh.url_for(scaffold.driver)
    done = command("add-tenant", tenant, code=1, DATABASE_URL=url)
    said = "error: What all tenants share is not at head: run --name shared upgrade head first."
    assert done.stderr.splitlines()[1:] == [said]
    command("--name", "shared", "upgrade", "head", DATABASE_URL=url)
    add = functools.partial(command, "add-tenant", tenant, code=None, DATABASE_URL=url)
    with ThreadPoolExecutor() as pool:
        added, refused = sorted(
            pool.map(lambda _: add(), range(2)), key=lambda done: done.returncode
        )
    assert (added.returncode, added.stdout) == (0, f"Added tenant {tenant}.\n")
    for done in (refused, add()):
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[1:] == [f"error: There is a tenant {tenant!r} already."]
    assert_at_head(fresh, scaffold, tenant)
    command("ready", DATABASE_URL=url)


def blocks(readme: Path, language: str) -> list[str]:
    """Return the blocks of a language in a README, in their order."""
    text = readme.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)


SERVE = """
import asyncio
import web

async def serve():
    async with web.app.router.lifespan_context(web.app):
        print("served")

asyncio.run(serve())
"""


@pytest.mark.packaging
@pytest.mark.parametrize("scaffold", BUILT, ids=str)
def test_readme_commands(
    scaffold: Scaffold, project: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The README's blocks, as they stand and in order, lead from nothing to a change of the models.

    A person does two things between them, which the README tells: write an own server's URL into
    .env, and edit the models.
    """
    # Nothing but this Python and the system's commands: .venv has to bring all else.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python3").symlink_to(Path(sys.executable).resolve())
    env = {
        "PATH": os.pathsep.join([str(bin_folder), os.defpath]),
        "HOME": os.environ["HOME"],
        "PRE_COMMIT_HOME": str(tmp_path / "pre-commit"),
    }
    shell = functools.partial(run, project, "sh", "-ec", **env)
    install, create, change, check, git = blocks(project / "README.md", "sh")
    shell(install)
    if scaffold.database == "sqlite":
        fresh = Database("sqlite", make_url(f"sqlite:///{project}/my_project.db"))
    else:
        fresh = request.getfixturevalue(scaffold.database)
        url = f"DATABASE_URL={fresh.url_for(scaffold.driver)}"
        text = (project / ".env").read_text(encoding="utf-8")
        text = re.sub("^DATABASE_URL=.*$", lambda _: url, text, flags=re.MULTILINE)
        (project / ".env").write_text(text, encoding="utf-8")
    shell(create)
    tenant = "acme" if scaffold.environment == "multitenant" else None
    assert_at_head(fresh, scaffold, tenant)
    edit(project / "src/my_project/models.py")
    shell(change)
    prefix = f"{tenant}." if tenant else ""
    assert fresh.rows(f"SELECT email FROM {prefix}customer") == []
    assert " passed" in shell(check)
    shell(git)
    assert ".env\n" not in shell("git diff --cached --name-only")
    (project / "late.py").write_text("x = {  'a':1 }\n")
    commit = "git -c user.name=me -c user.email=me@localhost commit --quiet --message all 2>&1"
    assert "files were modified by this hook" in shell(f"git add late.py; {commit}", ok=False)
    shell(f"git add late.py; {commit}")
    assert (project / "late.py").read_text() == 'x = {"a": 1}\n'
    if str(scaffold) == "asyncio-postgresql":
        switched_on(project / ".pre-commit-config.yaml")
        install, lint = blocks(project / "README.md", "console")[-2].splitlines()
        shell(install.removeprefix("$ ").replace("PATH_OF_CHECKOUT", str(ROOT)))
        assert shell(lint.removeprefix("$ ")) == "no findings in 2 revisions\n"
        head = shell(".venv/bin/my-project heads").split()[0]
        unsafe = project / "src/my_project/migrations/versions/b1_index.py"
        unsafe.write_text(UNSAFE.replace(HEAD, head), encoding="utf-8")
        assert "require-concurrent-index-creation" in shell(f"git add .; {commit}", ok=False)
        unsafe.unlink()
    if str(scaffold) in {"shared-sqlite", "asyncio-postgresql"}:
        (web,) = blocks(project / "README.md", "python")
        (project / "web.py").write_text(web, encoding="utf-8")
        shell(".venv/bin/ruff check web.py; .venv/bin/ruff format --check web.py")
        shell(".venv/bin/pip install fastapi; .venv/bin/mypy web.py")
        (project / "serve.py").write_text(SERVE, encoding="utf-8")
        assert shell(".venv/bin/python serve.py") == "served\n"
        shell(".venv/bin/my-project downgrade base")
        assert shell(".venv/bin/python serve.py", ok=False) == ""


@pytest.mark.packaging
def test_distributions_hold_no_secret(bake: Callable[..., Path], tmp_path: Path) -> None:
    """`python -m build` leaves .env out of the sdist and the wheel."""
    project = Path(shutil.copytree(bake(license="MIT"), tmp_path / "project"))
    (project / ".env").write_text("DATABASE_URL=secret\n", encoding="utf-8")
    run(project, sys.executable, "-m", "build", HOME=os.environ["HOME"])
    (wheel,), (sdist,) = (list((project / "dist").glob(f"*{end}")) for end in (".whl", ".tar.gz"))
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as sources:
        names = [*archive.namelist(), *sources.getnames()]
    assert not [name for name in names if name.endswith((".env", ".pyc"))]
    assert len([name for name in names if name.endswith("LICENSE")]) == 2


def build_context(project: Path, folder: Path) -> Path:
    """Copy what .dockerignore lets into the image, and return the folder."""
    lines = (project / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    folder.mkdir()
    for name in (line[1:] for line in lines if line.startswith("!")):
        source = project / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, folder)
    return folder


# Found in the working directory, and not the project's.
STRAY = {
    ".env": "DATABASE_URL=nonsense\n",
    "alembic.ini": "[alembic]\nscript_location = nowhere\n",
    "pyproject.toml": '[tool.alembic]\nversion_table = "stray"\n',
}


@pytest.mark.packaging
@pytest.mark.parametrize("scaffold", BUILT, ids=str)
def test_wheel_brings_its_migrations(
    scaffold: Scaffold, project: Path, fresh: Database, tmp_path: Path
) -> None:
    """What the Dockerfile installs migrates from any folder, as a step and as an application."""
    (project / ".env").write_text("DATABASE_URL=nonsense\n", encoding="utf-8")
    context, wheels = build_context(project, tmp_path / "context"), tmp_path / "wheels"
    assert not list(context.rglob(".env"))
    venv.EnvBuilder(symlinks=True, with_pip=True).create(tmp_path / "venv")
    bin_folder = tmp_path / "venv" / "bin"
    path = os.pathsep.join([str(bin_folder), os.defpath])
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    steps = re.findall("^RUN (.*/wheels.*)$", dockerfile, re.MULTILINE)
    assert len(steps) == 2
    for step in steps:
        line = step.replace("/wheels", str(wheels))
        run(context, "sh", "-ec", line, PATH=path, HOME=os.environ["HOME"])
    assert 'ENTRYPOINT ["my-project"]' in dockerfile
    for folder in (project, context):
        shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    for name, text in STRAY.items():
        (tmp_path / "elsewhere" / name).write_text(text, encoding="utf-8")
    url = fresh.url_for(scaffold.driver)
    in_venv = functools.partial(run, tmp_path / "elsewhere", PATH=path, DATABASE_URL=url)
    in_venv("my-project", "ready", ok=False)
    start = "start(make_engine(), upgrade=True)"
    if scaffold.environment == "asyncio":
        start = f"import asyncio; asyncio.run({start})"
    imports = "from my_project.database import make_engine; from my_project.startup import start"
    in_venv("python", "-W", "error", "-c", f"{imports}; {start}")
    assert_at_head(fresh, scaffold)
    in_venv("my-project", "ready")
    if scaffold.environment == "multitenant":
        in_venv("my-project", "add-tenant", "acme")
        assert_at_head(fresh, scaffold, "acme")
        in_venv("my-project", "-x", "tenant=all", "downgrade", "base")
        in_venv("my-project", "ready", ok=False)
        in_venv("my-project", "upgrade", "head")
        assert_at_head(fresh, scaffold, "acme")
    else:
        in_venv("my-project", "downgrade", "base")
        in_venv("my-project", "ready", ok=False)
        in_venv("my-project", "upgrade", "head")
        assert_at_head(fresh, scaffold)
    in_venv("python", "-c", "import importlib.util as i; assert not i.find_spec('ruff')")
    in_venv("my-project", "revision", "--message", "without the dev extras")


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


def edit(models: Path) -> None:
    """Change models.py as a user would."""
    text = models.read_text(encoding="utf-8")
    for old, new in CHANGES.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    models.write_text(text, encoding="utf-8")


@runs
@pytest.mark.parametrize("scaffold", AUTOGENERATED, ids=str)
def test_change_of_a_view_and_a_table(
    scaffold: Scaffold,
    project: Path,
    fresh: Database,
    tenant: str | None,
    type_cache: Path,
) -> None:
    """Autogenerate writes one revision that replaces the view and adds the column."""
    env = {"PYTHONPATH": "src", "DATABASE_URL": fresh.url_for(scaffold.driver)}
    alembic = Project(project, {**kept_environment(), "HOME": str(project), **env}).alembic
    if tenant:
        alembic("--name", "shared", "upgrade", "head")
        run(project, sys.executable, "-c", COMMAND, "add-tenant", tenant, **env)
    else:
        alembic("upgrade", "head")
    alembic("check")
    edit(project / "src/my_project/models.py")
    alembic("check", ok=False)
    alembic("revision", "--autogenerate", "-m", "count the invoices")
    versions = project / "src/my_project/migrations/versions"
    (path,) = set(versions.glob("*.py")) - {versions / FIRST}
    upgrade, downgrade = path.read_text(encoding="utf-8").split("def downgrade")
    for body, column in ((upgrade, "add_column"), (downgrade, "drop_column")):
        assert re.findall(r"\bop\.(\w+_(?:view|trigger|function))\(", body) == ["replace_view"]
        assert body.count(f"{column}(") == 1
    tool(project, "ruff", "check", "--no-cache", "--fix", ".")
    tool(project, "ruff", "format", "--no-cache", ".")
    tool(project, "mypy", "--cache-dir", type_cache)
    alembic("upgrade", "head")
    alembic("check")
    prefix = f"{tenant}." if tenant else ""
    assert fresh.rows(f"SELECT customer_id, total, invoices FROM {prefix}customer_total") == []
    assert fresh.rows(f"SELECT email FROM {prefix}customer") == []
