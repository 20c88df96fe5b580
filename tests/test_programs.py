"""What programs give an environment that the `alembic` command never gives."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
from alembic import command
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from conftest import Database, Project, imported, render
from sqlalchemy import MetaData, make_url

CREATE = "op.create_table('one', sa.Column('id', sa.Integer, primary_key=True))"


def test_a_function_of_the_owners_own_takes_the_lock(project: Project, sqlite: Database) -> None:
    """Whatever the command line was parsed for, an unknown function may migrate."""
    project.revision("a1", CREATE)
    config = project.config(sqlite.url_for("sqlite"))
    config.cmd_opts = Namespace(cmd=(test_a_function_of_the_owners_own_takes_the_lock, [], []))
    script = ScriptDirectory.from_config(config)
    held: list[object] = []

    def work(revision: object, context: object) -> list[object]:
        held.append(sqlite.rows("SELECT 1"))  # the version table has been created
        return []

    with EnvironmentContext(config, script, fn=work):
        script.run_env()
    assert held == [[(1,)]]
    assert sqlite.tables() == {"alembic_version"}


@pytest.mark.parametrize("cmd", ["migrate", None, ("upgrade", [], [])])
def test_arguments_of_another_parser_are_left_alone(
    project: Project, sqlite: Database, cmd: object
) -> None:
    """A program's own arguments may be called as Alembic's are."""
    project.revision("a1", CREATE)
    config = project.config(sqlite.url_for("sqlite"))
    config.cmd_opts = Namespace(cmd=cmd)
    command.upgrade(config, "head")
    assert sqlite.versions() == {"a1"}


def test_a_connection_needs_no_url(project: Project, sqlite: Database) -> None:
    """The URL and the engine options of the ini file are not read for a connection."""
    project.revision("a1", CREATE)
    project.set(sqlalchemy__url="sqlite:///50%.db", sqlalchemy__echo="50%")
    with sqlite.engine().connect() as connection:
        project.upgrade(connection)
    assert sqlite.versions() == {"a1"}


def test_a_url_is_no_connection(project: Project, sqlite: Database) -> None:
    """A URL in the place of the connection is refused as any other object is."""
    project.revision("a1", CREATE)
    url = make_url(sqlite.url_for("sqlite"))
    with pytest.raises(CommandError, match="is of type URL: expected a sqlalchemy Connection"):
        command.upgrade(project.config(connection=url), "head")
    assert sqlite.tables() == set()


def test_models_are_asked_for_in_each_command_of_a_series(
    project: Project, sqlite: Database
) -> None:
    """Neither an empty MetaData nor None is taken, by a database with a version either."""
    project.revision("a1", CREATE)
    with sqlite.engine().connect() as connection:
        series = imported(project.folder / "migrations").Migrations(connection)
        series.upgrade()
        for run in (series.create_all, series.check, series.apply):
            with pytest.raises(CommandError, match="has no tables"):
                run(MetaData())
            with pytest.raises(CommandError, match="There are no models"):
                run(None)


def test_an_error_inside_of_an_optional_file_is_shown(project: Project, sqlite: Database) -> None:
    """A file that cannot be imported is not taken for one that was deleted."""
    path = project.folder / "migrations" / "autogenerate_rules.py"
    path.write_text("import a_package_that_is_not_there\n" + path.read_text())
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        command.upgrade(project.config(sqlite.url_for("sqlite")), "head")


@pytest.mark.parametrize("flag", ["true", "false"])
def test_data_migrations_is_checked_whatever_is_asked_for(
    project: Project, sqlite: Database, flag: str
) -> None:
    """A wrong value of the option is an error, also with -x data."""
    project.set(data_migrations="yes")
    url = f"url={sqlite.url_for('sqlite')}"
    done = project.alembic("-x", url, "-x", f"data={flag}", "upgrade", "head", ok=False)
    assert "Option data_migrations is 'yes': expected true or false." in done.stdout


@pytest.mark.parametrize(
    ("used", "other", "is_same"),
    [
        ("postgresql://h/?dbname=a", "postgresql://h/?dbname=b", False),
        ("postgresql://h/a?port=5433", "postgresql://h/a", False),
        ("postgresql://h/a?port=5432", "postgresql://h/a", True),
        ("sqlite://", "sqlite:///:memory:", True),
        ("sqlite:///a.db", "sqlite:///./a.db", True),
    ],
)
def test_urls_of_one_database(project: Project, used: str, other: str, is_same: bool) -> None:
    """DATABASE_URL is not warned of if it leads to the same database in other words."""
    module = imported(project.folder / "migrations", "database_url")
    assert (module.location(make_url(used)) == module.location(make_url(other))) is is_same


def test_a_folder_under_another_name_is_the_applications_package(
    tmp_path: Path, sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a link, env.py finds the package that the application has imported."""
    project = render("shared", tmp_path / "project")
    folder = project.folder / "migrations"
    (project.folder / "real").symlink_to(folder, target_is_directory=True)
    project.revision("a1", CREATE)
    monkeypatch.syspath_prepend(str(project.folder))
    monkeypatch.delitem(sys.modules, "migrations", raising=False)
    before = set(sys.modules)
    module = imported(folder)
    with sqlite.engine().connect() as connection:
        config = project.config()
        config.set_main_option("script_location", str(project.folder / "real"))
        module.Migrations(connection, config).upgrade()
    mine = {name for name in set(sys.modules) - before if name.endswith(".settings")}
    assert mine == {f"{module.__package__}.settings"}


def test_a_program_catches_the_error_that_it_imports(tmp_path: Path, sqlite: Database) -> None:
    """Whatever came first, and however often Alembic has put the project on the path."""
    project = render("shared", tmp_path)
    project.set(lock_timeout="0")
    project.revision("a1", CREATE)
    with sqlite.engine().connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        said = project.python(
            "from alembic import command\n"
            "from alembic.config import Config\n"
            "config = Config('alembic.ini')\n"
            "command.current(config)\n"
            "from migrations.migration_lock import LockNotAvailable\n"
            "for _ in range(2):\n"
            "    try:\n"
            "        command.upgrade(config, 'head')\n"
            "    except LockNotAvailable:\n"
            "        print('caught')\n",
            DATABASE_URL=sqlite.text,
        )
    assert said.stdout.split().count("caught") == 2


def test_two_folders_of_one_name_on_the_path_stay_apart(
    tmp_path: Path, sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace package of two environments is the package of neither."""
    one, two = (render("shared", tmp_path / name) for name in ("one", "two"))
    (one.folder / "migrations" / "autogenerate_rules.py").unlink()
    both = ModuleType("migrations")
    both.__path__ = [str(each.folder / "migrations") for each in (one, two)]
    monkeypatch.setitem(sys.modules, "migrations", both)
    command.upgrade(one.config(sqlite.url_for("sqlite")), "head")
    assert not [name for name in sys.modules if name.startswith("migrations.")]


def test_a_dialect_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """Also for a fleet, which is configured before it has an engine, and for --sql."""
    for template in ("shared", "multitenant"):
        project = render(template, tmp_path / template)
        if template == "multitenant":
            project.set(tenants="one")
        for more in ([], ["--sql"]):
            url = "url=nosuch://x/{tenant}"
            done = project.alembic("-x", url, "upgrade", "head", *more, ok=False)
            assert done.stdout.startswith("FAILED: ")
            assert "Traceback" not in done.stderr


def test_autocommit_block_in_the_callers_transaction_without_a_lock(
    project: Project, sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dialect for which there is no lock refuses it in the same sentence."""
    project.revision("a1", "with op.get_context().autocommit_block():\n    pass")
    locks = imported(project.folder / "migrations", "migration_lock").LOCKS
    monkeypatch.delitem(locks, "sqlite")
    with (
        sqlite.engine().connect() as connection,
        connection.begin(),
        pytest.raises(CommandError, match="uses autocommit_block"),
    ):
        project.upgrade(connection)
