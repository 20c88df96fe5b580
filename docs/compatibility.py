"""Try every template on each Python, Alembic, SQLAlchemy and driver, and write compatibility.md.

    tox -e compat
    tox -e compat -- --pythons 3.11,3.13 --jobs 4

A virtual environment is made for each Python, Alembic and SQLAlchemy, and kept for the next run. In
each, `alembic-templates try` runs every template with every driver that the tests name for it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

from sqlalchemy import URL, make_url

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import DRIVERS, SUPPORTED, kind_of

from benchmarks.measure import postgresql, progress, server_version, system

TITLES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}
LOWEST = {"alembic": "1.16.0", "sqlalchemy": "2.0.30"}
# What to install for each driver; sqlite3 comes with Python.
DISTRIBUTIONS = {
    "sqlite+aiosqlite": "aiosqlite",
    "postgresql+psycopg": "psycopg",
    "postgresql+psycopg_async": "psycopg",
    "postgresql+asyncpg": "asyncpg",
    "mysql+pymysql": "pymysql",
    "mysql+aiomysql": "aiomysql",
    "mysql+asyncmy": "asyncmy",
}
# Seconds after which a trial is ended; it takes one or two.
TIMEOUT = 120

# Prints the versions in an environment, unless they cannot be imported.
VERSIONS = """
import alembic, sqlalchemy
import json, platform, sqlite3, sys
from importlib.metadata import version
found = {name: version(name) for name in sys.argv[1:]}
found.update(python=platform.python_version(), sqlite=sqlite3.sqlite_version)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Cell:
    """What became of one Python, Alembic and SQLAlchemy."""

    python: str
    alembic: str
    sqlalchemy: str
    # Why it could not be installed or imported, empty where it could.
    refused: str
    # The reason of each trial that failed, by its template and driver.
    failed: dict[str, str]
    # The versions of the Python, its SQLite and the drivers.
    versions: dict[str, str]


@dataclass(frozen=True)
class Shared:
    """What the cells have in common: their folder, what is installed there and what is tried."""

    environments: Path
    wheel: Path
    # The path of each Python, and the URL of each kind of database.
    pythons: dict[str, str]
    urls: dict[str, URL]
    trials: list[tuple[str, str]]


@dataclass(frozen=True)
class Report:
    """What the page tells: where it was run, and each cell."""

    system: str
    # The version of each server that was reached, and why another was not.
    servers: dict[str, str]
    unreachable: dict[str, str]
    # The templates and drivers that were tried in each cell.
    trials: list[tuple[str, str]]
    cells: list[Cell]


def try_all(python: Path, urls: dict[str, URL], trials: list[tuple[str, str]]) -> dict[str, str]:
    """Try templates with drivers in the environment of a Python, and return why some failed."""
    failed = {}
    program = (python, "-m", "alembic_templates.cli")
    for template, driver in trials:
        url = urls[kind_of(driver)].set(drivername=driver).render_as_string(hide_password=False)
        done = run(*program, "try", template, "--url", url, timeout=TIMEOUT)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            failed[f"{template} {driver}"] = lines[-1].removeprefix("error: ")
    return failed


def run(*arguments: str | Path, timeout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, or for some seconds; that it failed is for the caller to see."""
    try:
        return subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 1, "", f"it took more than {timeout} seconds")


def available(package: str) -> list[str]:
    """Return the lowest version, and the newest patch of each minor from there on."""
    done = run(sys.executable, "-m", "pip", "index", "versions", package)
    found = re.search("Available versions: (.*)", done.stdout)
    if found is None:
        raise SystemExit(f"pip does not tell the versions of {package}:\n{done.stderr}")
    versions = [each for each in found[1].split(", ") if re.fullmatch(r"[\d.]+", each)]
    newest: dict[tuple[int, ...], str] = {}
    for each in sorted(versions, key=numbers):
        if numbers(each) >= numbers(LOWEST[package]):
            newest[numbers(each)[:2]] = each
    return sorted({LOWEST[package], *newest.values()}, key=numbers)


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, to sort by."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def installed_pythons() -> dict[str, str]:
    """Return the path of each Python from 3.10 on that answers to its name."""
    found = {}
    for name in (f"3.{minor}" for minor in range(10, 20)):
        path = shutil.which(f"python{name}")
        # A name without a Python behind it, as pyenv has them, gives no answer.
        if path and run(path, "-c", "import sys; print(sys.version)").stdout.startswith(name):
            found[name] = path
    return found


def reached(stack: ExitStack) -> tuple[dict[str, URL], dict[str, str], dict[str, str]]:
    """Return the URL of each database, the versions of the servers, and why others have none."""
    urls = {"sqlite": make_url("sqlite://")}
    servers, unreachable = {}, {}
    for kind in ("postgresql", "mariadb"):
        try:
            url = stack.enter_context(postgresql()) if kind == "postgresql" else mariadb()
            servers[kind] = server_version(url)
            urls[kind] = url
        except Exception as error:  # noqa: BLE001 - whatever it is, the page tells it
            unreachable[kind] = str(getattr(error, "orig", None) or error).partition("\n")[0]
    return urls, servers, unreachable


def mariadb() -> URL:
    """Return the URL of TEST_MARIADB_URL, or of a server on this machine without a password."""
    given = os.environ.get("TEST_MARIADB_URL", "mysql://root@127.0.0.1:3306/")
    return make_url(given).set(drivername="mysql+pymysql")


def built(folder: Path) -> Path:
    """Build the wheel of the checkout in a folder, and return its path."""
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    for wheel in folder.glob("*.whl"):
        return wheel
    raise SystemExit(f"The wheel could not be built:\n{done.stderr}")


def environment(folder: Path, python: str, wheel: Path, pins: list[str]) -> str:
    """Make a virtual environment or reuse it, install the wheel, and return why that failed."""
    done_before = folder / "installed.txt"
    if done_before.exists():
        options: list[str | Path] = ["--no-deps", "--force-reinstall", wheel]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        run(python, "-m", "venv", "--without-pip", folder)
        drivers = sorted(set(DISTRIBUTIONS.values()))
        options = [wheel, *pins, *drivers, "psycopg-binary", "greenlet"]
    done = run(sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", *options)
    if done.returncode:
        return refusal(done.stderr, pins)
    done_before.write_text("\n".join(pins), encoding="utf-8")
    return ""


def refusal(errors: str, pins: list[str]) -> str:
    """Return why pip has installed nothing, from what it wrote."""
    for pin in pins:
        package, _, version = pin.partition("==")
        needs = re.search(rf" {re.escape(version)} Requires-Python ([^;\n]+)", errors)
        if needs:
            return f"cannot be installed: {package} {version} needs Python {needs[1]}"
    reasons = re.findall(r"(?m)^ERROR: (?!Ignored)(.+?)(?: \(from versions.*)?$", errors)
    return f"cannot be installed: {reasons[0] if reasons else 'pip gives no reason'}"


def cell(shared: Shared, of: tuple[str, ...]) -> Cell:
    """Return what became of one Python, Alembic and SQLAlchemy, `of`."""
    python, alembic, sqlalchemy = of
    name = f"python{python}-alembic{alembic}-sqlalchemy{sqlalchemy}"
    folder = shared.environments / name
    pins = [f"alembic=={alembic}", f"sqlalchemy=={sqlalchemy}"]
    executable = folder / "bin" / "python"
    failed, versions = {}, {}
    refused = environment(folder, shared.pythons[python], shared.wheel, pins)
    if not refused:
        asked = run(executable, "-c", VERSIONS, *sorted(set(DISTRIBUTIONS.values())))
        if asked.returncode:
            refused = f"cannot be imported: {asked.stderr.strip().splitlines()[-1]}"
        else:
            versions = json.loads(asked.stdout)
            failed = try_all(executable, shared.urls, shared.trials)
    progress(f"Python {python}, {', '.join(pins)}: {refused or f'{len(failed)} failed'}")
    return Cell(python, alembic, sqlalchemy, refused, failed, versions)


def page(report: Report) -> str:
    """Return the page that tells a report, in Markdown."""
    kinds = ["sqlite", *report.servers]
    pythons = joined(each.versions.get("python", "") for each in report.cells)
    lines = [
        "# Compatibility",
        "",
        (
            "Each template was tried with each of its drivers, by `alembic-templates try`, in a "
            "virtual environment of each Python, Alembic and SQLAlchemy of these tables."
        ),
        "A cell lists the Pythons on which all of that passed.",
        "`tox -e compat` writes this page anew, with the Pythons and databases that it finds.",
        "",
        f"This one was written on {report.system}, with Python {pythons}.",
    ]
    for kind, reason in report.unreachable.items():
        lines.append(f"{TITLES[kind]} was not tried, it could not be reached: {reason}.")
    for kind in kinds:
        lines += database_table(report, kind)
    lines += [*driver_table(report), *failures(report)]
    return "\n".join(lines) + "\n"


def database_table(report: Report, kind: str) -> Iterator[str]:
    """Give the lines of the table of Alembic and SQLAlchemy for a database."""
    version = report.servers.get(kind) or joined(
        each.versions.get("sqlite", "") for each in report.cells
    )
    columns = sorted({each.sqlalchemy for each in report.cells}, key=numbers)
    yield from ["", f"## {TITLES[kind]} {version}", ""]
    yield f"| Alembic | SQLAlchemy {' | SQLAlchemy '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for row in sorted({each.alembic for each in report.cells}, key=numbers):
        cells = [
            outcome(
                kind,
                [each for each in report.cells if (each.alembic, each.sqlalchemy) == (row, column)],
            )
            for column in columns
        ]
        yield f"| {row} | {' | '.join(cells)} |"


def outcome(kind: str, cells: list[Cell]) -> str:
    """Return the Pythons on which a database passed, and those on which not."""
    bad = [
        each.python
        for each in cells
        if each.refused or any(kind_of(trial.split()[1]) == kind for trial in each.failed)
    ]
    good = [each.python for each in cells if each.python not in bad]
    words = [joined(good)] if good else []
    return "; ".join(words + ([f"not {joined(bad)}"] if bad else []))


def driver_table(report: Report) -> Iterator[str]:
    """Give the lines of the table of drivers."""
    yield from [
        "",
        "## Drivers",
        "",
        "| driver | version | templates | passed |",
        "|---|---|---|---|",
    ]
    cells = [each for each in report.cells if not each.refused]
    tried = {driver for _, driver in report.trials}
    for driver in (driver for drivers in DRIVERS.values() for driver in drivers):
        if driver not in tried:
            continue
        name = DISTRIBUTIONS.get(driver)
        version = joined(each.versions[name] for each in cells) if name else "of Python"
        templates = [template for template, each in report.trials if each == driver]
        total = len(cells) * len(templates)
        failed = sum(trial.split()[1] == driver for each in cells for trial in each.failed)
        yield f"| {driver} | {version} | {', '.join(templates)} | {total - failed} of {total} |"


def failures(report: Report) -> Iterator[str]:
    """Give the lines that tell what failed and why, the same of several Alembics once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in report.cells:
        reasons: dict[str, list[str]] = {each.refused: []} if each.refused else {}
        for trial, reason in each.failed.items():
            reasons.setdefault(reason, []).append(trial.replace(" ", " on "))
        for reason, failed in reasons.items():
            text = f"{', '.join(failed)}: {reason}" if failed else reason
            found.setdefault((each.python, each.sqlalchemy, text), []).append(each.alembic)
    yield from ["", "## What did not pass", ""]
    if not found:
        yield "Nothing: each combination could be installed, and each trial has passed."
    for (python, sqlalchemy, text), alembics in found.items():
        yield f"- Python {python}, SQLAlchemy {sqlalchemy}, Alembic {joined(alembics)}: {text}"


def data(report: Report) -> str:
    """Return a report as JSON, with a line for each cell."""
    head = {key: value for key, value in asdict(report).items() if key != "cells"}
    lines = ",\n".join(json.dumps(asdict(each)) for each in report.cells)
    return f'{json.dumps(head)[:-1]}, "cells": [\n{lines}\n]}}\n'


def joined(versions: Iterable[str]) -> str:
    """Return the versions in order, each once."""
    return ", ".join(sorted({each for each in versions if each}, key=numbers))


def arguments(pythons: Iterable[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--pythons", default=",".join(pythons), help="those that are found (%(default)s)")
    add("--jobs", type=int, default=2, help="how many cells at once (%(default)s)")
    add(
        "--environments", type=Path, default=ROOT / ".tox/compat-environments", help="(%(default)s)"
    )
    add("--folder", type=Path, default=ROOT / "docs", help="of the page (%(default)s)")
    given = parser.parse_args()
    given.pythons = given.pythons.split(",")
    if not set(given.pythons) <= set(pythons):
        parser.error(f"expected Pythons that are found: {', '.join(pythons)}")
    return given


def main() -> None:
    """Run the matrix and write the page, and its data beside it."""
    pythons = installed_pythons()
    given = arguments(pythons)
    cells = list(product(given.pythons, available("alembic"), available("sqlalchemy")))
    with (
        ExitStack() as stack,
        tempfile.TemporaryDirectory() as name,
        ThreadPoolExecutor(given.jobs) as pool,
    ):
        urls, servers, unreachable = reached(stack)
        trials = [
            (template, driver)
            for template, drivers in SUPPORTED.items()
            for driver in drivers
            if kind_of(driver) in urls
        ]
        shared = Shared(given.environments, built(Path(name)), pythons, urls, trials)
        found = list(pool.map(partial(cell, shared), cells))
        report = Report(system(), servers, unreachable, trials, found)
    (given.folder / "compatibility.md").write_text(page(report), encoding="utf-8")
    (given.folder / "compatibility.json").write_text(data(report), encoding="utf-8")


if __name__ == "__main__":
    main()
