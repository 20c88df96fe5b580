"""The page "Copy one piece": each block fixes Alembic's own env.py, into which it is pasted."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Database, Project, run
from processes import kept_environment
from sqlalchemy import text

PIECES = ROOT / "docs" / "code" / "pieces"
PAGE = (ROOT / "docs" / "copy-one-piece.md").read_text(encoding="utf-8")
RUN_ONLINE = r"def run_migrations_online\(\) -> None:\n(?:(?: .*)?\n)+"
FILE_CONFIG = r"if config.config_file_name is not None:\n    fileConfig\(.+\)\n"
# Each piece with what it takes the place of; percent.py and no_empty_revisions.py are added.
IN_PLACE_OF = {
    "logging_left_alone": FILE_CONFIG,
    "no_empty_revisions": r"(?=def run_migrations_offline)",
    "percent": r"(?<=config = context.config\n)",
    "postgresql_lock": RUN_ONLINE,
    "running_event_loop": RUN_ONLINE,
    "sqlite_transactions": RUN_ONLINE,
    "tenant_search_path": RUN_ONLINE,
}

NO_MODELS = "from sqlalchemy import MetaData\n\ntarget_metadata = MetaData()"
TWO_STATEMENTS = "op.create_table('one', sa.Column('id', sa.Integer))\nop.execute('no SQL')"


def stock(folder: Path, template: str = "generic") -> Project:
    """Make a project with an env.py of Alembic's own."""
    folder.mkdir()
    run(folder, sys.executable, "-m", "alembic", "init", "-t", template, "migrations")
    own = {"PATH": "", "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return Project(folder, {**kept_environment(), **own})


def paste(project: Project, piece: str) -> None:
    """Paste a piece into env.py, as its page says."""
    path = project.folder / "migrations" / "env.py"
    code = (PIECES / f"{piece}.py").read_text(encoding="utf-8")
    source, times = re.subn(IN_PLACE_OF[piece], lambda _: f"{code}\n\n", path.read_text(), count=1)
    assert times == 1
    path.write_text(source)


@pytest.fixture
def pasted(tmp_path: Path) -> Callable[[str], Project]:
    """A function that makes a stock project with a piece in its env.py."""

    def made(piece: str) -> Project:
        template = "async" if piece == "running_event_loop" else "generic"
        project = stock(tmp_path / "project", template)
        paste(project, piece)
        return project

    return made


@pytest.mark.parametrize("piece", IN_PLACE_OF)
def test_a_piece_is_short_and_has_its_limits_told(piece: str) -> None:
    """A piece has at most 25 lines, is on the page once, and what it does not do stands below."""
    assert len((PIECES / f"{piece}.py").read_text(encoding="utf-8").splitlines()) <= 25
    sections = [part for part in PAGE.split("\n## ") if f"code/pieces/{piece}.py" in part]
    assert len(sections) == 1
    assert "What it does not do:" in sections[0]


def test_all_pieces_are_tested() -> None:
    """There is a test for each piece of the folder."""
    assert {path.stem for path in PIECES.glob("*.py")} == set(IN_PLACE_OF)


def test_lock_makes_a_second_process_wait(
    pasted: Callable[[str], Project], postgresql: Database
) -> None:
    """While another session has the lock nothing is migrated; when it ends, the work is done."""
    project = pasted("postgresql_lock")
    project.set(sqlalchemy__url=postgresql.text.replace("%", "%%"))
    project.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    with postgresql.engine().connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(72616)"))
        waiter = project.start("upgrade", "head")
        asked = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory_lock(72616)'"
        while not postgresql.rows(asked):
            assert waiter.poll() is None
        assert "one" not in postgresql.tables()
    printed = waiter.communicate()
    assert waiter.returncode == 0, printed
    assert "one" in postgresql.tables()


def test_sqlite_keeps_nothing_of_a_failed_migration(
    pasted: Callable[[str], Project], sqlite: Database, tmp_path: Path
) -> None:
    """The table of a failing revision is gone with the piece, and stays without it."""
    project = pasted("sqlite_transactions")
    (tmp_path / "without").mkdir()
    without = stock(tmp_path / "without" / "project")
    for each, left in ((project, set()), (without, {"one", "alembic_version"})):
        database = Database("sqlite", sqlite.url.set(database=str(each.folder / "test.db")))
        each.set(sqlalchemy__url=database.text)
        each.revision("a1", TWO_STATEMENTS)
        each.alembic("upgrade", "head", ok=False)
        assert database.tables() == left
    project.revision("a1", TWO_STATEMENTS.partition("\n")[0])
    project.alembic("upgrade", "head")
    database = Database("sqlite", sqlite.url.set(database=str(project.folder / "test.db")))
    assert database.tables() == {"one", "alembic_version"}


def test_url_may_hold_a_percent_sign(
    pasted: Callable[[str], Project], sqlite: Database, tmp_path: Path
) -> None:
    """DATABASE_URL is used as it is."""
    project = pasted("percent")
    project.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    database = Database("sqlite", sqlite.url.set(database=str(tmp_path / "100%.db")))
    project.alembic("upgrade", "head", DATABASE_URL=f"sqlite:///{tmp_path}/100%.db")
    assert "one" in database.tables()


def test_loggers_of_a_program_stay(
    pasted: Callable[[str], Project], sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program's loggers are not disabled, and its root logger keeps its level and handlers."""
    project = pasted("logging_left_alone")
    project.revision("a1")
    code = f"""
        import logging
        from alembic import command
        from alembic.config import Config

        mine = logging.getLogger("mine")
        before = (logging.root.level, list(logging.root.handlers))
        config = Config("alembic.ini")
        config.set_main_option("sqlalchemy.url", {sqlite.text!r})
        command.upgrade(config, "head")
        assert not mine.disabled
        assert (logging.root.level, logging.root.handlers) == before
    """
    project.python(code)
    project.set(sqlalchemy__url=sqlite.text)
    assert "Context impl" in project.alembic("current").stderr  # the command still sets it up
    env = project.folder / "migrations" / "env.py"
    env.write_text(env.read_text().replace(" and config.cmd_opts is not None", ""))
    project.python(code, ok=False)


def test_migrations_run_where_an_event_loop_runs(
    pasted: Callable[[str], Project], sqlite: Database
) -> None:
    """A coroutine may call Alembic's functions."""
    project = pasted("running_event_loop")
    project.set(sqlalchemy__url=sqlite.url_for("sqlite+aiosqlite"))
    project.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    project.python(
        """
        import asyncio
        from alembic import command
        from alembic.config import Config

        async def main():
            command.upgrade(Config("alembic.ini"), "head")

        asyncio.run(main())
        """
    )
    assert "one" in sqlite.tables()


def test_no_revision_is_written_if_nothing_has_changed(
    pasted: Callable[[str], Project], sqlite: Database
) -> None:
    """Autogenerate writes no empty file, writes one by hand if asked for, and `check` works."""
    project = pasted("no_empty_revisions")
    argument = "process_revision_directives=skip_empty"
    assert f"`{argument}`" in PAGE
    env = project.folder / "migrations" / "env.py"
    call = "connection=connection, target_metadata=target_metadata"
    source = env.read_text().replace("target_metadata = None", NO_MODELS)
    assert call in source
    env.write_text(source.replace(call, f"{call}, {argument}"))
    project.set(sqlalchemy__url=sqlite.text)
    versions = project.folder / "migrations" / "versions"
    project.alembic("revision", "--autogenerate", "-m", "nothing")
    assert list(versions.glob("*.py")) == []
    project.alembic("check")
    project.alembic("revision", "-m", "by hand")
    assert len(list(versions.glob("*.py"))) == 1


def test_tenant_has_its_own_tables_and_version(
    pasted: Callable[[str], Project], postgresql: Database
) -> None:
    """The run is in the schema that is named, whatever its name, and nowhere else."""
    project = pasted("tenant_search_path")
    project.set(sqlalchemy__url=postgresql.text.replace("%", "%%"))
    project.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    name = 'We "Quote", 100%; drop'
    postgresql.run('CREATE SCHEMA "We ""Quote"", 100%; drop"', "CREATE SCHEMA other")
    project.alembic("-x", f"tenant={name}", "upgrade", "head")
    tables = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT LIKE 'pg_%'"
    found = {row for row in postgresql.rows(tables) if row[0] != "information_schema"}
    assert found == {(name, "one"), (name, "alembic_version")}
    assert "Name the tenant" in project.alembic("upgrade", "head", ok=False).stderr
    project.alembic("-x", "tenant=nobody", "upgrade", "head", ok=False)
