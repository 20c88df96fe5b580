"""Measure what a large fleet costs beside its migrations: memory, the start, and nothing to do.

    python -m benchmarks.fleet_scale --files 20000 --schemas 10000

The memory is that of the parent process, which knows all tenants: its peak at all tenants, and at a
quarter of them. PostgreSQL is that of TEST_POSTGRESQL_URL, else the one of the PyPI wheel.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from sqlalchemy import URL, Engine

from alembic_templates._catalog import find
from benchmarks.fleet import execute, names, settle
from benchmarks.measure import alembic, postgresql, progress, scratch_database, timed
from benchmarks.projects import render, write_revision

# The goals: bytes a tenant, seconds to the first tenant, and seconds more than a start-up.
MEMORY, FIRST, NOTHING = 2048, 3.0, 5.0
JOBS = os.cpu_count() or 1


@dataclass(frozen=True)
class Seen:
    """What was seen of a run: seconds to its first tenant and to its end, and the parent's peak."""

    first: float
    seconds: float
    peak: int


def watch(folder: Path, *arguments: str, stops: bool = False) -> Seen:
    """Run an upgrade and return what was seen; end it after the first tenant if it `stops`."""
    command = [sys.executable, "-m", "alembic", *arguments, "upgrade", "head"]
    start, first, peak = perf_counter(), 0.0, 0
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr or ():
            if not first and "Tenant '" in line:
                first = perf_counter() - start
                if stops:
                    process.send_signal(signal.SIGTERM)
            if "The run took" in line:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    if process.returncode != (128 + signal.SIGTERM if stops else 0):
        raise SystemExit(f"{' '.join(command)} has ended with exit code {process.returncode}.")
    return Seen(first, perf_counter() - start, peak)


def project(folder: Path, url: str, tenants: str) -> Path:
    """Render a fleet whose only revision creates a table."""
    folder.mkdir()
    render(folder, str(find("multitenant").folder), sqlalchemy__url=url, tenants=tenants)
    write_revision(folder, ["r1"], 'op.create_table("t", sa.Column("id", sa.Integer))')
    alembic(folder, "history").run()  # compiles the modules, which no later run does
    return folder


def say(what: str, found: float, goal: float, unit: str) -> None:
    """Print a figure beside its goal."""
    met = "met" if found <= goal else "missed"
    print(f"{what}: {found:.1f} {unit} (goal: at most {goal:g}, {met})", flush=True)


def growth(runs: list[tuple[int, Seen]]) -> float:
    """Return by how many bytes a tenant the peak of the parent grows from a run to a larger one."""
    (few, small), (many, large) = runs
    return (large.peak - small.peak) / (many - few)


def on_files(folder: Path, count: int) -> None:
    """Measure SQLite files that do not exist yet, and then have nothing to do."""
    runs = []
    for some in (count // 4, count):
        progress(f"scale, {some} files")
        place = folder / f"files{some}"
        place.mkdir()
        url = f"sqlite:///{place}/{{tenant}}.db"
        fleet = project(folder / f"fleet{some}", url, " ".join(names(some)))
        runs.append((some, watch(fleet, "-x", "create=true", "-x", f"jobs={JOBS}")))
        if len(list(place.iterdir())) != some:
            raise SystemExit(f"{place} has not one file for each of {some} tenants.")
    last = runs[-1][1]
    case = f"{count} SQLite files, {JOBS} jobs"
    say(f"{case}, memory a tenant", growth(runs), MEMORY, "bytes")
    say(f"{case}, start to first tenant", last.first, FIRST, "s")
    print(f"{case}, all: {last.seconds:.1f} s, {1000 * last.seconds / count:.1f} ms a tenant")


def on_schemas(folder: Path, url: URL, engine: Engine, count: int) -> None:
    """Measure schemas that are empty, to the first of them, and then all at head."""
    progress(f"scale, {count} schemas")
    text = url.render_as_string(hide_password=False)
    query = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 't0') ORDER BY 1 LIMIT "
    execute(engine, [f'CREATE SCHEMA "{each}"' for each in names(count)], 200)
    few, many = (
        project(folder / f"schemas{some}", text, f"{query}{some}") for some in (count // 4, count)
    )
    case = f"{count} schemas"
    first = watch(many, stops=True).first
    say(f"{case}, start to first tenant", first, FIRST, "s")
    create = (
        'CREATE TABLE IF NOT EXISTS "{0}".alembic_version (version_num varchar(32) PRIMARY KEY); '
        "INSERT INTO \"{0}\".alembic_version VALUES ('r1') ON CONFLICT DO NOTHING"
    )
    execute(engine, [create.format(each) for each in names(count)], 200)
    settle(engine)
    runs = [(count // 4, watch(few)), (count, watch(many))]
    start_up = timed(alembic(many, "--help"))
    say(f"{case}, nothing to do, over start-up", runs[1][1].seconds - start_up, NOTHING, "s")
    say(f"{case}, nothing to do, memory a tenant", growth(runs), MEMORY, "bytes")


def main() -> None:
    """Measure both kinds of fleet, and print each figure beside its goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_scale")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--schemas", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if given.files:
            on_files(Path(name), given.files)
        if given.schemas:
            with postgresql() as server, scratch_database(server) as (url, engine):
                on_schemas(Path(name), url, engine, given.schemas)


if __name__ == "__main__":
    main()
