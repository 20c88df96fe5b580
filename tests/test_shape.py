"""The shape of an environment: a package that its owner can read, check, edit and prune."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError
from conftest import Database, Project, imported, kind_of, mypy, render

from alembic_templates._catalog import catalog, templates_folder

TEMPLATES = sorted(catalog())
CREATE = "op.create_table('made', sa.Column('id', sa.Integer))"


def change(path: Path, old: str, new: str) -> None:
    """Replace a text of a file that has it once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new), encoding="utf-8")


# Mistakes of an owner: where, what stands there, what is written instead, what mypy says.
MISTAKES = {
    "function-of-another-module": (
        "postgresql_lock.py",
        "locking.refuse_other_session()",
        "locking.refuse_other_sessions()",
        'has no attribute "refuse_other_sessions"',
    ),
    "attribute-of-settings": (
        "migration_lock.py",
        "timeout = run.settings.lock_timeout",
        "timeout = run.settings.lock_timeot",
        '"Settings" has no attribute "lock_timeot"',
    ),
    "argument-across-modules": (
        "connections.py",
        "run(async_engine, work, errors)",
        "run(async_engine, work)",
        'Missing positional argument "connection_errors"',
    ),
    "argument-of-another-module": (
        "metadata.py",
        "rules(settings, tables)",
        "rules(settings)",
        'Missing positional argument "tables"',
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_type_checker_follows_the_modules(
    template: str, tmp_path: Path, type_cache: Path
) -> None:
    """`mypy --strict` finds a slip of the pen in one module about another."""
    project = render(template, tmp_path / "project")
    assert mypy(project.folder, type_cache) == ""
    mistakes = dict(MISTAKES)
    if template == "sync":  # it has no event_loop.py
        del mistakes["argument-across-modules"]
    for name, (file, old, new, _) in mistakes.items():
        assert name
        change(project.folder / "migrations" / file, old, new)
    found = mypy(project.folder, type_cache)
    assert [name for name, (*_, said) in mistakes.items() if said not in found] == [], found


# --- what can be deleted -----------------------------------------------------------------------

# The files that can be deleted together, and a driver that does without them.
DELETABLE = {
    "sqlite_transactions": (["sqlite_transactions"], "postgresql+psycopg"),
    "postgresql_lock": (["postgresql_lock"], "sqlite"),
    "mysql_lock": (["mysql_lock"], "sqlite"),
    "ddl_retries": (["ddl_retries"], "postgresql+psycopg"),
    "event_loop": (["event_loop"], "sqlite"),
    "autogenerate_rules": (["autogenerate_rules"], "sqlite"),
    "import_types": (["import_types"], "sqlite"),
    "concurrent_indexes": (["concurrent_indexes"], "postgresql+psycopg"),
    "render": (["render"], "sqlite"),
    "commands": (["commands", "turns", "render"], "sqlite"),
    "replay": (["replay"], "sqlite"),
    "progress": (["progress"], "sqlite"),
}

# Each of them with the templates that have it.
PRUNED = [
    pytest.param(template, what, id=f"{template}-{what}")
    for template in TEMPLATES
    for what in DELETABLE
    if (templates_folder() / template / f"{what}.py").exists()
]


def pruned(template: str, folder: Path, names: list[str]) -> Project:
    """Render a template without some of its modules."""
    project = render(template, folder)
    for name in names:
        (project.folder / "migrations" / f"{name}.py").unlink()
    return project


@pytest.mark.parametrize(("template", "what"), PRUNED)
def test_what_is_not_needed_can_be_deleted(
    template: str,
    what: str,
    tmp_path: Path,
    type_cache: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Without the file all else runs, and passes the type checker, and no file is edited."""
    names, driver = DELETABLE[what]
    database: Database = request.getfixturevalue(kind_of(driver))
    project = pruned(template, tmp_path / "project", names)
    assert mypy(project.folder, type_cache) == ""
    if template == "asyncio" and driver == "sqlite" and what != "event_loop":
        driver = "sqlite+aiosqlite"
    url = f"url={database.url_for(driver, template)}"
    tenants = []
    if template == "multitenant":
        project.set(tenants="public" if database.kind == "postgresql" else "test")
        tenants = ["-x", "create=true"]
        project.alembic("-x", url, *tenants, "upgrade", "head")  # no revisions yet
    for args in (
        ["revision", "--autogenerate", "-m", "models"],
        ["upgrade", "head"],
        ["check"],
        ["current"],
        ["upgrade", "head", "--sql"],
    ):
        more = tenants if args == ["upgrade", "head"] else []
        project.alembic("-x", url, *more, *args)


# What needs the file, and says so in one sentence.
NEEDS = {
    "sqlite_transactions": ("sqlite", "sqlite_transactions.py is not in this environment"),
    "postgresql_lock": ("postgresql+psycopg", "postgresql_lock.py is not in this environment"),
    "mysql_lock": ("mysql+pymysql", "mysql_lock.py is not in this environment"),
    "ddl_retries": ("postgresql+psycopg", "ddl_retries.py is not in this environment"),
    "event_loop": ("sqlite+aiosqlite", "sqlite+aiosqlite:// has an async driver"),
    "autogenerate_rules": ("sqlite", "autogenerate_rules.py is not in this environment"),
    "import_types": ("sqlite", "import_types.py is not in this environment"),
    "concurrent_indexes": ("sqlite", "concurrent_indexes.py is not in this environment"),
}


@pytest.mark.parametrize("what", NEEDS)
def test_what_needs_a_deleted_file_says_so(
    what: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A command that would need the file ends with one sentence, and has changed nothing."""
    driver, sentence = NEEDS[what]
    database: Database = request.getfixturevalue(kind_of(driver))
    project = pruned("shared", tmp_path / "project", DELETABLE[what][0])
    project.revision("a1", CREATE)
    if what == "ddl_retries":
        project.set(ddl_lock_timeout="1")
    if what in {"autogenerate_rules", "import_types", "concurrent_indexes"}:
        project.set(autogenerate_rules="if_exists" if what == "autogenerate_rules" else what)
    done = project.alembic("-x", f"url={database.url_for(driver)}", "upgrade", "head", ok=False)
    assert sentence in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert database.tables() == set()


def test_render_without_its_file_says_so(tmp_path: Path, sqlite: Database) -> None:
    """`Migrations.render()` names the file that it needs."""
    project = pruned("shared", tmp_path / "project", ["render"])
    with sqlite.engine().connect() as connection:
        migrations = imported(project.folder / "migrations").Migrations(connection)
        with pytest.raises(CommandError, match=r"^render\.py is not in this environment"):
            migrations.render()


# --- one process -------------------------------------------------------------------------------


def test_two_environments_keep_their_settings(
    project: Project, sqlite: Database, tmp_path: Path
) -> None:
    """In one process each environment has the settings of its own ini file."""
    other = render("shared", tmp_path / "other")
    for each, table in ((project, "one"), (other, "two")):
        each.revision(f"{table}1", f"op.create_table('{table}', sa.Column('id', sa.Integer))")
        each.set(version_table=f"version_{table}")
    for _ in range(2):
        for each in (project, other):
            command.upgrade(each.config(sqlite.text), "head")
    assert sqlite.tables() == {"one", "two", "version_one", "version_two"}
    loaded = {str(getattr(module, "__file__", "")) for module in sys.modules.values()}
    for each in (project, other):
        assert str(each.folder / "migrations" / "settings.py") in loaded
    ours = {path.stem for path in (project.folder / "migrations").glob("*.py")}
    places = {
        name: str(getattr(module, "__file__", ""))
        for name, module in sys.modules.items()
        if name in ours
    }
    assert [name for name, place in places.items() if "/migrations/" in place] == []


def test_settings_of_the_application_stay_its_own(project: Project, sqlite: Database) -> None:
    """An application's module `settings` is found by its name, before a run and after it."""
    (project.folder / "settings.py").write_text("OWNER = 'application'\n")
    project.revision("a1", "import settings\nassert settings.OWNER == 'application'\n" + CREATE)
    project.python(
        f"""
        from alembic import command
        from alembic.config import Config
        config = Config("alembic.ini")
        config.set_main_option("sqlalchemy.url", {sqlite.text!r})
        command.upgrade(config, "head")
        import settings
        assert settings.OWNER == "application"
        """
    )


# How an application comes to find its package: the folder on sys.path, as it may be written.
PATHS = {
    "absolute": "str(Path.cwd())",
    "dot": "'.'",
    "relative": "'../project'",
    "link": "str(Path.cwd().parent / 'link')",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("order", ["imported-first", "imported-after-a-run"])
def test_classes_of_the_application_are_those_of_a_run(
    project: Project, sqlite: Database, path: str, order: str
) -> None:
    """`except` on our class, as the application imports it, catches what a run raises."""
    package = project.folder / "myapp"
    package.mkdir()
    (project.folder / "migrations").rename(package / "migrations")
    (package / "__init__.py").touch()
    (project.folder.parent / "link").symlink_to(project.folder)
    project.set(script_location="myapp/migrations", prepend_sys_path=None, lock_timeout="0")
    (package / "migrations" / "versions" / "a1.py").write_text(
        f"revision = 'a1'\ndown_revision = None\nimport sqlalchemy as sa\nfrom alembic import op\n"
        f"def upgrade():\n    {CREATE}\n"
    )
    project.python(
        f"""
        import sys
        from pathlib import Path
        sys.path[:] = [each for each in sys.path if each]
        sys.path.insert(0, {path})
        sys.path.append(str(Path.cwd()))  # for models.py
        from alembic import command
        from alembic.config import Config
        from sqlalchemy import create_engine
        engine = create_engine({sqlite.text!r})
        config = Config("alembic.ini", attributes={{"connection": engine}})
        if {order!r} == "imported-after-a-run":
            command.current(config)
        from myapp.migrations.commands import Migrations
        from myapp.migrations.migration_lock import LockNotAvailable
        with engine.connect() as holder:
            holder.exec_driver_sql("BEGIN IMMEDIATE")
            for upgrade in (
                lambda: command.upgrade(config, "head"),
                lambda: Migrations(engine.connect()).upgrade(),
            ):
                try:
                    upgrade()
                except LockNotAvailable:
                    continue
                raise SystemExit("the lock was not waited for")
        """
    )


def test_a_folder_named_alembic_hides_nothing(tmp_path: Path, sqlite: Database) -> None:
    """In a project whose environment is in `alembic`, `python -m alembic` is Alembic's."""
    project = render("shared", tmp_path / "project")
    (project.folder / "migrations").rename(project.folder / "alembic")
    project.set(script_location="%(here)s/alembic")
    url = f"url={sqlite.text}"
    project.alembic("-x", url, "revision", "--autogenerate", "-m", "models")
    project.alembic("-x", url, "upgrade", "head")
    project.alembic("-x", url, "check")
    assert "alembic_version" in sqlite.tables()


# --- the code ----------------------------------------------------------------------------------

FILES = {
    f"{name}/{path.name}": path
    for name in TEMPLATES
    for path in sorted((templates_folder() / name).glob("*.py"))
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_functions_fit_on_a_screen(path: Path) -> None:
    """No function has more than 40 lines or two functions in it, and none says `nonlocal`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Nonlocal), f"line {node.lineno}"
        if isinstance(node, FUNCTIONS):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 40, node.name
            inner = [each for each in ast.walk(node) if isinstance(each, FUNCTIONS)]
            assert len(inner) <= 2, node.name  # itself and another one


def lines_of(path: Path) -> tuple[int, int]:
    """Return how many lines of a file are code, and how many explain it."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    filled = {number for number, line in enumerate(lines, 1) if line.strip()}
    explain = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and token.line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            explain |= filled & {*range(docstring.lineno, docstring.end_lineno + 1)}
    return len(filled - explain), len(explain)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_code_is_explained(template: str) -> None:
    """Lines of docstrings and comments are at least a third of those of code."""
    counts = [lines_of(path) for name, path in FILES.items() if name.startswith(f"{template}/")]
    code, explain = (sum(each) for each in zip(*counts, strict=True))
    assert explain / code >= 1 / 3, f"{explain} lines explain {code}"
