"""The recipes of Alembic's cookbook: where each works here, and those that no other test runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, Database, Project, render
from sqlalchemy import URL

# The sections of the cookbook, in its order.
RECIPES = [
    "building-uptodate",
    "conditional-migration-elements",
    "connection-sharing",
    "replaceable-objects",
    "cookbook-postgresql-multi-tenancy",
    "cookbook-no-empty-migrations",
    "cookbook-dont-emit-drop-index",
    "don-t-generate-any-drop-table-directives-with-autogenerate",
    "cookbook-custom-sorting-create-table",
    "cookbook-add-if-exists",
    "don-t-emit-create-table-statements-for-views",
    "multiple-environments",
    "print-python-code-to-generate-particular-database-tables",
    "run-alembic-operation-objects-directly-as-in-from-autogenerate",
    "test-current-database-revision-is-at-head-s",
    "asyncio-recipe",
    "connection-sharing-plus-asyncio",
    "custom-commandline",
]


def rows() -> dict[str, tuple[list[str], list[str]]]:
    """Return the files and the tests that docs/cookbook.md names, by the section of the cookbook."""
    lines = (ROOT / "docs" / "cookbook.md").read_text().splitlines()
    found = [line for line in lines if line.startswith("| [") and "](https:" in line]
    table = [line.strip("|").split("|") for line in found]
    return {
        recipe.partition("cookbook.html#")[2].strip(") "): (
            re.findall("`(.+?)`", files),
            re.findall("`(.+?)`", tests),
        )
        for recipe, files, tests in table
    }


def test_every_recipe_has_a_row() -> None:
    """The table has the recipes of the cookbook, in its order."""
    assert list(rows()) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_row_names_exists(recipe: str) -> None:
    """Each row names files of the repository, and test functions or whole files of tests."""
    files, tests = rows()[recipe]
    assert files
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert tests
    for name in tests:
        named = re.fullmatch(r"(tests/test_\w+\.py)(?:::(test_\w+))?", name)
        assert named, name
        path = ROOT / named[1]
        assert path.is_file(), name
        if named[2]:
            assert f"\ndef {named[2]}(" in path.read_text(), name


def test_sections_have_environments_of_their_own(
    project: Project, database: Database, tmp_path: Path
) -> None:
    """With --name a section has its own folder and version table; [DEFAULT] holds for all."""
    shutil.copytree(project.folder / "migrations", project.folder / "second")
    project.revision("b1", "op.create_table('two', sa.Column('id', sa.Integer))").rename(
        project.folder / "second" / "versions" / "b1.py"
    )
    project.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    other = Database("sqlite", URL.create("sqlite", database=str(tmp_path / "other.db")))
    url = database.text.replace("%", "%%")
    project.set("DEFAULT", sqlalchemy__url=url, path_separator="os")
    project.set("one", script_location="%(here)s/migrations")
    project.set("two", script_location="%(here)s/second")
    project.set("three", script_location="%(here)s/second", sqlalchemy__url=other.text)

    project.alembic("--name", "one", "upgrade", "head")
    error = project.alembic("--name", "two", "upgrade", "head", ok=False).stderr
    assert "The database is at revision a1, which this code does not know" in error
    assert database.tables() == {"one", "alembic_version"}

    project.set("two", version_table="second_version")
    project.alembic("--name", "two", "upgrade", "head")
    assert database.tables() == {"one", "two", "alembic_version", "second_version"}
    assert database.versions() == {"a1"}
    assert database.versions("second_version") == {"b1"}

    project.alembic("--name", "three", "upgrade", "head")
    assert other.tables() == {"two", "alembic_version"}


# A user's own front-end to the alembic command, without the line that runs it.
MANAGE = """
from alembic.config import CommandLine, Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory


def at_head(config: Config) -> None:
    script = ScriptDirectory.from_config(config)

    def compare(current, context):
        config.print_stdout("yes" if set(current) == set(script.get_heads()) else "no")
        return []

    with EnvironmentContext(config, script, fn=compare, dont_mutate=True):
        script.run_env()


manage = CommandLine(prog="manage")
manage.register_command(at_head)
"""


def test_a_program_adds_a_command_of_its_own(database: Database, tmp_path: Path) -> None:
    """A command beside Alembic's own gets its database, -x and version table through env.py."""
    project = render("sync", tmp_path / "project")
    project.revision("a1")
    project.revision("b1")
    project.set(version_table="our_version")

    def manage(*args: str) -> str:
        arguments = ["-x", f"url={database.text}", *args]
        return project.python(f"{MANAGE}manage.main({arguments!r})").stdout

    assert manage("at_head") == "no\n"
    assert database.tables() == set()
    manage("upgrade", "a1")
    assert manage("at_head") == "no\n"
    manage("upgrade", "heads")
    assert manage("at_head") == "yes\n"
    assert database.versions("our_version") == {"a1", "b1"}
