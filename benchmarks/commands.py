"""What does a command in a series cost? Upgrades of one revision each, with few and many revisions.

The ways take turns in one run, each on a SQLite file of its own: `Migrations` of the `shared`
environment on one connection, `alembic.command` on such a connection, and a process each time.
"""

from __future__ import annotations

import compileall
import importlib
import sys
import tempfile
import uuid
from functools import partial
from pathlib import Path
from time import perf_counter
from types import ModuleType

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from alembic_templates._catalog import find
from benchmarks.measure import Row, alembic, compare, interleave, progress, timed
from benchmarks.projects import render, write_revision


def run(*, files: list[int], commands: int, rounds: int) -> list[Row]:
    """Return the rows of a series of commands, for each of some numbers of revision files."""
    ways = {
        "Migrations": by_migrations,
        "alembic.command": by_command,
        "processes": by_processes,
    }
    rows = []
    for number in files:
        progress(f"commands, {number} revision files")
        with tempfile.TemporaryDirectory() as name:
            names = prepare(Path(name), number)[:commands]
            found = interleave(
                {way: partial(series, Path(name), names) for way, series in ways.items()}, rounds
            )
        case = f"{commands} upgrades, {number} revision files"
        rows += [compare(found, case, "Migrations", way) for way in [*ways][1:]]
    return rows


def prepare(folder: Path, revisions: int) -> list[str]:
    """Render the environment, with that many revisions of a table each, and return their names."""
    render(folder, str(find("shared").folder))
    names = [f"r{number:04}" for number in range(1, revisions + 1)]
    for number, name in enumerate(names, start=1):
        made = f'op.create_table("{name}", sa.Column("id", sa.Integer, primary_key=True))'
        write_revision(folder, names[:number], made)
    # Else the ways that come first compile the files for the others.
    compileall.compile_dir(folder, quiet=1)
    return names


def new_url(folder: Path) -> str:
    """Return the URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{folder / uuid.uuid4().hex}.db"


def by_migrations(folder: Path, names: list[str]) -> float:
    """Return the seconds of upgrades through `Migrations`, with the import of its package."""
    package = ModuleType(f"migrations_of_{folder.name}")
    package.__path__ = [str(folder / "migrations")]
    sys.modules[package.__name__] = package
    with create_engine(new_url(folder)).begin() as connection:
        start = perf_counter()
        migrations = importlib.import_module(f"{package.__name__}.commands").Migrations(connection)
        for name in names:
            migrations.upgrade(name)
        return perf_counter() - start


def by_command(folder: Path, names: list[str]) -> float:
    """Return the seconds of upgrades by `alembic.command` on a connection that is given to it."""
    with create_engine(new_url(folder)).begin() as connection:
        config = Config(folder / "alembic.ini", attributes={"connection": connection})
        start = perf_counter()
        for name in names:
            command.upgrade(config, name)
        return perf_counter() - start


def by_processes(folder: Path, names: list[str]) -> float:
    """Return the seconds of upgrades by a process each."""
    url = f"url={new_url(folder)}"
    return sum(timed(alembic(folder, "-x", url, "upgrade", name)) for name in names)
