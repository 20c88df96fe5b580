"""`alembic-templates prune`: old revision files go, and databases at newer ones go on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import Database, Project
from processes import run_python
from test_command import UNPRIVILEGED


def prune(
    project: Project, *args: str, answer: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a project, and answer its question."""
    command = ["-m", "alembic_templates.cli", "prune", *args]
    return run_python(command, project.folder, project.env, answer=answer or "")


def files(project: Project) -> set[str]:
    """Return the names of the revision files."""
    return {path.stem for path in (project.folder / "migrations" / "versions").glob("*.py")}


@pytest.fixture
def history(project: Project) -> Project:
    """Four revisions in a row, r1 to r4, each of a table."""
    for number in (1, 2, 3, 4):
        project.revision(
            f"r{number}",
            f"op.create_table('t{number}', sa.Column('id', sa.Integer))",
            f"op.drop_table('t{number}')",
            down=f"r{number - 1}" if number > 1 else None,
        )
    return project


def test_databases_at_or_after_the_base_upgrade_as_before(
    history: Project, sqlite: Database
) -> None:
    """A database at the new base is upgraded; one from before it gets an error, not an upgrade."""
    at_base = f"sqlite:///{history.folder}/at.db"
    before = f"sqlite:///{history.folder}/before.db"
    history.alembic("-x", f"url={at_base}", "upgrade", "r3")
    history.alembic("-x", f"url={before}", "upgrade", "r2")
    done = prune(history, "r3", "--yes")
    assert done.returncode == 0, done.stderr
    assert files(history) == {"r3", "r4"}
    history.alembic("-x", f"url={at_base}", "upgrade", "head")
    assert "r4 (head)" in history.alembic("-x", f"url={at_base}", "current").stdout
    failed = history.alembic("-x", f"url={before}", "upgrade", "head", ok=False)
    assert "The database is at revision r2, which this code does not know" in failed.stderr
    assert "<base> -> r3" in history.alembic("history").stdout


@pytest.mark.parametrize(
    ("answer", "left", "code"),
    [
        pytest.param("y\n", {"r2", "r3", "r4"}, 0, id="yes"),
        pytest.param("n\n", {"r1", "r2", "r3", "r4"}, 1, id="no"),
        pytest.param("\n", {"r1", "r2", "r3", "r4"}, 1, id="enter"),
    ],
)
def test_it_shows_the_files_and_asks(
    history: Project, answer: str, left: set[str], code: int
) -> None:
    """What would be deleted is shown, and deleted only if the answer is yes."""
    done = prune(history, "r2", answer=answer)
    assert str(history.folder / "migrations" / "versions" / "r1.py") in done.stdout
    assert "Delete them? [y/N]" in done.stdout
    assert files(history) == left
    assert done.returncode == code


def test_without_an_answer_nothing_is_deleted(history: Project) -> None:
    """Where nobody can answer, the error says to give --yes."""
    done = prune(history, "r2")
    assert done.stderr == "error: There is nobody to ask: give --yes to delete the files.\n"
    assert done.returncode == 1
    assert files(history) == {"r1", "r2", "r3", "r4"}


def test_the_base_itself_has_nothing_before_it(history: Project) -> None:
    """Pruning before the base deletes nothing."""
    done = prune(history, "r1", "--yes")
    assert (done.returncode, done.stdout) == (0, "r1 is the base already: nothing to delete.\n")
    assert files(history) == {"r1", "r2", "r3", "r4"}


@pytest.mark.parametrize(
    ("revision", "extra", "error"),
    [
        pytest.param(
            "r3",
            {"rev": "side", "down": "r1"},
            "Revision side needs r1, which would be deleted: prune before a revision that all the "
            "others come after.",
            id="branch",
        ),
        pytest.param(
            "r3",
            {"rev": "other", "depends_on": "r2"},
            "Revision other needs r2, which would be deleted: prune before a revision that all the "
            "others come after.",
            id="depends_on",
        ),
        pytest.param(
            "r3",
            {"rev": "unreachable"},
            "Revision unreachable is neither before nor after r3: merge the branches first.",
            id="another-base",
        ),
        pytest.param(
            "nope",
            {"rev": "r5", "down": "r4"},
            "Can't locate revision identified by 'nope': correct REVISION.",
            id="unknown",
        ),
        pytest.param(
            "base",
            {"rev": "r5", "down": "r4"},
            "REVISION is 'base', which names 0 revisions: name the one that becomes the base.",
            id="base",
        ),
        pytest.param(
            "heads",
            {"rev": "r5", "down": "r3"},
            "REVISION is 'heads', which names 2 revisions: name the one that becomes the base.",
            id="heads",
        ),
        *(
            pytest.param(
                name,
                {"rev": "r5", "down": "r4"},
                f"REVISION is {name!r}, which names no revision: correct it.",
                id=f"empty{name}",
            )
            for name in ("", "@", "r2@")
        ),
    ],
)
def test_what_is_unsafe_is_refused(
    history: Project, revision: str, extra: dict[str, str], error: str
) -> None:
    """A revision that needs one that would go stops the pruning before anything is deleted."""
    history.revision(**extra)  # type: ignore[arg-type]
    before = {path: path.read_text() for path in history.folder.rglob("*.py")}
    done = prune(history, revision, "--yes")
    assert (done.returncode, done.stderr) == (1, f"error: {error}\n")
    assert {path: path.read_text() for path in history.folder.rglob("*.py")} == before


def test_a_branch_label_is_not_lost(project: Project) -> None:
    """A label that would go with its file stops the pruning."""
    project.revision("r1", branch_labels=("billing",))
    project.revision("r2", down="r1")
    done = prune(project, "r2", "--yes")
    assert done.stderr == (
        "error: Revision r1 would be deleted and has the branch label billing: move the label to "
        "r2 first.\n"
    )
    assert files(project) == {"r1", "r2"}


def test_a_down_revision_that_is_not_found_is_left_to_its_owner(history: Project) -> None:
    """An assignment in another's style stops the pruning before a file is deleted."""
    path = history.folder / "migrations" / "versions" / "r3.py"
    path.write_text(path.read_text().replace("down_revision = 'r2'", "_, down_revision = 0, 'r2'"))
    done = prune(history, "r3", "--yes")
    assert done.stderr == (
        "error: migrations/versions/r3.py has no line `down_revision = …` with the revision in "
        "quotes: set it to None by hand.\n"
    )
    assert files(history) == {"r1", "r2", "r3", "r4"}


@pytest.mark.parametrize("line", ["down_revision = 'r1'", "if True:\n    down_revision = 'r1'"])
def test_a_second_assignment_stops_the_pruning(history: Project, line: str) -> None:
    """A base that would still follow a deleted revision is put back, and nothing is deleted."""
    path = history.folder / "migrations" / "versions" / "r2.py"
    path.write_text(f"{path.read_text()}\n{line}\n")
    before = path.read_text()
    done = prune(history, "r2", "--yes")
    assert done.returncode == 1
    assert done.stderr == (
        "error: The history would not be right with down_revision = None in "
        "migrations/versions/r2.py (another line sets it again): nothing was changed, so edit the "
        "file by hand.\n"
    )
    assert path.read_text() == before
    assert files(history) == {"r1", "r2", "r3", "r4"}


@pytest.mark.parametrize(
    ("closed", "error"),
    [
        pytest.param(
            "migrations/versions",
            "No file of migrations/versions can be deleted: nothing was changed, and the folder "
            "has to be one that you may write to.",
            id="of-the-others",
        ),
        pytest.param(
            "new",
            "new/r3.py cannot be written (Permission denied): it stays as it is, and its folder "
            "has to be one that you may write to.",
            id="of-the-base",
        ),
    ],
)
def test_a_folder_that_may_not_be_written_to_stops_the_pruning(
    history: Project, closed: str, error: str
) -> None:
    """Nothing is changed where the base or another file is in such a folder."""
    history.set(version_locations=f"migrations/versions{os.pathsep}new")
    (history.folder / "new").mkdir()
    (history.folder / "migrations" / "versions" / "r3.py").rename(history.folder / "new" / "r3.py")
    before = {path: path.read_text() for path in history.folder.rglob("*.py")}
    (history.folder / closed).chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, sys.executable]
        + ["-m", "alembic_templates", "prune", "r3", "--yes"],
        cwd=history.folder,
        env=history.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, f"error: {error}\n")
    assert {path: path.read_text() for path in history.folder.rglob("*.py")} == before


def test_a_file_that_cannot_be_deleted_is_named(history: Project) -> None:
    """What was done and what is left is said, and Alembic loads the history."""
    program = """
        import pathlib
        from alembic_templates.cli import main
        unlink = pathlib.Path.unlink
        def fails(self, missing_ok=False):
            if self.name == "r2.py":
                raise PermissionError(1, "Operation not permitted")
            unlink(self, missing_ok=missing_ok)
        pathlib.Path.unlink = fails
        raise SystemExit(main(["prune", "r4", "--yes"]))
    """
    assert history.python(program, ok=False).stderr == (
        "error: migrations/versions/r2.py cannot be deleted (Operation not permitted): r4 is the "
        "base already, so delete migrations/versions/r2.py, migrations/versions/r1.py by hand.\n"
    )
    assert files(history) == {"r1", "r2", "r4"}
    assert {line.split()[0] for line in history.alembic("heads").stdout.splitlines()} == {
        "r2",
        "r4",
    }


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_nothing_else_is_changed_in_the_base(history: Project, ending: str) -> None:
    """The ends of lines stay as they are, and so does what only looks like the assignment."""
    path = history.folder / "migrations" / "versions" / "r2.py"
    before = (
        '"""Größe.\n\nRevision ID: r2\nRevises: r1\n"""\n'
        "down_revision_note = 'r1'\n"
        "revision, down_revision = None, None\n"
        "revision = 'r2'\n"
        "down_revision: str = 'r1'  # was 'r1'\n"
        "def upgrade() -> None:\n    'Revises: r1'\n"
    ).replace("\n", ending)
    path.write_bytes(("# coding: latin-1" + ending + before).encode("latin-1"))
    assert prune(history, "r2", "--yes").returncode == 0
    after = before.replace("Revises: r1" + ending + '"', "Revises:" + ending + '"')
    after = after.replace("str = 'r1'", "str = None")
    assert path.read_bytes() == ("# coding: latin-1" + ending + after).encode("latin-1")
    assert files(history) == {"r2", "r3", "r4"}


def test_branches_that_were_merged_before_it_go(project: Project) -> None:
    """A merge can become the base, and an annotated down_revision over several lines is None."""
    project.revision("r1")
    project.revision("a", down="r1")
    project.revision("b", down="r1")
    path = project.revision("m", down=("a", "b"))
    source = path.read_text().replace(
        "down_revision = ('a', 'b')", "down_revision: tuple[str, ...] = (\n    'a',\n    'b',\n)"
    )
    path.write_text(source.replace('"""A revision."""', '"""A revision.\n\nRevises: a, b\n"""'))
    done = prune(project, "m", "--yes")
    assert done.returncode == 0, done.stderr
    assert files(project) == {"m"}
    assert "down_revision: tuple[str, ...] = None\n" in path.read_text()
    assert "Revises:\n" in path.read_text()
    assert project.alembic("heads").stdout.split()[0] == "m"


def test_the_configuration_is_named_by_config(history: Project) -> None:
    """--config names another file; one that is missing is an error."""
    (history.folder / "alembic.ini").rename(history.folder / "other.ini")
    missing = prune(history, "r2", "--yes")
    assert missing.stderr == (
        "error: alembic.ini does not exist: name the Alembic configuration by --config.\n"
    )
    assert prune(history, "r2", "--yes", "--config", "other.ini").returncode == 0
    assert files(history) == {"r2", "r3", "r4"}
