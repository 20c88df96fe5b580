"""The workers of a fleet: who does which tenant, what a kill or a signal costs, and what is shown."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from conftest import DRIVERS, Database, Project
from processes import start_python

T = TypeVar("T")

TENANT = {"postgresql": "current_schema()", "mariadb": "DATABASE()"}
SESSION = {"postgresql": "pg_backend_pid()", "mariadb": "CONNECTION_ID()"}

# A revision that says who ran it. For a tenant with a file of its name in the folder "hold", it says
# so in the folder "started" and waits until the file is taken away.
REVISION = """
import os
import time
from pathlib import Path
folder = Path(__file__).parents[2]
bind = op.get_bind()
tenant, session = bind.execute(sa.text("SELECT {tenant}, {session}")).one()
op.execute("CREATE TABLE IF NOT EXISTS of_{revision} (id INTEGER)")
if (folder / "hold" / tenant).exists():
    new = folder / f"new-{{os.getpid()}}"
    new.write_text(f"{{os.getpid()}} {{session}}")
    new.rename(folder / "started" / tenant)
    deadline = time.monotonic() + 60
    while (folder / "hold" / tenant).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
bind.execute(
    sa.text("INSERT INTO {log} VALUES (:tenant, '{revision}', :process, :session)"),
    {{"tenant": tenant, "process": os.getpid(), "session": session}},
)
"""


def until(found: Callable[[], T], what: str) -> T:
    """Return what a function finds as soon as it is true, and fail the test after a while."""
    deadline = time.monotonic() + 30
    while not (value := found()):
        assert time.monotonic() < deadline, f"Waited in vain: {what}"
        time.sleep(0.02)
    return value


def is_alive(process: int) -> bool:
    """Tell whether a process runs; one that has ended may stay as a zombie."""
    shown = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()[:1] not in {"", "Z"}


@dataclass
class Fleet:
    """Empty tenants, revisions that log who ran them, and the commands that a test has started."""

    project: Project
    database: Database
    tenants: list[str] = field(default_factory=list)
    commands: list[subprocess.Popen[str]] = field(default_factory=list)

    def create(self, count: int) -> None:
        """Create this many tenants, whose names no other test has, and set them in alembic.ini."""
        base = self.database.url.database
        self.tenants = [f"{base}_{number:03}" for number in range(count)]
        kind = {"postgresql": "SCHEMA", "mariadb": "DATABASE"}[self.database.kind]
        self.database.run(*(f"CREATE {kind} {name}" for name in self.tenants))
        self.list(self.tenants)

    def list(self, tenants: list[str]) -> None:
        """Set the fleet in alembic.ini."""
        self.project.set(tenants=" ".join(tenants))

    def revision(self, name: str, down: str | None = None) -> None:
        """Write a revision that logs and, where the test says so, holds."""
        kind = self.database.kind
        body = REVISION.format(
            tenant=TENANT[kind], session=SESSION[kind], log=self.log, revision=name
        )
        self.project.revision(name, body, down=down)

    @property
    def log(self) -> str:
        """The table that the revisions write to."""
        return (
            "public.log"
            if self.database.kind == "postgresql"
            else f"{self.database.url.database}.log"
        )

    def ran(self, *columns: str) -> list[tuple[object, ...]]:
        """Return these columns of the log: tenant, revision, process, session."""
        return self.database.rows(f"SELECT {', '.join(columns)} FROM {self.log} ORDER BY 1")

    def hold(self, *tenants: str) -> None:
        """Let the next revision of these tenants wait."""
        for tenant in tenants:
            (self.project.folder / "hold" / tenant).touch()

    def let_go(self) -> None:
        """Let all go on that wait."""
        for file in (self.project.folder / "hold").iterdir():
            file.unlink()

    def at(self, tenant: str) -> tuple[int, int]:
        """Wait until a tenant is in the revision that holds; return its process and its session."""
        file = self.project.folder / "started" / tenant
        until(file.exists, f"{tenant} is in its revision")
        process, session = file.read_text().split()
        file.unlink()
        return int(process), int(session)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start `upgrade head` in a process group of its own, with these arguments before it."""
        arguments = ["-m", "alembic", *args, "upgrade", "head"]
        command = start_python(arguments, self.project.folder, self.project.env, new_session=True)
        self.commands.append(command)
        return command

    def upgrade(self, *args: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `upgrade head` with these arguments before it."""
        return self.project.alembic(*args, "upgrade", "head", ok=ok)

    def sessions(self) -> set[object]:
        """Return the sessions that are at the database, or at one of the tenants'."""
        name = self.database.url.database
        query = {
            "postgresql": "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND datname = current_database()",
            "mariadb": "SELECT id FROM information_schema.processlist "
            f"WHERE id <> CONNECTION_ID() AND LEFT(db, {len(str(name))}) = '{name}'",
        }[self.database.kind]
        return {row[0] for row in self.database.rows(query)}

    def assert_untouched(self, *tenants: str) -> None:
        """Assert that tenants have no version, and on PostgreSQL no table either."""
        for tenant in tenants:
            if self.database.kind == "postgresql":
                query = f"SELECT tablename FROM pg_tables WHERE schemaname = '{tenant}'"
            else:  # its DDL has no transactions
                query = f"SELECT version_num FROM {tenant}.alembic_version"
            assert self.database.rows(query) == []


@pytest.fixture(params=["postgresql", "mariadb"])
def fleet(request: pytest.FixtureRequest, fleet_project: Project) -> Iterator[Fleet]:
    """A fleet without tenants on each server in turn; all that it leaves is taken away."""
    database: Database = request.getfixturevalue(request.param)
    for folder in ("hold", "started"):
        (fleet_project.folder / folder).mkdir()
    found = Fleet(fleet_project, database)
    fleet_project.set(sqlalchemy__url=database.text.replace("%", "%%"))
    database.run(
        f"CREATE TABLE {found.log} (tenant VARCHAR(80), revision VARCHAR(10), process INTEGER, "
        "session INTEGER)"
    )
    found.revision("a1")
    yield found
    found.let_go()
    for command in found.commands:
        with suppress(ProcessLookupError):  # workers may be left of a run that has ended
            os.killpg(command.pid, signal.SIGKILL)
        command.communicate()
    if database.kind == "mariadb":
        until(lambda: not found.sessions(), "all sessions have ended")
        database.run(*(f"DROP DATABASE IF EXISTS {name}" for name in found.tenants))


postgresql_only = pytest.mark.parametrize("fleet", ["postgresql"], indirect=True)


def finish(command: subprocess.Popen[str], code: int) -> str:
    """Wait for a command to end with this exit code, and return the last line of its output."""
    output, errors = command.communicate(timeout=60)
    assert command.returncode == code, output + errors
    return output.splitlines()[-1]


def summary(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of the output."""
    return done.stdout.splitlines()[-1]


def until_it_says(command: subprocess.Popen[str], words: str) -> None:
    """Read what a command writes to stderr until it says these words."""
    assert command.stderr is not None
    seen = []
    for line in command.stderr:
        seen.append(line)
        if words in line:
            return
    pytest.fail(f"It has not said {words!r}:\n{''.join(seen)}")


def failures(errors: str) -> dict[str, str]:
    """Return the tenants that the output names as failed, with their errors; five of an entry."""
    entries = [line.partition(" failed: ") for line in errors.splitlines() if " failed: " in line]
    return {name: error for who, _, error in entries for name in re.findall("'(.+?)'", who)}


def test_tenants_are_shared_among_processes(fleet: Fleet) -> None:
    """Four jobs are four processes; each keeps one session, and each tenant is upgraded once."""
    fleet.revision("b2", down="a1")
    fleet.create(12)
    done = fleet.upgrade("-x", "jobs=4")
    assert summary(done) == "12 upgraded, 0 current, 0 failed"
    expected = [(tenant, revision) for tenant in fleet.tenants for revision in ("a1", "b2")]
    assert sorted(fleet.ran("tenant", "revision")) == expected
    pairs = set(fleet.ran("process", "session"))
    assert len(pairs) == 4
    assert len({process for process, _ in pairs}) == len({session for _, session in pairs}) == 4
    assert len(set(fleet.ran("tenant", "process"))) == 12


def test_slow_tenant_holds_up_no_other(fleet: Fleet) -> None:
    """While one tenant takes its time, the other worker does all the rest."""
    fleet.create(8)
    slow, *rest = fleet.tenants
    fleet.hold(slow)
    command = fleet.start("-x", "jobs=2")
    fleet.at(slow)
    until(lambda: len(fleet.ran("tenant")) == 7, "the others are done")
    assert command.poll() is None
    assert sorted(fleet.ran("tenant")) == [(tenant,) for tenant in rest]
    fleet.let_go()
    assert finish(command, 0) == "8 upgraded, 0 current, 0 failed"
    assert sorted(fleet.ran("tenant")) == [(tenant,) for tenant in fleet.tenants]


def test_killed_worker_costs_its_tenant_alone(fleet: Fleet) -> None:
    """A worker killed in a tenant leaves nothing of it; the others go on, and the next run does it."""
    fleet.create(8)
    victim, *rest = fleet.tenants
    fleet.hold(victim)
    command = fleet.start("-x", "jobs=3")
    process, session = fleet.at(victim)
    os.kill(process, signal.SIGKILL)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 1
    assert failures(errors) == {victim: "its worker process was killed by signal 9"}
    assert fleet.ran("tenant") == [(tenant,) for tenant in rest]
    until(lambda: session not in fleet.sessions(), "the killed worker's session has ended")
    fleet.assert_untouched(victim)
    fleet.let_go()
    assert summary(fleet.upgrade("-x", "jobs=3")) == "1 upgraded, 7 current, 0 failed"
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]


def test_run_ends_when_all_workers_are_killed(fleet: Fleet) -> None:
    """Without workers the run ends, and counts what it has not come to."""
    fleet.create(8)
    fleet.hold(*fleet.tenants)
    command = fleet.start("-x", "jobs=2")
    for tenant in fleet.tenants[:2]:
        os.kill(fleet.at(tenant)[0], signal.SIGKILL)
    assert finish(command, 1) == "0 upgraded, 0 current, 2 failed, 6 left"
    assert fleet.ran("tenant") == []
    fleet.let_go()
    assert summary(fleet.upgrade("-x", "jobs=2")) == "8 upgraded, 0 current, 0 failed"
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]


def test_killed_parent_leaves_no_workers(fleet: Fleet) -> None:
    """Workers whose parent was killed end after their tenants, without a lock that stays."""
    fleet.create(8)
    held = fleet.tenants[:3]
    fleet.hold(*held)
    command = fleet.start("-x", "jobs=3")
    processes = [fleet.at(tenant)[0] for tenant in held]
    os.kill(command.pid, signal.SIGKILL)
    command.wait(timeout=30)
    fleet.let_go()
    until(lambda: not any(map(is_alive, processes)), "the workers have ended")
    until(lambda: not fleet.sessions(), "their sessions have ended")
    assert fleet.ran("tenant") == [(tenant,) for tenant in held]
    done = fleet.upgrade("-x", "jobs=3", "-x", "lock_timeout=0")
    assert summary(done) == "5 upgraded, 3 current, 0 failed"
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]


def test_two_runners_share_a_fleet(fleet: Fleet) -> None:
    """Of two runs at once both succeed, and each revision of each tenant runs once."""
    fleet.revision("b2", down="a1")
    fleet.create(30)
    commands = [fleet.start("-x", "jobs=2") for _ in range(2)]
    counts = [int(finish(command, 0).split()[0]) for command in commands]
    assert sum(counts) == 30
    expected = [(tenant, revision) for tenant in fleet.tenants for revision in ("a1", "b2")]
    assert sorted(fleet.ran("tenant", "revision")) == expected
    for tenant in fleet.tenants:
        assert fleet.database.versions(f"{tenant}.alembic_version") == {"b2"}


def test_tenant_of_another_runner_comes_last_and_is_waited_for(fleet: Fleet) -> None:
    """A tenant that another run is at is left to it, and waited for when all else is done."""
    fleet.create(30)
    held, *rest = fleet.tenants
    fleet.hold(held)
    first = fleet.start()
    fleet.at(held)
    second = fleet.start()
    until_it_says(second, "Waiting up to 60 seconds for ")
    assert fleet.ran("tenant") == [(tenant,) for tenant in rest]
    fleet.let_go()
    assert finish(first, 0) == "1 upgraded, 29 current, 0 failed"
    assert finish(second, 0) == "29 upgraded, 1 current, 0 failed"
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]


@pytest.mark.parametrize("jobs", [1, 2])
def test_runner_takes_over_from_one_that_is_killed(fleet: Fleet, jobs: int) -> None:
    """What a run was at when all its processes were killed is done by the other run."""
    fleet.create(30)
    held = fleet.tenants[:jobs]
    fleet.hold(*held)
    killed = fleet.start("-x", f"jobs={jobs}")
    sessions = {fleet.at(tenant)[1] for tenant in held}
    other = fleet.start("-x", f"jobs={jobs}")
    until_it_says(other, "Waiting up to 60 seconds for ")
    os.killpg(killed.pid, signal.SIGKILL)
    until(lambda: not sessions & fleet.sessions(), "the sessions of the killed run have ended")
    fleet.let_go()
    assert finish(other, 0) == "30 upgraded, 0 current, 0 failed"
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]
    assert summary(fleet.upgrade()) == "0 upgraded, 30 current, 0 failed"


def test_tenant_of_another_runner_without_time_to_wait(fleet: Fleet) -> None:
    """With lock_timeout=0 a tenant that another run is at fails with the lock's own sentence."""
    fleet.create(4)
    held, *rest = fleet.tenants
    fleet.hold(held)
    first = fleet.start()
    _, session = fleet.at(held)
    done = fleet.upgrade("-x", "lock_timeout=0", "-x", "jobs=2", ok=False)
    assert summary(done) == "3 upgraded, 0 current, 1 failed"
    ((failed, error),) = failures(done.stderr).items()
    assert failed == held
    assert error.startswith("Another process migrates this database: waited 0 seconds for the ")
    assert f" of {held}.alembic_version, held by " in error
    assert f" {session}; run the command again when it has finished" in error
    assert fleet.ran("tenant") == [(tenant,) for tenant in rest]
    fleet.let_go()
    assert finish(first, 0) == "1 upgraded, 3 current, 0 failed"


SIGNALS = [
    pytest.param(signal.SIGINT, os.kill, 130, id="interrupt-parent"),
    pytest.param(signal.SIGINT, os.killpg, 130, id="interrupt-group"),
    pytest.param(signal.SIGTERM, os.kill, 143, id="terminate-parent"),
    pytest.param(signal.SIGTERM, os.killpg, 143, id="terminate-group"),
]
Send = Callable[[int, int], None]


def signalled(
    fleet: Fleet, jobs: int, number: int, send: Send
) -> tuple[subprocess.Popen[str], list[str]]:
    """Start a run, hold each job in a tenant, and send a signal; return the run and these tenants."""
    held = fleet.tenants[:jobs]
    fleet.hold(*held)
    command = fleet.start("-x", f"jobs={jobs}")
    for tenant in held:
        fleet.at(tenant)
    send(command.pid, number)
    until_it_says(command, f"Finishing the {jobs} tenants in progress")
    return command, held


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(("number", "send", "code"), SIGNALS)
def test_signal_ends_the_run_after_the_tenants_in_flight(
    fleet: Fleet, jobs: int, number: int, send: Send, code: int
) -> None:
    """Ctrl-C lets the tenants in progress finish and starts no more; the next run does the rest."""
    fleet.create(8)
    command, held = signalled(fleet, jobs, number, send)
    fleet.let_go()
    assert finish(command, code) == f"{jobs} upgraded, 0 current, 0 failed, {8 - jobs} left"
    assert fleet.ran("tenant") == [(tenant,) for tenant in held]
    assert summary(fleet.upgrade()) == f"{8 - jobs} upgraded, {jobs} current, 0 failed"
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(("number", "send", "code"), SIGNALS)
def test_second_signal_rolls_back(
    fleet: Fleet, jobs: int, number: int, send: Send, code: int
) -> None:
    """A second Ctrl-C ends the tenants in progress without a trace, and the summary is printed."""
    fleet.create(5)
    command, held = signalled(fleet, jobs, number, send)
    send(command.pid, number)
    assert finish(command, code) == "0 upgraded, 0 current, 0 failed, 5 left"
    until(lambda: not fleet.sessions(), "all sessions have ended")
    assert fleet.ran("tenant") == []
    fleet.assert_untouched(*held)
    fleet.let_go()
    assert summary(fleet.upgrade()) == "5 upgraded, 0 current, 0 failed"
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]


@pytest.mark.parametrize("jobs", [1, 2])
def test_lost_connection_fails_one_tenant(fleet: Fleet, jobs: int) -> None:
    """A tenant whose session the server ends fails with its error; its worker connects again."""
    fleet.create(8)
    victim, *rest = fleet.tenants
    fleet.hold(victim, *(fleet.tenants[1:2] if jobs == 2 else []))
    command = fleet.start("-x", f"jobs={jobs}")
    process, session = fleet.at(victim)
    kill = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}
    fleet.database.run(kill[fleet.database.kind].format(session))
    until(lambda: session not in fleet.sessions(), "the session has ended")
    (fleet.project.folder / "hold" / victim).unlink()
    if jobs == 2:  # the other worker goes on when this one has done the rest
        until(lambda: len(fleet.ran("tenant")) == 6, "the same worker has done the rest")
        fleet.let_go()
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 1
    ((failed, error),) = failures(errors).items()
    assert failed == victim
    assert error.startswith("OperationalError: ")
    assert "(revision a1, line " in error
    assert fleet.ran("tenant") == [(tenant,) for tenant in rest]
    sessions = {each for own, each in fleet.ran("process", "session") if own == process}
    assert len(sessions) == 1
    assert sessions != {session}
    fleet.assert_untouched(victim)
    assert summary(fleet.upgrade()) == "1 upgraded, 7 current, 0 failed"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_revision_that_times_out_is_not_run_again(fleet: Fleet, jobs: str) -> None:
    """A revision that raises for a timeout of its own fails at once: only a lock is tried again."""
    fleet.create(3)
    fleet.project.revision(
        "a1",
        "from pathlib import Path\nimport subprocess\n"
        "with Path(__file__).with_name('tries').open('a') as file:\n    file.write('.')\n"
        "raise subprocess.TimeoutExpired('own', 5)\n",
    )
    done = fleet.upgrade("-x", f"jobs={jobs}", ok=False)
    assert summary(done) == "0 upgraded, 0 current, 3 failed"
    assert set(failures(done.stderr)) == set(fleet.tenants)
    tries = fleet.project.folder / "migrations" / "versions" / "tries"
    assert tries.read_text() == "..."
    fleet.assert_untouched(*fleet.tenants)


PROGRAM = """
import asyncio, logging, os, signal, sys, threading
from pathlib import Path
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    loggers = [logging.getLogger(name) for name in ("", "alembic", "own", "sqlalchemy")]
    return handlers, [(each.level, each.disabled, list(each.handlers)) for each in loggers]

def upgrade():
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        Path("error").write_text(str(error))

logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
signal.signal(signal.SIGTERM, lambda *_: None)
config = Config("alembic.ini")
before = state()
{body}
assert state() == before
"""


def program(fleet: Fleet, body: str) -> tuple[str, str | None]:
    """Run a program that calls `upgrade()`; return its stderr, and the CommandError's words."""
    done = fleet.project.python(PROGRAM.format(body=body))
    assert done.stdout == ""
    error = fleet.project.folder / "error"
    return done.stderr, error.read_text() if error.exists() else None


def test_program_has_workers_too(fleet: Fleet) -> None:
    """A program gets a CommandError with the summary and the failed tenants, and stays as it was."""
    fleet.create(8)
    fleet.project.set(jobs="3")
    bad = [fleet.tenants[3], fleet.tenants[6]]
    fleet.list([*fleet.tenants, "nobody's"])
    file = fleet.project.folder / "migrations" / "versions" / "a1.py"
    file.write_text(
        file.read_text().replace(
            "op.execute(",
            f"if tenant in {bad}:\n        raise ValueError('bad')\n    op.execute(",
            1,
        )
    )
    errors, error = program(fleet, "upgrade()")
    assert error is not None
    assert error.startswith("6 upgraded, 0 current, 3 failed: ")
    assert f"2 tenants ({bad[0]!r}, {bad[1]!r}): ValueError: bad (revision a1, line " in error
    assert '"nobody\'s": there is no schema or database of this name' in error
    assert "jobs" not in errors
    assert fleet.ran("tenant") == [(each,) for each in fleet.tenants if each not in bad]
    assert len(set(fleet.ran("process"))) == 3
    fleet.assert_untouched(*bad)


def test_program_with_a_second_thread_works_alone(fleet: Fleet) -> None:
    """Beside another thread of the program nothing is forked, and a warning says so."""
    fleet.create(5)
    fleet.project.set(jobs="3")
    errors, error = program(
        fleet,
        "stop = threading.Event()\nthread = threading.Thread(target=stop.wait, name='busy', daemon=True)\nthread.start()\n"
        "Path('process').write_text(str(os.getpid()))\nupgrade()\nstop.set()\nthread.join()",
    )
    assert error is None
    assert errors == (
        "WARNING One process does the work of 3 jobs, since it has other threads (busy), which a "
        "fork would lose.\n"
    )
    own = int((fleet.project.folder / "process").read_text())
    assert fleet.ran("tenant", "process") == [(tenant, own) for tenant in fleet.tenants]


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(
    ("fleet", "driver"),
    [(kind, name) for kind in ("postgresql", "mariadb") for name in DRIVERS[kind][1:]],
    indirect=["fleet"],
)
def test_program_in_an_event_loop(fleet: Fleet, driver: str, jobs: int) -> None:
    """With an async URL the fleet is upgraded beside the event loop that runs in the program."""
    fleet.create(6)
    url = fleet.database.url_for(driver).replace("%", "%%")
    fleet.project.set(jobs=str(jobs), sqlalchemy__url=url)
    _, error = program(fleet, "async def main():\n    upgrade()\n\nasyncio.run(main())")
    assert error is None
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]
    assert len(set(fleet.ran("process"))) == jobs
    assert len(set(fleet.ran("session"))) == jobs


# Runs the alembic command where these packages cannot be imported.
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys({hidden}))
sys.argv[1:] = {args}
runpy.run_module("alembic", run_name="__main__", alter_sys=True)
"""


def written_to(terminal: int) -> str:
    """Return what was written to a terminal until its end, without colours, and close our side."""
    seen = b""
    with suppress(OSError):  # how Linux tells the end of a terminal
        while part := os.read(terminal, 4096):
            seen += part
    os.close(terminal)
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen.decode())


@postgresql_only
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("package", "hidden", "shown"),
    [
        pytest.param("tqdm", [], r"100%\|.* 4/4 \[.*tenant/s\]", id="tqdm"),
        pytest.param("rich", ["tqdm"], r"━+.* 4/4 ", id="rich"),
        pytest.param("alembic", ["tqdm", "rich"], r"4/4 tenants, [\d.]+/s, 0 s left", id="plain"),
    ],
)
def test_progress_on_a_terminal(
    fleet: Fleet, package: str, hidden: list[str], shown: str, jobs: int
) -> None:
    """On a terminal a bar counts the tenants, by tqdm, by rich, or without either."""
    pytest.importorskip(package)
    fleet.create(4)
    code = WITHOUT.format(hidden=hidden, args=["-x", f"jobs={jobs}", "upgrade", "head"])
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 25, 100, 0, 0))
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=fleet.project.folder,
        env={**fleet.project.env, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        start_new_session=True,
    )
    fleet.commands.append(command)
    os.close(terminal)
    written = written_to(ours)
    assert finish(command, 0) == "4 upgraded, 0 current, 0 failed"
    assert re.search(shown, written), written
    assert "Tenant '" not in written
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]


@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_without_a_terminal(fleet: Fleet, jobs: int) -> None:
    """Elsewhere each tenant has a line of its own, and the summary is all that stdout holds."""
    fleet.create(4)
    done = fleet.upgrade("-x", f"jobs={jobs}")
    lines = re.findall(
        r"^INFO  \[alembic\.env\] Tenant '(.+)': upgraded in \d+\.\d\d s$",
        done.stderr,
        re.MULTILINE,
    )
    assert sorted(lines) == fleet.tenants
    assert done.stdout == "4 upgraded, 0 current, 0 failed\n"
    assert fleet.ran("tenant") == [(tenant,) for tenant in fleet.tenants]


# In the models of the project: notes what goes to the server.
NOTES = """
from pathlib import Path
from sqlalchemy import Engine, event

def note(words):
    with (Path(__file__).parent / "sent").open("a") as file:
        print(" ".join(words.split()), file=file)

event.listen(Engine, "before_cursor_execute", lambda _c, _u, statement, *_: note(statement))
event.listen(Engine, "commit", lambda _: note("COMMIT"))
event.listen(Engine, "rollback", lambda _: note("ROLLBACK"))
"""


def sent(fleet: Fleet, tenants: list[str]) -> list[str]:
    """Upgrade tenants in one process, and return what it has sent."""
    file = fleet.project.folder / "sent"
    file.unlink(missing_ok=True)
    fleet.list(tenants)
    fleet.upgrade()
    return file.read_text().splitlines()


def test_round_trips_do_not_grow_with_tenants_at_the_target(fleet: Fleet) -> None:
    """With nothing to do 150 tenants cost what ten do."""
    with (fleet.project.folder / "models.py").open("a") as models:
        models.write(NOTES)
    fleet.create(150)
    fleet.upgrade("-x", "jobs=2")
    few, many = (sent(fleet, fleet.tenants[:count]) for count in (10, 150))
    assert (len(few), len(many)) == (3, 3), many
    assert len(fleet.ran("tenant")) == 150


@pytest.mark.parametrize(
    ("fleet", "start", "each"),
    [
        ("postgresql", "a1", 6),
        ("postgresql", None, 7),
        ("mariadb", "a1", 9),
        ("mariadb", None, 10),
    ],
    indirect=["fleet"],
)
def test_round_trips_of_a_tenant(fleet: Fleet, start: str | None, each: int) -> None:
    """A tenant costs what its migration needs, and no look at the catalog for its version table."""
    fleet.create(30)
    (fleet.project.folder / "migrations" / "versions" / "a1.py").unlink()
    fleet.project.revision("a1", "pass")
    if start:
        fleet.upgrade("-x", "jobs=2")
        fleet.project.revision("b2", "pass", down="a1")
    with (fleet.project.folder / "models.py").open("a") as models:
        models.write(NOTES)
    few, many = sent(fleet, fleet.tenants[:10]), sent(fleet, fleet.tenants[10:])
    assert len(many) - len(few) == 10 * each, Counter(many).most_common(20)
    looks = [line for line in many if "pg_c" in line or "information_schema" in line]
    assert len(looks) == 1, looks
    for tenant in fleet.tenants:
        head = "b2" if start else "a1"
        assert fleet.database.versions(f"{tenant}.alembic_version") == {head}


# In the models of the project: notes each fork.
FORKS = """
import os
from pathlib import Path
file = Path(__file__).with_name("forks")
os.register_at_fork(before=lambda: file.open("a").write("fork "))
"""


def test_no_more_processes_than_there_is_work(fleet: Fleet) -> None:
    """Jobs beyond the server's connections are refused before a fork; without work there is none."""
    with (fleet.project.folder / "models.py").open("a") as models:
        models.write(FORKS)
    forks = fleet.project.folder / "forks"
    fleet.create(3)
    done = fleet.upgrade("-x", "jobs=2000", ok=False)
    assert done.stdout.startswith("FAILED: 2000 jobs need 2000 connections, and the server has ")
    assert not forks.exists()
    assert summary(fleet.upgrade("-x", "jobs=8")) == "3 upgraded, 0 current, 0 failed"
    assert forks.read_text().split() == ["fork"] * 3
    assert summary(fleet.upgrade("-x", "jobs=8")) == "0 upgraded, 3 current, 0 failed"
    assert forks.read_text().split() == ["fork"] * 3


def test_threads_of_the_tenants_function_stop_forks(fleet: Fleet) -> None:
    """Where the function that names the tenants leaves a thread, one process works, and says so."""
    fleet.create(3)
    (fleet.project.folder / "who.py").write_text(
        "import threading\n\ndef names(connection):\n"
        "    threading.Thread(target=threading.Event().wait, name='left', daemon=True).start()\n"
        f"    return {fleet.tenants!r}\n"
    )
    fleet.project.set(tenants="who:names")
    done = fleet.upgrade("-x", "jobs=2")
    assert "One process does the work of 2 jobs, since it has other threads (left)" in done.stderr
    assert summary(done) == "3 upgraded, 0 current, 0 failed"
    assert len(set(fleet.ran("process"))) == 1
