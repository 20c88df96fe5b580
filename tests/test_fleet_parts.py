"""`-x part=I/N`: the parts of a fleet, for runners that share it."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError
from conftest import Database, Project, imported
from sqlalchemy import URL
from test_settings import with_x

TENANTS = [f"t{number:02}" for number in range(40)]
# The tenants of part 0/4, so that another hash would be seen: it would move tenants between runners.
FIRST = {"t00", "t01", "t08", "t09", "t15", "t17", "t18", "t20", "t25", "t30", "t31", "t35"}


@pytest.fixture
def files(fleet_project: Project) -> Project:
    """A project with a revision and 40 tenants, which are files that do not exist yet."""
    (fleet_project.folder / "data").mkdir()
    fleet_project.set(
        sqlalchemy__url="sqlite:///%(here)s/data/{tenant}.db", tenants=" ".join(TENANTS)
    )
    (fleet_project.folder / "models.py").write_text(
        "from sqlalchemy import *\nmetadata = MetaData()\nTable('own', metadata, Column('id', Integer))\n"
    )
    own = "op.create_table('own', sa.Column('id', sa.Integer))"
    fleet_project.revision("a1", own, "op.drop_table('own')")
    return fleet_project


def upgraded(project: Project, *settings: str) -> set[str]:
    """Upgrade with these settings, and return the tenants that have a version since then."""
    before = made(project)
    command.upgrade(with_x(project.config(), "create=true", *settings), "head")
    return made(project) - before


def made(project: Project) -> set[str]:
    """Return the tenants whose files exist."""
    return {each.stem for each in (project.folder / "data").glob("*.db")}


def parts(project: Project, count: int, names: list[str]) -> list[int]:
    """Return the part of each name."""
    part_of = imported(project.folder / "migrations", "tenants").part_of
    return [part_of(name, count) for name in names]


def test_parts_share_the_fleet(files: Project) -> None:
    """Each tenant is in one part, and the run of a part does nothing to the others."""
    found = [upgraded(files, f"part={index}/4") for index in range(4)]
    assert sorted(name for each in found for name in each) == TENANTS
    assert all(found)
    for name in TENANTS:
        database = Database(
            "sqlite", URL.create("sqlite", database=f"{files.folder}/data/{name}.db")
        )
        assert database.versions() == {"a1"}
    assert found[0] == FIRST


def test_parts_stay_when_tenants_come_and_go(files: Project) -> None:
    """A tenant is in the same part whoever else there is, and in the next process."""
    assert upgraded(files, "part=0/4", "tenant=t08,t02,t01,new") == {"t01", "t08"}
    files.set(tenants=" ".join([*reversed(TENANTS[5:]), "new"]))
    done = files.alembic("-x", "create=true", "-x", "part=0/4", "upgrade", "head")
    assert done.stdout == "9 upgraded, 1 current, 0 failed\n"
    assert made(files) == FIRST - {"t00"}


def test_parts_are_about_equal(files: Project) -> None:
    """Of 20,000 names that are alike, and others, no part has 10 % more or less than the mean."""
    names = [f"tenant_{number:05}" for number in range(10_000)]
    names += [f"ü\n{number}'" for number in range(9_999)] + ["\udcff"]
    for count in (2, 3, 8):
        counts = Counter(parts(files, count, names))
        assert sorted(counts) == list(range(count))
        mean = len(names) / count
        assert all(0.9 * mean < each < 1.1 * mean for each in counts.values())


def test_a_part_without_tenants(files: Project, caplog: pytest.LogCaptureFixture) -> None:
    """It is no error, as it may be one tomorrow; the run says so. `revision` has to have a tenant."""
    files.set(tenants="t00")
    empty = next(f"{each}/9" for each in range(9) if [each] != parts(files, 9, ["t00"]))
    done = files.alembic("-x", f"part={empty}", "-x", "jobs=2", "upgrade", "head")
    assert done.stdout == "0 upgraded, 0 current, 0 failed\n"
    assert f"INFO  [alembic.env] Part {empty} has no tenant.\n" in done.stderr
    for run in (command.current, command.check):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(with_x(files.config(), f"part={empty}"))
        assert f"Part {empty} has no tenant." in caplog.messages
    config = with_x(files.config(), f"part={empty}")
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    assert config.output_buffer.getvalue() == ""
    said = "revision looks at a tenant, and this part has none: leave -x part out."
    with pytest.raises(CommandError, match=said):
        command.revision(with_x(files.config(), f"part={empty}"), "new", autogenerate=True)
    assert [each.name for each in Path(files.folder, "migrations/versions").glob("*.py")] == [
        "a1.py"
    ]
    assert made(files) == set()


def test_commands_that_read(files: Project) -> None:
    """`current`, `check` and `--sql` look at the tenants of the part alone."""
    upgraded(files, "part=0/4")
    config = with_x(files.config(), "part=0/4")
    config.stdout = config.output_buffer = io.StringIO()
    command.current(config)
    shown = config.stdout.getvalue()
    assert set(re.findall(r"^(\w+): a1 \(head\)$", shown, re.MULTILINE)) == FIRST
    assert shown.count("(") == len(FIRST)
    command.check(with_x(files.config(), "part=0/4"))
    with pytest.raises(CommandError, match="28 of 40 tenants are not at a1, where 't00' is: "):
        command.check(files.config())
    config = with_x(files.config(), "part=0/4")
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    assert (
        set(re.findall("^-- Tenant '(.*)'", config.output_buffer.getvalue(), re.MULTILINE)) == FIRST
    )


def test_downgrade_of_a_part_has_to_be_meant(files: Project) -> None:
    """A part is no name: `-x tenant=all` is needed, even if the part has one tenant by chance."""
    upgraded(files)
    for part in ("0/4", "0/400"):
        with pytest.raises(
            CommandError, match=f"No tenant is named, and downgrade would change part {part} of 40:"
        ):
            command.downgrade(with_x(files.config(), f"part={part}"), "base")
    command.downgrade(with_x(files.config(), "part=0/4", "tenant=all"), "base")
    config = with_x(files.config())
    config.stdout = io.StringIO()
    command.current(config)
    behind = re.findall(r"^(\w+): base \(behind\)$", config.stdout.getvalue(), re.MULTILINE)
    assert set(behind) == FIRST
