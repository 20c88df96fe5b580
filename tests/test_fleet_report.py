"""What a run says of thousands of tenants: one entry for each error, fields, a bar, the time."""

from __future__ import annotations

import configparser
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios

import pytest
import yaml
from alembic import command
from alembic.util import CommandError
from conftest import ROOT, Database, Project
from test_fleet_workers import WITHOUT, written_to
from test_settings import with_x

# A revision that fails in the tenants of a list.
FAILS = """
name = op.get_bind().engine.url.database.rpartition('/')[2].removesuffix('.db')
if name in {bad}:
    raise ValueError({error})
op.create_table('own', sa.Column('id', sa.Integer))
"""


@pytest.fixture
def files(fleet_project: Project) -> Project:
    """A project whose tenants are files; those of ten exist."""
    (fleet_project.folder / "data").mkdir()
    fleet_project.set(sqlalchemy__url="sqlite:///%(here)s/data/{tenant}.db")
    create(fleet_project, *(f"t{number}" for number in range(10)))
    return fleet_project


def create(project: Project, *tenants: str) -> None:
    """Create the files of tenants, and let them be the fleet."""
    for tenant in tenants:
        (project.folder / "data" / f"{tenant}.db").touch()
    (project.folder / "who.py").write_text(f"def names(connection):\n    return {tenants!r}\n")
    project.set(tenants="who:names", tenants_url="sqlite://")


def fail(project: Project, *bad: str, error: str = "'bad'") -> None:
    """Let a revision fail in these tenants."""
    project.revision("a1", FAILS.format(bad=bad, error=error))


def failures(errors: str) -> list[str]:
    """Return the lines that name failed tenants."""
    return [line for line in errors.splitlines() if line.startswith("ERROR [alembic.env]")]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_same_words_are_one_entry(files: Project, jobs: str) -> None:
    """Tenants with one error are one entry, with their number and five names; others stand alone."""
    fail(files, *(f"t{number}" for number in range(9)), error="'bad' if name != 't4' else 'worse'")
    done = files.alembic("-x", f"jobs={jobs}", "upgrade", "head", ok=False)
    assert done.stdout == "1 upgraded, 0 current, 9 failed\n"
    entries = failures(done.stderr)
    assert len(entries) == 2
    (many,) = [each for each in entries if "8 tenants" in each]
    found = re.fullmatch(
        r"ERROR \[alembic\.env\] 8 tenants \(((?:'t\d', ){5})…\) failed: "
        r"ValueError: bad \(revision a1, line \d+\)",
        many,
    )
    assert found, many
    assert len(set(found[1].split(", "))) == 6  # five names, and what is after the last comma
    (one,) = [each for each in entries if each != many]
    assert re.search(r"Tenant 't4' failed: ValueError: worse \(revision a1, line \d+\)$", one)


def test_many_missing_tenants(files: Project) -> None:
    """Two hundred tenants without a database are one entry, and no line of the log for each."""
    missing = [f"none{number}" for number in range(200)]
    files.set(tenants=" ".join(["t1", *missing]), tenants_url=None)
    files.revision("a1")
    done = files.alembic("upgrade", "head", ok=False)
    assert done.stdout == "1 upgraded, 0 current, 200 failed\n"
    (entry,) = failures(done.stderr)
    assert "200 tenants ('none0', 'none1', 'none2', 'none3', 'none4', …) failed: there is" in entry
    assert done.stderr.count("none") == 5


def test_a_program_gets_the_entries(files: Project) -> None:
    """The CommandError has the entries of the report, a detail of the server in them."""
    fail(files, "t1", "t3")
    with pytest.raises(CommandError) as raised:
        command.upgrade(files.config(), "head")
    assert re.fullmatch(
        r"8 upgraded, 0 current, 2 failed: 2 tenants \('t1', 't3'\): ValueError: bad "
        r"\(revision a1, line \d+\); fix it, and run the command again\.",
        str(raised.value),
    )


def test_one_full_stop_in_the_error_of_a_program(files: Project) -> None:
    """An error that ends with a full stop is followed by what to do, without a second mark."""
    (files.folder / "data" / "t3.db").unlink()
    with pytest.raises(CommandError, match=r"'t3': .* by -x create=true; fix it, and run "):
        command.upgrade(files.config(), "head")


def test_the_detail_of_the_server_is_part_of_the_words(
    fleet_project: Project, postgresql: Database
) -> None:
    """Tenants whose errors differ in the server's DETAIL alone are entries of their own."""
    names = ["a", "b", "c"]
    fleet_project.set(sqlalchemy__url=postgresql.text.replace("%", "%%"), tenants=" ".join(names))
    fleet_project.revision("a1", "op.create_table('own', sa.Column('id', sa.Integer))")
    command.upgrade(with_x(fleet_project.config(), "create=true"), "head")
    for name, row in zip(names, (7, 7, 8), strict=True):
        postgresql.run(f"INSERT INTO {name}.own VALUES ({row}), ({row})")
    fleet_project.revision("b2", "op.create_unique_constraint('u', 'own', ['id'])", down="a1")
    with pytest.raises(CommandError) as raised:
        command.upgrade(fleet_project.config(), "head")
    assert "2 tenants ('a', 'b'): " in str(raised.value)
    assert "DETAIL: Key (id)=(7) is duplicated." in str(raised.value)
    assert "; 'c': " in str(raised.value)
    assert "DETAIL: Key (id)=(8) is duplicated." in str(raised.value)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_raiseerr(files: Project, jobs: str) -> None:
    """`--raiseerr` shows the traceback of the first tenant of each entry, and no other run has one."""
    fail(files, "t1", "t2", "t3")
    args = ["-x", f"jobs={jobs}", "upgrade", "head"]
    done = files.alembic("--raiseerr", *args, ok=False)
    assert done.returncode == 1
    assert done.stdout == "7 upgraded, 0 current, 3 failed\n"
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert "\n    raise ValueError('bad')\nValueError: bad\n" in done.stderr
    assert "Traceback" not in files.alembic(*args, ok=False).stderr


def test_debug_shows_each_failure_when_it_happens(files: Project) -> None:
    """At level DEBUG the logger has a traceback for each failure, before the tenants after it."""
    fail(files, "t1", "t2")
    files.set("logger_alembic", level="DEBUG")
    errors = files.alembic("upgrade", "head", ok=False).stderr
    assert errors.count("Traceback (most recent call last)") == 2
    assert errors.index("ValueError: bad") < errors.index("Tenant 't9': upgraded")
    errors = files.alembic("upgrade", "head", ok=False).stderr
    assert "Tenant 't1': failed" in errors


def test_the_time_it_took(files: Project) -> None:
    """The log has it before the summary, which stays as it is."""
    files.revision("a1")
    done = files.alembic("upgrade", "head")
    assert re.search(r"^INFO  \[alembic\.env\] The run took \d+\.\d s$", done.stderr, re.MULTILINE)
    assert done.stdout == "10 upgraded, 0 current, 0 failed\n"


@pytest.mark.parametrize("replay", ["false", "true"])
def test_records_as_json(files: Project, replay: str) -> None:
    """With the formatter of the docs each line is JSON, and the tenants' outcomes add up."""
    hostile = ['say "so"', "it's", "new\nline", ":x", "{x}", "ünï", "tab\t"]
    create(files, *hostile, "t1", "t2", "old")
    fail(files, "t1", "t2")
    files.revision("b2", "op.execute('INSERT INTO own VALUES (1)')", down="a1")
    command.upgrade(with_x(files.config(), "tenant=old"), "head")
    shutil.copy(ROOT / "docs" / "json_lines.py", files.folder)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "docs" / "json_lines.ini")
    for section in parser.sections():
        files.set(section, **parser[section])
    files.set("logger_alembic", level="DEBUG")
    done = files.alembic("-x", "jobs=2", "-x", f"replay={replay}", "upgrade", "head", ok=False)
    assert done.stdout == "7 upgraded, 1 current, 2 failed\n"
    records = [json.loads(line) for line in done.stderr.splitlines()]
    tenants = {each["tenant"]: each for each in records if "tenant" in each}
    assert {name: each["outcome"] for name, each in tenants.items()} == {
        **dict.fromkeys(hostile, "upgraded"),
        **dict.fromkeys(["t1", "t2"], "failed"),
        "old": "current",
    }
    assert {name: each["revision"] for name, each in tenants.items()} == {
        **dict.fromkeys(hostile, "b2"),
        "old": "b2" if replay == "true" else None,  # the version was read before, or not
        **dict.fromkeys(["t1", "t2"], "a1"),
    }
    assert all(each["seconds"] > 0 for name, each in tenants.items() if name != "old")
    (total,) = [each for each in records if each["message"].startswith("The run took")]
    assert total["seconds"] > max(each["seconds"] for each in tenants.values())
    assert any("ValueError: bad" in each.get("traceback", "") for each in records)


def test_revision_of_a_record(files: Project, caplog: pytest.LogCaptureFixture) -> None:
    """The field is where a tenant is afterwards, after a downgrade too, and empty at base."""
    files.revision("a1")
    files.revision("b2", down="a1")
    caplog.set_level("DEBUG", "alembic.env")
    for run, target, expected in (
        (command.upgrade, "head", ("upgraded", "b2")),
        (command.upgrade, "head", ("current", None)),  # only its own run has seen where it is
        (command.downgrade, "-1", ("downgraded", "a1")),
        (command.stamp, "b2", ("stamped", "b2")),
        (command.downgrade, "base", ("downgraded", "")),
    ):
        caplog.clear()
        run(with_x(files.config(), "tenant=t1"), target)
        (record,) = [vars(each) for each in caplog.records if "tenant" in vars(each)]
        assert (record["outcome"], record["revision"]) == expected


@pytest.mark.parametrize(
    ("package", "hidden"),
    [("tqdm", []), ("rich", ["tqdm"]), ("alembic", ["tqdm", "rich"])],
    ids=["tqdm", "rich", "plain"],
)
def test_failures_on_a_terminal(files: Project, package: str, hidden: list[str]) -> None:
    """The bar shows an error when it comes for the first time, on a line of its own."""
    pytest.importorskip(package)
    fail(files, "t1", "t2", error="'[red]bad[/red]'")
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 25, 200, 0, 0))
    code = WITHOUT.format(hidden=hidden, args=["upgrade", "head"])
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=files.folder,
        env={**files.env, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    shown = written_to(ours)
    output, _ = command.communicate()
    assert output == b"8 upgraded, 0 current, 2 failed\n"
    bar, _, end = shown.partition("ERROR [alembic.env]")
    assert len(re.findall(r"Tenant 't1' failed: ValueError: \[red\]bad\[/red\]", bar)) == 1
    assert "'t2'" not in bar
    assert bar.index("Tenant 't1'") < bar.rindex("10/10")
    assert " 2 tenants ('t1', 't2') failed: " in end


def test_the_manifest() -> None:
    """The Job of the docs gives each pod its part, and the runs of Docker Compose share the fleet."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load((ROOT / "docs" / "fleet-job.yaml").read_text(encoding="utf-8"))
    kubernetes_validate.validate(job, "1.33", strict=True)
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    part = f"part=$(JOB_COMPLETION_INDEX)/{spec['completions']}"
    assert container["command"][:3] == ["alembic", "-x", part]
    compose = yaml.safe_load((ROOT / "docs" / "fleet-compose.yaml").read_text(encoding="utf-8"))
    commands = [each["command"] for each in compose["services"].values()]
    assert [each[2] for each in commands] == [f"part={index}/3" for index in range(3)]
    assert all(each["image"] == "myapp" for each in compose["services"].values())
