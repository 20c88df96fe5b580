"""`alembic-templates try`, on databases that it must leave as it found them."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import socketserver
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import DRIVERS, SUPPORTED, Database, kind_of
from processes import kept_environment, run_python, start_python
from sqlalchemy import URL

from alembic_templates import cli
from alembic_templates._signals import undisturbed
from alembic_templates._try import _expect
from alembic_templates.errors import TemplatesError

STEPS = [
    "render the template",
    "autogenerate a revision",
    "upgrade",
    "check",
    "a series in a caller's transaction",
    "downgrade",
]
# Its % and the @ and / that a URL quotes by one are what an ini parser and a URL trip over.
PASSWORD = "s3cret/p@ss%word"
SERVER_DRIVERS = [*DRIVERS["postgresql"], *DRIVERS["mariadb"]]


@dataclass(frozen=True)
class Trial:
    """A folder to run the command in, with one for its temporary files."""

    folder: Path
    template: str = "shared"

    def start(self, *args: str | Path) -> subprocess.Popen[str]:
        """Start `alembic-templates try` without waiting for it."""
        command = ["-m", cli.__name__, "try", self.template, *args]
        return start_python(command, self.folder, self.env)

    @property
    def env(self) -> dict[str, str]:
        """The environment variables for the command."""
        kept = kept_environment("PYTHONPATH")
        own = {"HOME": str(self.folder), "TMPDIR": str(self.temporary)}
        return {**kept, **own, "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def temporary(self) -> Path:
        """The folder for temporary files."""
        return self.folder / "tmp"

    def run(self, *args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `alembic-templates try`; fail the test unless it ends with this exit code."""
        command = ["-m", cli.__name__, "try", self.template, *args]
        return self.ended(run_python(command, self.folder, self.env), code=code)

    def end(self, process: subprocess.Popen[str], *, code: int) -> subprocess.CompletedProcess[str]:
        """Wait for the command; fail the test unless it ends as it should, leaving no file."""
        try:
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
        done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
        return self.ended(done, code=code)

    def ended(
        self, done: subprocess.CompletedProcess[str], *, code: int
    ) -> subprocess.CompletedProcess[str]:
        """Fail the test unless the command has ended as it should, leaving no file."""
        if done.returncode != code or "Traceback" in done.stderr:
            pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        assert list(self.temporary.iterdir()) == []
        return done

    def refused(self, *args: str | Path) -> str:
        """Run the command, which must fail with one sentence before any step, and return that."""
        done = self.run(*args, code=1)
        assert done.stdout == ""
        return self.sentence(done)

    def sentence(self, done: subprocess.CompletedProcess[str]) -> str:
        """Return the one sentence that the command has written to standard error."""
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith(".\n")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("error: ").removesuffix("\n")


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """A folder to run the command in."""
    folder = tmp_path / "trial"
    (folder / "tmp").mkdir(parents=True)
    return Trial(folder)


def places(database: Database) -> set[str]:
    """Return the names of the schemas, or of the databases, that a trial has made."""
    query = {
        "postgresql": "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'alembic_templates_try%'",
        "mariadb": "SHOW DATABASES LIKE 'alembic_templates_try%'",
    }[database.kind]
    return {str(name) for (name,) in database.rows(query)}


def wait(seconds: float, fails: str) -> Iterator[None]:
    """Give many turns within some seconds, then fail the test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.01)
    pytest.fail(fails)


@contextlib.contextmanager
def untouched(database: Database) -> Iterator[None]:
    """Hold that a database's own table of the trial's name stays, and that nothing is added to it.

    On MariaDB the trials of other tests come and go meanwhile; only what a trial leaves behind
    stays.
    """
    database.run("CREATE TABLE author (mine INTEGER)", "INSERT INTO author VALUES (42)")
    before = set() if database.kind == "sqlite" else places(database)
    yield
    assert database.tables() == {"author"}
    assert database.rows("SELECT * FROM author") == [(42,)]
    if database.kind != "sqlite":
        left = places(database) - before
        for _ in wait(30, f"left behind: {left}"):
            if not left & places(database):
                break


@contextlib.contextmanager
def user(database: Database, privileges: str) -> Iterator[URL]:
    """Make a user with PASSWORD, give a URL of it, and remove it."""
    name = f"at_{uuid.uuid4().hex[:12]}"
    if database.kind == "postgresql":
        database.run(f"CREATE ROLE {name} LOGIN {privileges} PASSWORD '{PASSWORD}'")
        removed = f"DROP ROLE {name}"
    else:
        database.run(f"CREATE USER {name}@'%' IDENTIFIED BY '{PASSWORD}'")
        database.run(f"GRANT {privileges} ON *.* TO {name}@'%'")
        removed = f"DROP USER {name}@'%'"
    yield database.url.set(username=name, password=PASSWORD)
    database.run(removed)


def shown(url: URL) -> str:
    """Return a URL as users write it."""
    return url.render_as_string(hide_password=False)


def assert_passed(stdout: str, driver: str, template: str = "shared") -> None:
    """Hold that a trial's output shows every step as passed, with its time.

    MariaDB commits each DDL statement, so a series of commands there has nothing to roll back.
    """
    first, *steps, last = stdout.splitlines()
    assert first == f"{template} on {driver}"
    found = [re.fullmatch(r"  (.{35}) (.*)  \d+\.\d\d s", line) for line in steps]
    assert [match and match[1].rstrip() for match in found] == STEPS
    outcomes = ["ok"] * len(STEPS)
    outcomes[4] += (
        ", without a rollback" if driver.startswith("mysql") else ", rolled back, nothing stayed"
    )
    assert [match and match[2] for match in found] == outcomes
    assert re.fullmatch(r"6 steps passed in \d+\.\d\d s", last)


@pytest.mark.parametrize(
    ("template", "driver"),
    [
        pytest.param(template, driver, id=f"{template}-{driver}")
        for template, drivers in SUPPORTED.items()
        for driver in drivers
    ],
)
def test_try_passes_on_each_driver(
    trial: Trial, template: str, driver: str, request: pytest.FixtureRequest
) -> None:
    """Every step passes on each driver, and the database and the folders stay as they were."""
    database: Database = request.getfixturevalue(kind_of(driver))
    with untouched(database):
        done = replace(trial, template=template).run("--url", database.url_for(driver))
    assert_passed(done.stdout, driver, template)
    assert done.stderr == ""
    assert [path.name for path in trial.folder.iterdir()] == ["tmp"]


@pytest.mark.parametrize(
    ("template", "driver"),
    [
        pytest.param("sync", "sqlite", id="sync"),
        pytest.param("asyncio", "sqlite+aiosqlite", id="asyncio"),
        pytest.param("shared", "sqlite", id="shared"),
        pytest.param("multitenant", "sqlite", id="multitenant"),
    ],
)
def test_try_needs_no_url(trial: Trial, template: str, driver: str) -> None:
    """Without a URL the trial is of SQLite, in a file of its own."""
    done = replace(trial, template=template).run()
    assert_passed(done.stdout, driver, template)
    assert done.stderr == ""
    assert [path.name for path in trial.folder.iterdir()] == ["tmp"]


@pytest.mark.parametrize(
    ("kind", "privileges"),
    [
        pytest.param("postgresql", "SUPERUSER", id="postgresql"),
        pytest.param("mariadb", "ALL", id="mariadb"),
    ],
)
def test_keep_leaves_the_environment_without_the_password(
    trial: Trial, request: pytest.FixtureRequest, kind: str, privileges: str
) -> None:
    """With --keep the environment and its revision stay, and no file knows the password."""
    database: Database = request.getfixturevalue(kind)
    with user(database, privileges) as url, untouched(database):
        done = trial.run("--url", shown(url), "--keep", "new/kept")
    assert_passed(done.stdout, url.drivername)
    kept = trial.folder / "new" / "kept"
    assert {path.name for path in kept.iterdir()} >= {"alembic.ini", "migrations", "models.py"}
    (revision,) = (kept / "migrations" / "versions").glob("*.py")
    assert "create_table" in revision.read_text()
    quoted = shown(url).partition("@")[0].rpartition(":")[2]
    for secret in (PASSWORD, quoted, quoted.replace("%", "%%")):
        assert secret not in done.stdout + done.stderr
        files = [path for path in kept.rglob("*") if path.is_file()]
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def occupied(folder: Path) -> None:
    """Make a folder named `kept` with a file in it."""
    (folder / "kept").mkdir()
    (folder / "kept" / "mine").write_text("mine\n")


def a_file(folder: Path) -> None:
    """Make a file named `kept`."""
    (folder / "kept").write_text("mine\n")


@pytest.mark.parametrize(
    ("make", "keep", "sentence"),
    [
        pytest.param(
            occupied,
            "kept",
            "kept exists already: name a folder that does not.",
            id="folder",
        ),
        pytest.param(
            a_file, "kept", "kept exists already: name a folder that does not.", id="file"
        ),
    ],
)
def test_keep_refuses_a_folder_that_is_no_new_one(
    trial: Trial, make: object, keep: str, sentence: str
) -> None:
    """What stands where the environment should go is left alone."""
    assert callable(make)
    make(trial.folder)
    before = {path: path.read_bytes() for path in trial.folder.rglob("*") if path.is_file()}
    assert trial.refused("--keep", keep) == sentence
    after = {path: path.read_bytes() for path in trial.folder.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("driver", SERVER_DRIVERS)
def test_unreachable_server_is_one_sentence(trial: Trial, driver: str) -> None:
    """The sentence names host and database, never the password, and nothing stays."""
    url = URL.create(driver, "me", PASSWORD, "127.0.0.1", 1, "mydb")
    sentence = trial.refused("--url", shown(url), "--keep", "kept")
    assert sentence.startswith(f"Cannot work on database 'mydb' on 127.0.0.1 with {driver} (")
    what = "SCHEMA" if driver.startswith("postgresql") else "DATABASE"
    assert sentence.endswith(f"): check the URL, its driver, and that its user may CREATE {what}.")
    for secret in (PASSWORD, "s3cret"):
        assert secret not in sentence
    assert not (trial.folder / "kept").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        pytest.param(
            "postgresql+pg8000://me:s3cret@localhost/mydb",
            "Cannot work on database 'mydb' on localhost with postgresql+pg8000 (No module named "
            "'pg8000'): check the URL, its driver, and that its user may CREATE SCHEMA.",
            id="driver-not-installed",
        ),
        pytest.param(
            "postgresql+nope://me:s3cret@localhost/mydb",
            "Cannot work on database 'mydb' on localhost with postgresql+nope (Can't load plugin: "
            "sqlalchemy.dialects:postgresql.nope): check the URL, its driver, and that its user "
            "may CREATE SCHEMA.",
            id="no-such-driver",
        ),
        pytest.param(
            "oracle://me:s3cret@localhost/mydb",
            "Nothing can be tried on oracle: expected SQLite, PostgreSQL, MySQL or MariaDB.",
            id="other-backend",
        ),
        pytest.param(
            "nope://me:s3cret@localhost/mydb",
            "Nothing can be tried on nope: expected SQLite, PostgreSQL, MySQL or MariaDB.",
            id="no-such-backend",
        ),
        *(
            pytest.param(
                f"{driver}://{form}",
                "The --url has an @ too many, so that it cannot be told where its password ends: "
                "write the characters @ : / % of a user or password as %40, %3A, %2F and %25.",
                id=f"{driver}-{name}",
            )
            for driver in SERVER_DRIVERS
            for name, form in {
                "host": "u:pa@s3cret@127.0.0.1:1/x",
                "database": "user/pa:s3cret@127.0.0.1/x",
                "query": "u:pa@127.0.0.1:1/x?a=s3cret@127.0.0.1",
                "cut-query": "u:pa@127.0.0.1:1?s3cret@127.0.0.1/x",
                "brackets": "u:pa@[127.0.0.1]s3cret@127.0.0.1/x",
            }.items()
        ),
        *(
            pytest.param(
                url,
                "The --url cannot be parsed: expected dialect+driver://user:password@host/database.",
                id=name,
            )
            for name, url in {
                "no-url": "me:s3cret",
                "empty": "",
                "port": "postgresql://me:s3cret@localhost:port/mydb",
            }.items()
        ),
    ],
)
def test_url_that_cannot_be_tried_is_one_sentence(trial: Trial, url: str, sentence: str) -> None:
    """A URL that leads nowhere is refused before any step, without its password."""
    assert trial.refused("--url", url) == sentence
    assert [path.name for path in trial.folder.iterdir()] == ["tmp"]


@pytest.mark.parametrize(
    ("kind", "privileges", "what"),
    [
        pytest.param("postgresql", "NOSUPERUSER", "SCHEMA", id="postgresql"),
        pytest.param("mariadb", "SELECT", "DATABASE", id="mariadb"),
    ],
)
def test_user_who_may_create_nothing_is_one_sentence(
    trial: Trial, request: pytest.FixtureRequest, kind: str, privileges: str, what: str
) -> None:
    """A user who may not create the place of a trial is told what is missing."""
    database: Database = request.getfixturevalue(kind)
    with user(database, privileges) as url, untouched(database):
        sentence = trial.refused("--url", shown(url))
    assert "denied" in sentence
    assert sentence.endswith(f"): check the URL, its driver, and that its user may CREATE {what}.")
    assert PASSWORD not in sentence


def on_ddl(database: Database, tag: str, statement: str) -> None:
    """Let PostgreSQL run a PL/pgSQL statement before each DDL statement of a kind."""
    database.run(
        "CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql "
        f"AS $$ BEGIN {statement}; END $$",
        "CREATE EVENT TRIGGER on_ddl ON ddl_command_start "
        f"WHEN TAG IN ('{tag}') EXECUTE FUNCTION on_ddl()",
    )


@pytest.mark.parametrize("driver", DRIVERS["postgresql"])
def test_failing_step_is_named_and_leaves_nothing(
    trial: Trial, postgresql: Database, driver: str
) -> None:
    """The first step that fails ends the trial: its name, the server's reason, exit code 1."""
    with untouched(postgresql):
        on_ddl(postgresql, "CREATE INDEX", "RAISE EXCEPTION 'no index today'")
        done = trial.run("--url", postgresql.url_for(driver), code=1)
        postgresql.run("DROP EVENT TRIGGER on_ddl")
    *_, before, last = done.stdout.splitlines()
    assert re.fullmatch(r"  autogenerate a revision +ok  \d+\.\d\d s", before)
    assert re.fullmatch(r"  upgrade +FAILED", last)
    # SQLAlchemy 2.0 puts the class of asyncpg's error before its text.
    reason = done.stderr.replace("<class 'asyncpg.exceptions.RaiseError'>: ", "")
    assert reason == "error: Step 'upgrade' failed: no index today\n"


def test_place_that_cannot_be_removed_is_named(trial: Trial, postgresql: Database) -> None:
    """Where the server refuses to remove the schema, the user is told the statement to run."""
    on_ddl(postgresql, "DROP SCHEMA", "RAISE EXCEPTION 'nothing is dropped today'")
    done = trial.run("--url", postgresql.text, code=1)
    (name,) = places(postgresql)
    assert_passed(done.stdout, "postgresql+psycopg")
    assert trial.sentence(done) == (
        f"Removal failed (nothing is dropped today): run DROP SCHEMA IF EXISTS {name} CASCADE "
        "yourself."
    )


def test_place_that_stays_does_not_hide_the_step_that_failed(
    trial: Trial, postgresql: Database
) -> None:
    """Where a step and then the removal fail, both are said."""
    on_ddl(postgresql, "CREATE INDEX', 'DROP SCHEMA", "RAISE EXCEPTION 'not today'")
    done = trial.run("--url", postgresql.text, code=1)
    (name,) = places(postgresql)
    assert done.stderr.splitlines() == [
        f"error: Removal failed (not today): run DROP SCHEMA IF EXISTS {name} CASCADE yourself.",
        "error: Step 'upgrade' failed: not today",
    ]


def test_keep_below_a_file_is_a_step_that_failed(trial: Trial) -> None:
    """A folder that cannot be made ends the trial at its first step, and nothing stays."""
    a_file(trial.folder)
    done = trial.run("--keep", "kept/below", code=1)
    assert done.stderr.startswith("error: Step 'render the template' failed: ")
    assert (trial.folder / "kept").read_text() == "mine\n"


def interrupt_asleep(
    trial: Trial, database: Database, driver: str, stop: signal.Signals, tag: str, seconds: int
) -> None:
    """Run a trial whose statement of a kind takes some seconds on the server, and stop it there."""
    with untouched(database):
        on_ddl(database, tag, f"PERFORM pg_sleep({seconds})")
        process = trial.start("--url", database.url_for(driver))
        for _ in wait(30, f"The trial did not come to its {tag}."):
            if database.rows(
                "SELECT 1 FROM pg_stat_activity "
                "WHERE wait_event = 'PgSleep' AND datname = current_database()"
            ):
                break
        process.send_signal(stop)
        done = trial.end(process, code=130)
        database.run("DROP EVENT TRIGGER on_ddl")
        assert places(database) == set()
    assert done.stderr == "error: interrupted\n"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
@pytest.mark.parametrize("driver", DRIVERS["postgresql"])
def test_interrupted_in_a_statement(
    trial: Trial, postgresql: Database, driver: str, stop: signal.Signals
) -> None:
    """Stopped while the server still works on its statement, a trial removes its schema."""
    interrupt_asleep(trial, postgresql, driver, stop, "CREATE INDEX", 600)


@pytest.mark.parametrize("tag", ["CREATE SCHEMA", "DROP SCHEMA"])
@pytest.mark.parametrize("driver", DRIVERS["postgresql"])
def test_interrupted_while_it_makes_or_removes_its_schema(
    trial: Trial, postgresql: Database, driver: str, tag: str
) -> None:
    """Stopped while its schema is being made or removed, a trial still removes it."""
    interrupt_asleep(trial, postgresql, driver, signal.SIGINT, tag, 1)


class StallingProxy(socketserver.ThreadingTCPServer):
    """Pass on what clients and a server say, but keep back, and answer by silence, one word."""

    daemon_threads = True

    def __init__(self, server: tuple[str, int], word: bytes) -> None:
        super().__init__(("127.0.0.1", 0), StallingHandler)
        self.server = server
        self.word = word
        self.stalled = threading.Event()


class StallingHandler(socketserver.BaseRequestHandler):
    """One connection through a StallingProxy."""

    server: StallingProxy

    def handle(self) -> None:
        """Pass on both ways until the client hangs up."""
        with socket.create_connection(self.server.server) as upstream:
            answers = threading.Thread(target=self.answer, args=[upstream])
            answers.start()
            while said := self.request.recv(65536):
                if self.server.word in said:
                    self.server.stalled.set()
                else:
                    upstream.sendall(said)
            upstream.shutdown(socket.SHUT_RDWR)
            answers.join()

    def answer(self, upstream: socket.socket) -> None:
        """Pass on the server's answers, which a client that has gone does not take."""
        with contextlib.suppress(OSError):
            while said := upstream.recv(65536):
                self.request.sendall(said)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
@pytest.mark.parametrize("driver", DRIVERS["mariadb"])
def test_interrupted_while_the_server_is_silent(
    trial: Trial, mariadb: Database, driver: str, stop: signal.Signals
) -> None:
    """Stopped while it waits for an answer, a trial removes its database on a new connection."""
    with (
        untouched(mariadb),
        StallingProxy((mariadb.url.host or "", mariadb.url.port or 3306), b"CREATE INDEX") as proxy,
    ):
        threading.Thread(target=proxy.serve_forever).start()
        before = places(mariadb)
        url = mariadb.url.set(drivername=driver, host="127.0.0.1", port=proxy.server_address[1])
        process = trial.start("--url", shown(url))
        assert proxy.stalled.wait(30)
        assert places(mariadb) - before
        process.send_signal(stop)
        done = trial.end(process, code=130)
        proxy.shutdown()
    assert done.stderr == "error: interrupted\n"


def test_a_second_request_to_stop_is_not_put_off() -> None:
    """What is under way is finished after one Ctrl-C, and given up after the second."""
    done = []
    with pytest.raises(KeyboardInterrupt), undisturbed():
        signal.raise_signal(signal.SIGINT)
        done.append("after the first")
        signal.raise_signal(signal.SIGINT)
        done.append("after the second")
    assert done == ["after the first"]


def test_tables_that_are_missing_are_said(sqlite: Database) -> None:
    """A step after which a table is missing names those that are there."""
    sqlite.run("CREATE TABLE author (id INTEGER)")
    with sqlite.engine().connect() as connection, pytest.raises(TemplatesError) as raised:
        _expect(connection, {"author", "book"})
    assert str(raised.value) == (
        "The database has the tables ['author'], and ['author', 'book'] are expected."
    )
