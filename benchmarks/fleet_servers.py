"""Measure a fleet on several servers that several runners share by parts, with a slow network.

    python -m benchmarks.fleet_servers --latency 20 --tenants 160 --case 2000

The servers run here, so a proxy delays each message to them: what is measured is how the waiting is
shared, and not two processors. A model says what that means for 100 servers, and on what grounds.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, sleep

from sqlalchemy import Engine, NullPool, create_engine

from alembic_templates._catalog import find
from benchmarks.fleet import execute, names
from benchmarks.measure import progress, started_postgresql
from benchmarks.projects import render, write_revision

SERVERS, RUNNERS = (1, 2, 4), (1, 2, 4, 8)
# What four runners are hoped to be faster than one.
GOAL = 3.5
# A revision changes a table, and notes the tenant.
REVISION = """op.add_column("t", sa.Column("{0}", sa.Integer))
op.execute("INSERT INTO public.log SELECT current_schema(), '{0}'")"""


@dataclass
class Fleet:
    """A project whose tenants are on some servers, behind the proxy; `seen` is what it notes."""

    folder: Path
    tenants: list[str]
    engines: list[Engine]
    seen: Path
    revisions: list[str] = field(default_factory=list)


async def forward(latency: float, path: str, seen: Path, *client: object) -> None:
    """Connect a client to a server, delay its messages, and note who it was and their number."""
    reader, writer = client
    assert isinstance(reader, asyncio.StreamReader)  # noqa: S101 - for the types
    assert isinstance(writer, asyncio.StreamWriter)  # noqa: S101
    answers, server = await asyncio.open_unix_connection(path)

    async def back() -> None:
        while answer := await answers.read(65536):
            writer.write(answer)
        writer.close()

    task = asyncio.create_task(back())
    first, messages = b"", 0
    with suppress(ConnectionResetError):  # the runner was killed
        while message := await reader.read(65536):
            first, messages = first or message, messages + 1
            await asyncio.sleep(latency)
            server.write(message)
    server.close()
    await task
    runner = re.findall(rb"application_name\0([^\0]*)", first)
    tenant = re.findall(rb"search_path=(\w+)", first)
    with seen.open("ab") as file:
        file.write(b"%s %s %d\n" % (*runner, *tenant, messages))


@contextmanager
def proxy(latency: float, paths: list[str], seen: Path) -> Iterator[list[int]]:
    """Run the proxy in a process of its own; give the port that leads to each server."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in paths]

    async def serve() -> None:
        for path, each in zip(paths, sockets, strict=True):
            await asyncio.start_server(partial(forward, latency, path, seen), sock=each)
        await asyncio.Event().wait()

    process = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(serve()))
    process.start()
    try:
        yield [each.getsockname()[1] for each in sockets]
    finally:
        process.kill()
        process.join()


@contextmanager
def fleet_on(servers: int, tenants: int, latency: float) -> Iterator[Fleet]:
    """Make a fleet whose tenants take turns on the servers, a schema each, and have a table."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        started = [stack.enter_context(started_postgresql()) for _ in range(servers)]
        paths = [f"{url.query['host']}/.s.PGSQL.5432" for url in started]
        folder, known = Path(name) / "project", names(tenants)
        direct = [
            f"postgresql+psycopg://postgres@/postgres?host={Path(path).parent}" for path in paths
        ]
        engines = [create_engine(each, poolclass=NullPool) for each in direct]
        seen = Path(name) / "seen"
        with proxy(latency, paths, seen) as ports:
            rows = []
            for number, engine in enumerate(engines):
                here = known[number::servers]
                made = [f"CREATE SCHEMA {each}; CREATE TABLE {each}.t (id int)" for each in here]
                execute(engine, ["CREATE TABLE log (tenant text, revision text)", *made], 200)
                url = f"postgresql+psycopg://postgres@127.0.0.1:{ports[number]}/postgres"
                url += "?sslmode=disable&options=-csearch_path%3D"
                rows += [f"('{each}', '{url}{each}')" for each in here]
            values = ", ".join(rows).replace("%", "%%")
            execute(engines[0], [f"CREATE TABLE tenants AS VALUES {values}"], 1)
            folder.mkdir()
            query = "SELECT column1, column2 FROM tenants ORDER BY column1"
            render(folder, str(find("multitenant").folder), tenants=query, tenants_url=direct[0])
            yield Fleet(folder, known, engines, seen)


def start(fleet: Fleet, part: int, parts: int) -> subprocess.Popen[bytes]:
    """Start the runner of a part."""
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "alembic", "-x", f"part={part}/{parts}", "upgrade", "head"]
    environ = {**os.environ, "PGAPPNAME": f"runner{part}"}
    return subprocess.Popen(command, cwd=fleet.folder, env=environ, stdout=quiet, stderr=quiet)


def upgrade(fleet: Fleet, runners: int, *, kills: bool = False) -> tuple[float, float]:
    """Let runners run a new revision; return tenants a second, and messages a tenant.

    With `kills` the first runner is killed in the middle of its part, and started again. Raises
    SystemExit unless each tenant was upgraded once, and connected to by one runner alone.
    """
    name = f"r{len(fleet.revisions) + 1}"
    fleet.revisions.append(name)
    write_revision(fleet.folder, fleet.revisions, REVISION.format(name))
    fleet.seen.write_bytes(b"")
    begun = perf_counter()
    processes = [start(fleet, part, runners) for part in range(runners)]
    if kills:
        while fleet.seen.read_bytes().count(b"runner0 ") < len(fleet.tenants) // runners // 2:
            sleep(0.1)
        processes[0].kill()
        processes[0].wait()
        processes[0] = start(fleet, 0, runners)
    codes = [process.wait() for process in processes]
    seconds = perf_counter() - begun
    seen: dict[str, set[str]] = defaultdict(set)
    messages = 0
    for line in fleet.seen.read_text(encoding="utf-8").splitlines():
        runner, tenant, count = line.split()
        seen[tenant].add(runner)
        messages += int(count)
    done: list[str] = []
    for engine in fleet.engines:
        with engine.connect() as connection:
            query = f"SELECT tenant FROM log WHERE revision = '{name}'"
            done += connection.exec_driver_sql(query).scalars()
    alone = all(len(each) == 1 for each in seen.values())
    if any(codes) or sorted(done) != fleet.tenants or sorted(seen) != fleet.tenants or not alone:
        raise SystemExit(f"{runners} runners: exit codes {codes}, {len(done)} upgrades, {alone=}")
    return len(fleet.tenants) / seconds, messages / len(fleet.tenants)


def matrix(tenants: int, latency: float) -> tuple[float, float]:
    """Print tenants a second for each number of servers and runners; return what a tenant costs.

    That is the number of its messages, and the seconds that it takes beside the waiting.
    """
    print(f"{tenants} tenants, {1000 * latency:g} ms a message: tenants a second (speed-up)")
    for servers in SERVERS:
        with fleet_on(servers, tenants, latency) as fleet:
            upgrade(fleet, 1)  # compiles the modules, and warms the servers
            rates = []
            for runners in RUNNERS:
                progress(f"servers: {servers}, runners: {runners}")
                rate, messages = upgrade(fleet, runners)
                rates.append(rate)
        shown = (f"{rate:6.1f} ({rate / rates[0]:.2f})" for rate in rates)
        cells = zip(RUNNERS, shown, strict=True)
        print(f"  {servers} servers: ", *(f"{runners}: {cell}" for runners, cell in cells))
    return messages, 1 / rates[0] - messages * latency


def model(messages: float, work: float, latency: float) -> None:
    """Print how long 100,000 tenants on 100 servers take, by what a tenant costs here."""
    tenants = 100_000
    print(
        f"Model: a tenant takes {messages:.1f} messages of {1000 * latency:g} ms and "
        f"{1000 * work:.0f} ms of work; {tenants} tenants on 100 servers.\n"
        "It assumes a processor for each runner, a latency that does not grow, no server with more "
        "runners at a\ntime than it serves without a queue, and parts whose sizes differ by chance "
        "alone: the largest decides."
    )
    for runners in (1, 10, 100, 400):
        mean = tenants / runners
        largest = mean + math.sqrt(2 * mean * math.log(runners))
        seconds = largest * (messages * latency + work)
        print(f"  {runners} runners: {seconds / 60:.1f} minutes, {tenants / seconds:.0f} a second")


def case(tenants: int, latency: float) -> None:
    """Let four runners share two servers, compare them with one, and kill one of them."""
    with fleet_on(2, tenants, latency) as fleet:
        progress(f"case: {tenants} tenants on two servers")
        many, _ = upgrade(fleet, 4)
        one, _ = upgrade(fleet, 1)
        met = "met" if many / one >= GOAL else "missed"
        print(f"{tenants} tenants on two servers: each upgraded once, by one runner alone")
        print(f"  four runners: {many / one:.2f} times one (goal: at least {GOAL}, {met})")
        upgrade(fleet, 4, kills=True)
        print("  one of four runners is killed, and run again: each tenant is upgraded once")


def main() -> None:
    """Measure the numbers of servers and runners, print the model, and run the case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_servers")
    parser.add_argument("--latency", type=float, default=20, help="milliseconds a message")
    parser.add_argument("--tenants", type=int, default=160, help="for each number of runners")
    parser.add_argument("--case", type=int, default=2000, help="tenants of the case")
    given = parser.parse_args()
    latency = given.latency / 1000
    if given.tenants:
        model(*matrix(given.tenants, latency), latency)
    if given.case:
        case(given.case, latency)


if __name__ == "__main__":
    main()
