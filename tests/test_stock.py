"""What the README says goes wrong with Alembic's own env.py, tried with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Database, Project, run
from processes import kept_environment
from sqlalchemy import text

# As applications do it, since SQLite checks no foreign keys unless it is told to.
FOREIGN_KEYS_ON = """
from sqlalchemy import Engine, event


@event.listens_for(Engine, "connect")
def foreign_keys_on(connection, _record):
    connection.execute("PRAGMA foreign_keys = ON")


"""
TABLES = """
op.create_table('author', sa.Column('id', sa.Integer, primary_key=True))
op.create_table(
    'book',
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('author_id', sa.Integer, sa.ForeignKey('author.id', ondelete='CASCADE')),
)
op.execute('INSERT INTO author VALUES (1)')
op.execute('INSERT INTO book VALUES (1, 1)')
"""
CHANGE = """
with op.batch_alter_table('author', recreate='always') as batch:
    batch.add_column(sa.Column('name', sa.String))
"""


@pytest.fixture
def stock(tmp_path: Path) -> Project:
    """A project with the env.py that Alembic writes."""
    folder = tmp_path / "project"
    folder.mkdir()
    run(folder, sys.executable, "-m", "alembic", "init", "migrations")
    own = {"HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return Project(folder, {**kept_environment(), **own})


def test_table_is_half_made(stock: Project, sqlite: Database) -> None:
    """On SQLite the first statement of a failed revision stays, and the next run fails for it."""
    stock.set(sqlalchemy__url=sqlite.text)
    stock.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))\nop.execute('no')")
    stock.alembic("upgrade", "head", ok=False)
    assert "one" in sqlite.tables()
    assert "table one already exists" in stock.alembic("upgrade", "head", ok=False).stderr


def test_child_rows_are_deleted(stock: Project, sqlite: Database) -> None:
    """If the application switches foreign keys on, batch mode deletes the rows that refer."""
    stock.set(sqlalchemy__url=sqlite.text)
    stock.revision("a1", TABLES)
    stock.revision("b1", CHANGE, down="a1")
    stock.alembic("upgrade", "a1")
    assert sqlite.rows("SELECT count(*) FROM book") == [(1,)]
    env = stock.folder / "migrations" / "env.py"
    env.write_text(FOREIGN_KEYS_ON + env.read_text())
    stock.alembic("upgrade", "head")
    assert sqlite.rows("SELECT count(*) FROM author") == [(1,)]
    assert sqlite.rows("SELECT count(*) FROM book") == [(0,)]


def test_two_processes_run_the_same_revision(stock: Project, postgresql: Database) -> None:
    """Both begin the revision, and one of them crashes."""
    stock.set(sqlalchemy__url=postgresql.text.replace("%", "%%"))
    together = "op.execute('SELECT pg_advisory_lock_shared(5)')\n"
    stock.revision("a1", f"{together}op.create_table('one', sa.Column('id', sa.Integer))")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    here = f"{waiting} AND datname = current_database() AND query LIKE '%lock_shared(5)%'"
    # Alembic makes its version table before; two processes would fail there already.
    stock.alembic("stamp", "base")
    with postgresql.engine().connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(5)"))
        processes = [stock.start("upgrade", "head") for _ in range(2)]
        while postgresql.rows(here) != [(2,)]:
            assert all(process.poll() is None for process in processes)
    printed = [process.communicate() for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1], printed


def test_loggers_are_silenced(stock: Project, sqlite: Database) -> None:
    """A program's logger is disabled by its own migrations."""
    stock.revision("a1")
    stock.python(
        f"""
        import logging
        from alembic import command
        from alembic.config import Config

        mine = logging.getLogger("mine")
        config = Config("alembic.ini")
        config.set_main_option("sqlalchemy.url", {sqlite.text!r})
        command.upgrade(config, "head")
        assert mine.disabled
        """
    )
