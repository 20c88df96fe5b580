"""Time upgrades of one revision each, three ways, with few and many revision files.

The ways take turns in one run, on a SQLite file of each: `Migrations` of the `shared` environment on
one connection, `alembic.command` on the same kind of connection, and a process `alembic` each time.
"""

from __future__ import annotations

import compileall
import importlib
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine

from alembic_templates._catalog import find
from benchmarks.measure import Row, alembic, interleave, progress, timed
from benchmarks.projects import render, write_revision

# Makes an upgrade of each of the revisions, and returns the seconds of each.
Series = list[float]


def run(*, files: list[int], commands: int, rounds: int) -> list[Row]:
    """Return the rows of a series of commands, for each of some numbers of revision files."""
    rows = []
    for number in files:
        progress(f"commands, {number} revision files")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            names = prepare(folder, number)
            ways = {way: partial(series, folder, names[:commands]) for way, series in WAYS.items()}
            rows += compare(
                f"{commands} upgrades, {number} revision files", interleave(ways, rounds)
            )
    return rows


def compare(case: str, times: dict[str, list[Series]]) -> list[Row]:
    """Return the rows of a case from the series of each way, one for each round."""
    base = times["Migrations"]
    rows = [
        Row(case, way, "Migrations", [sum(each) for each in found], [sum(each) for each in base])
        for way, found in times.items()
        if way != "Migrations"
    ]
    # The first command loads the revision files; the later ones are not to become slower.
    second = [each[1] for each in base]
    for number in (1, min(16, len(base[0]))):
        rows.append(
            Row(
                case,
                f"Migrations, command {number}",
                "Migrations, command 2",
                [each[number - 1] for each in base],
                second,
                plotted=False,
            )
        )
    return rows


def prepare(folder: Path, revisions: int) -> list[str]:
    """Render the environment, with that many revisions of a table each, and return their names."""
    render(folder, str(find("shared").folder))
    names = [f"r{number:04}" for number in range(1, revisions + 1)]
    for number, name in enumerate(names, start=1):
        made = f'op.create_table("{name}", sa.Column("id", sa.Integer, primary_key=True))'
        write_revision(folder, names[:number], made, f'op.drop_table("{name}")')
    # Else the ways that come first compile the files for the others.
    compileall.compile_dir(folder, quiet=1)
    return names


def load_commands(folder: Path) -> ModuleType:
    """Import the environment's commands.py from its package, which gets a name of its own."""
    package = ModuleType(f"migrations_of_{folder.name}")
    package.__path__ = [str(folder / "migrations")]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.commands")


def each_timed(upgrade: Callable[[str], object], names: list[str]) -> Series:
    """Upgrade one revision at a time, and return the seconds that each took."""
    seconds = []
    for name in names:
        start = time.perf_counter()
        upgrade(name)
        seconds.append(time.perf_counter() - start)
    return seconds


def new_url(folder: Path) -> str:
    """Return the URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{folder / uuid.uuid4().hex}.db"


def on_connection(folder: Path, series: Callable[[Connection], Series]) -> Series:
    """Run a series on one connection to a new database, in one transaction."""
    engine = create_engine(new_url(folder))
    with engine.begin() as connection:
        return series(connection)


def by_migrations(folder: Path, names: list[str]) -> Series:
    """Upgrade through `Migrations`; its first command loads the revision files."""

    def series(connection: Connection) -> Series:
        start = time.perf_counter()
        migrations = load_commands(folder).Migrations(connection)
        loaded = time.perf_counter() - start
        first, *rest = each_timed(migrations.upgrade, names)
        return [first + loaded, *rest]

    return on_connection(folder, series)


def by_command(folder: Path, names: list[str]) -> Series:
    """Upgrade through `alembic.command` with a connection in Config.attributes."""

    def series(connection: Connection) -> Series:
        config = Config(folder / "alembic.ini", attributes={"connection": connection})
        return each_timed(lambda revision: command.upgrade(config, revision), names)

    return on_connection(folder, series)


def by_processes(folder: Path, names: list[str]) -> Series:
    """Upgrade with a process for each command."""
    url = f"url={new_url(folder)}"
    return [timed([alembic(folder, "-x", url, "upgrade", name)]) for name in names]


WAYS = {
    "Migrations": by_migrations,
    "alembic.command": by_command,
    "processes": by_processes,
}
