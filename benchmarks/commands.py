"""Time 20 upgrades of one revision each, three ways, with 20, 200 and 1000 revision files.

Run it with `tox -e bench`. The ways take turns in one run, on a SQLite file of each: `Migrations` of
the `shared` environment on one connection, `alembic.command` on the same kind of connection, and a
process `alembic` each time. Times are in milliseconds a command; ratios are to `Migrations`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine

from alembic_templates._catalog import find

COMMANDS = 20
ROUNDS = 3


def render(folder: Path, revisions: int) -> None:
    """Render the environment, with that many revisions of a table each."""
    with contextlib.redirect_stdout(io.StringIO()):
        command.init(
            Config(folder / "alembic.ini"),
            str(folder / "migrations"),
            template=str(find("shared").folder),
        )
    for number in range(1, revisions + 1):
        (folder / "migrations" / "versions" / f"r{number:04}.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n\n"
            f'revision = "r{number:04}"\n'
            f"down_revision = {f'r{number - 1:04}' if number > 1 else None!r}\n\n\n"
            "def upgrade():\n"
            f'    op.create_table("t{number}", sa.Column("id", sa.Integer, primary_key=True))\n\n\n'
            f'def downgrade():\n    op.drop_table("t{number}")\n'
        )


def load_commands(folder: Path) -> ModuleType:
    """Load the environment's commands.py."""
    spec = importlib.util.spec_from_file_location("commands", folder / "migrations/commands.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_connection(database: Path, run: Callable[[Connection], list[float]]) -> list[float]:
    """Run a series on one connection, in one transaction."""
    engine = create_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        return run(connection)


def timed(upgrade: Callable[[str], object]) -> list[float]:
    """Upgrade one revision at a time, and return the seconds that each took."""
    seconds = []
    for number in range(1, COMMANDS + 1):
        start = time.perf_counter()
        upgrade(f"r{number:04}")
        seconds.append(time.perf_counter() - start)
    return seconds


def by_migrations(folder: Path, database: Path) -> list[float]:
    """Upgrade through `Migrations`; its first command loads the revision files."""

    def run(connection: Connection) -> list[float]:
        start = time.perf_counter()
        migrations = load_commands(folder).Migrations(connection)
        loaded = time.perf_counter() - start
        first, *rest = timed(migrations.upgrade)
        return [first + loaded, *rest]

    return on_connection(database, run)


def by_command(folder: Path, database: Path) -> list[float]:
    """Upgrade through `alembic.command` with a connection in Config.attributes."""

    def run(connection: Connection) -> list[float]:
        config = Config(folder / "alembic.ini", attributes={"connection": connection})
        return timed(lambda revision: command.upgrade(config, revision))

    return on_connection(database, run)


def by_processes(folder: Path, database: Path) -> list[float]:
    """Upgrade with a process for each command."""
    alembic = [sys.executable, "-m", "alembic", "-x", f"url=sqlite:///{database}", "upgrade"]
    return timed(
        lambda revision: subprocess.run(
            [*alembic, revision], cwd=folder, check=True, capture_output=True
        )
    )


WAYS = {
    "Migrations": by_migrations,
    "alembic.command": by_command,
    "processes": by_processes,
}


def main() -> None:
    """Print one table for each number of revision files."""
    for revisions in (20, 200, 1000):
        times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            render(folder, revisions)
            for number in range(ROUNDS):
                for way, run in WAYS.items():
                    times[way].append(run(folder, folder / f"{number}-{way}.db"))
        totals = {
            way: [sum(series) * 1000 / COMMANDS for series in runs] for way, runs in times.items()
        }
        base = statistics.median(totals["Migrations"])
        print(f"{revisions} revision files, {COMMANDS} commands, median of {ROUNDS} rounds (range)")
        for way, found in totals.items():
            median = statistics.median(found)
            print(
                f"  {way:16} {median:8.1f} ms ({min(found):.1f} to {max(found):.1f})"
                f"  {median / base:6.1f} times"
            )
        series = times["Migrations"]
        for number in (1, 2, 16):
            median = statistics.median(run[number - 1] for run in series) * 1000
            print(f"  command {number:<2} of Migrations {median:6.1f} ms")


if __name__ == "__main__":
    main()
