"""`alembic-templates rebase`: two heads become one, by two lines of one file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from conftest import Database, Project, render
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from sqlalchemy import create_engine, inspect, text
from test_command import UNPRIVILEGED

from alembic_templates._rebase import rebase

EXAMPLES = int(os.environ.get("REBASE_EXAMPLES", "12"))


def run_rebase(project: Project, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a project."""
    command = ["-m", "alembic_templates.cli", "rebase", *args]
    return run_python(command, project.folder, project.env, timeout=60)


def git(project: Project, *args: str) -> None:
    """Run git in a project, as somebody whose settings are those of git itself."""
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Someone"), ("EMAIL", "someone@example.com"))
    }
    env = {**project.env, **identity, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(
        ["git", *args], cwd=project.folder, env=env, check=True, capture_output=True, text=True
    )


def commit(project: Project, message: str) -> None:
    """Commit everything in a project."""
    git(project, "add", "--all")
    git(project, "commit", "-m", message)


def heads(project: Project) -> list[str]:
    """Return the heads, as alembic prints them."""
    return [line.split()[0] for line in project.alembic("heads").stdout.splitlines()]


def contents(project: Project) -> dict[str, bytes]:
    """Return what stands in each file of the revisions' folder."""
    folder = project.folder / "migrations" / "versions"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def branches(project: Project) -> Project:
    """Two branches from r1: theirs, r2 and r3, and mine, f1 and f2. Each makes a table."""
    for rev, down in {"r1": None, "r2": "r1", "r3": "r2", "f1": "r1", "f2": "f1"}.items():
        project.revision(
            rev,
            f"op.create_table('{rev}', sa.Column('id', sa.Integer))",
            f"op.drop_table('{rev}')",
            down=down,
        )
    return project


MINE = ("f1", "f2")


def set_aside(project: Project, names: tuple[str, ...]) -> dict[Path, str]:
    """Take revisions out of the folder, and return them for the time when they are written."""
    paths = [project.folder / "migrations" / "versions" / f"{name}.py" for name in names]
    kept = {path: path.read_text() for path in paths}
    for path in paths:
        path.unlink()
    return kept


def put_back(kept: dict[Path, str]) -> None:
    """Write the revisions that were set aside."""
    for path, source in kept.items():
        path.write_text(source)


def test_the_branch_that_is_not_on_main_moves(branches: Project) -> None:
    """After main was merged into a branch, its revisions follow those of main."""
    mine = set_aside(branches, MINE)
    theirs = set_aside(branches, ("r2", "r3"))
    git(branches, "init", "--initial-branch", "main")
    commit(branches, "begin")
    git(branches, "switch", "--create", "feature")
    put_back(mine)
    commit(branches, "mine")
    git(branches, "switch", "main")
    put_back(theirs)
    commit(branches, "theirs")
    git(branches, "switch", "feature")
    git(branches, "merge", "main", "-m", "merge")
    done = run_rebase(branches)
    assert done.returncode == 0, done.stderr
    file = Path("migrations", "versions", "f1.py")
    assert done.stdout.endswith(f"Moved f1, f2 behind r3: {file} was changed.\n")
    assert heads(branches) == ["f2"]
    assert "down_revision = 'r3'" in contents(branches)["f1.py"].decode()


def test_what_is_not_committed_is_the_branchs_own(branches: Project) -> None:
    """On master itself, revisions that are not committed move."""
    mine = set_aside(branches, MINE)
    git(branches, "init", "--initial-branch", "master")
    commit(branches, "theirs")
    put_back(mine)
    done = run_rebase(branches)
    assert done.returncode == 0, done.stderr
    assert heads(branches) == ["f2"]


@pytest.fixture
def cloned(branches: Project, tmp_path: Path) -> Project:
    """The project on its local main, whose remote has their revisions and not mine."""
    mine = set_aside(branches, MINE)
    theirs = set_aside(branches, ("r2", "r3"))
    git(branches, "init", "--initial-branch", "main")
    commit(branches, "begin")
    git(branches, "clone", "--bare", ".", str(tmp_path / "remote.git"))
    git(branches, "remote", "add", "upstream", str(tmp_path / "remote.git"))
    put_back(theirs)
    commit(branches, "theirs")
    git(branches, "push", "upstream", "main")
    git(branches, "fetch", "upstream")
    put_back(mine)
    commit(branches, "mine")
    return branches


def test_the_remotes_main_knows_more_than_the_local_one(cloned: Project) -> None:
    """Revisions that are committed on the local main, and not pushed, move."""
    done = run_rebase(cloned)
    assert done.returncode == 0, done.stderr
    assert heads(cloned) == ["f2"]


def test_a_hook_of_gits_may_call_it(cloned: Project) -> None:
    """The places that git sets for its hooks lead it to no other repository."""
    hooked = Project(cloned.folder, {**cloned.env, "GIT_DIR": ".git", "GIT_INDEX_FILE": "x"})
    assert run_rebase(hooked).returncode == 0
    assert heads(cloned) == ["f2"]


ASKS = (
    "error: git does not tell which branch is not on main or master yet: name the head that stays "
    "by --onto, f2 or r3.\n"
)


def test_without_a_repository_it_asks(branches: Project) -> None:
    """Where there is no repository, the head that stays has to be named."""
    before = contents(branches)
    done = run_rebase(branches)
    assert (done.returncode, done.stderr) == (1, ASKS)
    assert contents(branches) == before


def test_without_git_it_asks(branches: Project) -> None:
    """Where git is not installed, it is as without a repository."""
    done = run_rebase(Project(branches.folder, {**branches.env, "PATH": "/nowhere"}))
    assert (done.returncode, done.stderr) == (1, ASKS)


def test_with_both_branches_on_main_it_asks(branches: Project) -> None:
    """Where main has both branches, the head that stays has to be named."""
    git(branches, "init", "--initial-branch", "main")
    commit(branches, "both")
    before = contents(branches)
    done = run_rebase(branches)
    assert (done.returncode, done.stderr) == (1, ASKS)
    assert contents(branches) == before


@pytest.mark.parametrize(
    ("onto", "head", "changed"),
    [
        pytest.param("r3", "f2", "f1.py", id="head"),
        pytest.param("r2", "f2", "f1.py", id="in-the-branch"),
        pytest.param("f2", "r3", "r2.py", id="the-other"),
    ],
)
def test_onto_names_the_branch_that_stays(
    branches: Project, onto: str, head: str, changed: str
) -> None:
    """The branch that does not lead to --onto moves behind the head of the other."""
    before = contents(branches)
    done = run_rebase(branches, "--onto", onto)
    assert done.returncode == 0, done.stderr
    assert heads(branches) == [head]
    after = contents(branches)
    assert [name for name in before if before[name] != after[name]] == [changed]


def test_an_unknown_revision_is_an_error_with_one_head_too(project: Project) -> None:
    """What is misspelt is said, whether there is something to do or not."""
    project.revision("r1")
    done = run_rebase(project, "--onto", "nope")
    error = "error: Can't locate revision identified by 'nope': correct --onto.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", error)


@pytest.mark.parametrize("name", ["", "@", "r1@"])
def test_an_empty_revision_is_an_error(project: Project, name: str) -> None:
    """What names nothing, such as a variable that is not set, is one sentence."""
    project.revision("r1")
    done = run_rebase(project, "--onto", name)
    error = f"error: --onto is {name!r}, which names no revision: correct it.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", error)


def test_with_one_head_there_is_nothing_to_do(project: Project) -> None:
    """With one head nothing is done, and that is no error."""
    project.revision("r1")
    before = contents(project)
    done = run_rebase(project)
    assert (done.returncode, done.stdout) == (0, "There are no two heads: nothing to do.\n")
    assert contents(project) == before


@pytest.mark.parametrize(
    ("revisions", "onto", "error"),
    [
        pytest.param(
            [{"rev": "g1", "down": "r1"}],
            "r3",
            "There are 3 heads (f2, g1, r3): expected two, so bring the others together by "
            "`alembic merge` first.",
            id="three-heads",
        ),
        pytest.param(
            [{"rev": "g1", "down": "f1"}, {"rev": "g2", "down": ("f2", "g1")}],
            "r3",
            "Revision g2 merges f2 and g1: a branch with a merge cannot be moved, so use `alembic "
            "merge heads`, or move the other branch by --onto g2.",
            id="merge",
        ),
        pytest.param(
            [{"rev": "r4", "down": "r3", "depends_on": "f1"}],
            "r4",
            "Revision r4 depends on f1, which would come after it: move the other branch by "
            "--onto f2.",
            id="depends_on",
        ),
        pytest.param(
            [],
            "r1",
            "--onto r1 does not tell the branches apart: name one of their heads, f2 or r3.",
            id="onto-both",
        ),
        pytest.param(
            [],
            "nope",
            "Can't locate revision identified by 'nope': correct --onto.",
            id="onto-unknown",
        ),
    ],
)
def test_what_cannot_be_known_to_be_right_is_refused(
    branches: Project, revisions: list[dict[str, str]], onto: str, error: str
) -> None:
    """One sentence says why, and no file is changed."""
    for revision in revisions:
        branches.revision(**revision)  # type: ignore[arg-type]
    before = contents(branches)
    done = run_rebase(branches, "--onto", onto)
    assert (done.returncode, done.stderr) == (1, f"error: {error}\n")
    assert contents(branches) == before


def test_a_merge_in_the_branch_that_stays_is_right(branches: Project) -> None:
    """A merge has to stay where it is; a branch may move behind it."""
    branches.revision("s2", down="r1")
    branches.revision("m", down=("r3", "s2"))
    assert run_rebase(branches, "--onto", "m").returncode == 0
    assert heads(branches) == ["f2"]


def test_histories_of_their_own_are_not_joined(project: Project) -> None:
    """Two bases have nothing in common."""
    project.revision("a")
    project.revision("b")
    done = run_rebase(project, "--onto", "a")
    assert done.stderr == (
        "error: The heads a and b have no revision in common: they are histories of their own, "
        "which rebase does not join.\n"
    )


def test_branches_with_labels_stay_apart_unless_it_is_said(branches: Project) -> None:
    """Two labels are for branches that last; --onto says that these are not."""
    for name in ("r2", "f1"):
        path = branches.folder / "migrations" / "versions" / f"{name}.py"
        path.write_text(path.read_text() + f"\nbranch_labels = ('{name}_label',)\n")
    done = run_rebase(branches)
    assert done.stderr == (
        "error: Both branches have labels of their own (f1_label, r2_label), and may be meant to "
        "stay apart: if not, name the head that stays by --onto, f2 or r3.\n"
    )
    assert run_rebase(branches, "--onto", "r3").returncode == 0
    assert heads(branches) == ["f2"]
    assert "f2" in branches.alembic("show", "r2_label@head").stdout


def test_a_branch_may_depend_on_what_stays(branches: Project) -> None:
    """A revision that has to come after another one does so when it has moved."""
    path = branches.folder / "migrations" / "versions" / "f2.py"
    path.write_text(path.read_text() + "\ndepends_on = 'r2'\n")
    assert run_rebase(branches, "--onto", "r3").returncode == 0
    assert heads(branches) == ["f2"]
    assert "f2" in branches.alembic("history").stdout


def test_what_the_database_has_applied_does_not_move(branches: Project, database: Database) -> None:
    """On each database, a revision that was applied is named, with ways to go on."""
    branches.set(sqlalchemy__url=database.text.replace("%", "%%"))
    branches.alembic("upgrade", "f1")
    before = contents(branches)
    done = run_rebase(branches, "--onto", "r3")
    assert done.returncode == 1
    assert done.stderr == (
        "error: The database has applied f1, which would move: run `alembic downgrade r1` first, "
        "move the other branch by --onto f2, or use `alembic merge heads`.\n"
    )
    assert contents(branches) == before
    done = run_rebase(branches, "--onto", "f2")
    assert done.returncode == 0, done.stderr
    assert "was not asked" not in done.stdout
    branches.alembic("upgrade", "head")
    assert database.versions() == {"r3"}


def test_no_tenant_of_a_fleet_has_what_moves(fleet_project: Project, postgresql: Database) -> None:
    """A revision that one tenant has applied does not move."""
    fleet_project.set(sqlalchemy__url=postgresql.text.replace("%", "%%"), tenants="one two three")
    for rev, down in {"r1": None, "r2": "r1", "f1": "r1"}.items():
        fleet_project.revision(rev, down=down)
    fleet_project.alembic("-x", "create=true", "upgrade", "r1")
    fleet_project.alembic("-x", "tenant=two", "upgrade", "f1")
    done = run_rebase(fleet_project, "--onto", "r2")
    assert "The database has applied f1, which would move" in done.stderr
    fleet_project.alembic("-x", "tenant=two", "downgrade", "r1")
    assert run_rebase(fleet_project, "--onto", "r2").returncode == 0
    assert heads(fleet_project) == ["f1"]


UNKNOWN = (
    "error: The database is at revision n3, which has no file here, so it may have applied what "
    "would move: run rebase where that file is, or use `alembic merge heads`.\n"
)


def test_a_database_at_an_unknown_revision_is_refused(branches: Project, sqlite: Database) -> None:
    """A revision without a file here may stand behind one that would move."""
    branches.set(sqlalchemy__url=sqlite.text)
    n3 = branches.revision("n3", down="f2")
    branches.alembic("upgrade", "n3")
    n3.unlink()
    before = contents(branches)
    done = run_rebase(branches, "--onto", "r3")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", UNKNOWN)
    assert contents(branches) == before


@pytest.fixture
def fleet_branches(fleet_project: Project) -> Project:
    """Three tenants with files of their own, and two branches from r1, which all have applied."""
    fleet_project.set(
        sqlalchemy__url=f"sqlite:///{fleet_project.folder}/{{tenant}}.db", tenants="one two three"
    )
    for rev, down in {"r1": None, "r2": "r1", "f1": "r1"}.items():
        fleet_project.revision(rev, down=down)
    fleet_project.alembic("-x", "create=true", "upgrade", "r1")
    return fleet_project


def test_a_tenant_at_an_unknown_revision_is_refused(fleet_branches: Project) -> None:
    """It is as with one database, and the other tenants do not hide it."""
    n3 = fleet_branches.revision("n3", down="f1")
    fleet_branches.alembic("-x", "tenant=two", "upgrade", "n3")
    n3.unlink()
    before = contents(fleet_branches)
    done = run_rebase(fleet_branches, "--onto", "r2")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", UNKNOWN)
    assert contents(fleet_branches) == before


def test_a_tenant_that_cannot_be_read_is_said(fleet_branches: Project) -> None:
    """Who was not asked is named, and only those; who has no database yet has nothing."""
    (fleet_branches.folder / "one.db").write_bytes(b"no database" * 100)
    (fleet_branches.folder / "three.db").unlink()
    done = run_rebase(fleet_branches, "--onto", "r2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "The database was not asked whether it has these revisions: what tenant one is at cannot "
        "be read\n"
    )
    assert heads(fleet_branches) == ["f1"]


@pytest.mark.parametrize("url", ["sqlite:///{}", "sqlite:///file:{}?uri=true"])
def test_a_sqlite_file_is_not_made(branches: Project, sqlite: Database, url: str) -> None:
    """A database that is not there stops nothing, and is not there afterwards."""
    branches.set(sqlalchemy__url=url.format(sqlite.url.database))
    done = run_rebase(branches, "--onto", "r3")
    assert done.returncode == 0, done.stderr
    assert "The database was not asked whether it has these revisions: " in done.stdout
    assert heads(branches) == ["f2"]
    assert not Path(str(sqlite.url.database)).exists()


def test_a_server_that_does_not_answer_stops_nothing(branches: Project) -> None:
    """A database that cannot be reached is said, without its password."""
    branches.set(sqlalchemy__url="postgresql+psycopg://me:secret@127.0.0.1:1/nowhere")
    done = run_rebase(branches, "--onto", "r3")
    assert done.returncode == 0, done.stderr
    assert "was not asked whether it has these revisions: Cannot connect to" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    assert heads(branches) == ["f2"]


@pytest.mark.parametrize(
    "assignment",
    ["down_revision = 'r' + '1'", "down_revision, _ = 'r1', None", r"down_revision = '\x72\x31'"],
)
def test_a_down_revision_that_is_no_text_is_left_to_its_owner(
    branches: Project, assignment: str
) -> None:
    """What is computed, or cannot be found, is not edited."""
    path = branches.folder / "migrations" / "versions" / "f1.py"
    path.write_text(path.read_text().replace("down_revision = 'r1'", assignment))
    before = contents(branches)
    done = run_rebase(branches, "--onto", "r3")
    assert done.returncode == 1
    assert done.stderr == (
        "error: migrations/versions/f1.py has no line `down_revision = …` with the revision in "
        "quotes: set it to 'r3' by hand.\n"
    )
    assert contents(branches) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param("down_revision = 'r1'", "another line sets it again", id="second-assignment"),
        pytest.param(
            "assert down_revision == 'r1', 'not r1'",
            "The revisions cannot be loaded (AssertionError: not r1): correct the file.",
            id="file-that-cannot-be-loaded",
        ),
    ],
)
def test_a_history_that_would_not_be_right_is_put_back(
    branches: Project, line: str, reason: str
) -> None:
    """Unless Alembic reads the new down_revision afterwards, the file is as it was."""
    path = branches.folder / "migrations" / "versions" / "f1.py"
    path.write_text(f"{path.read_text()}\n{line}\n")
    before = contents(branches)
    done = run_rebase(branches, "--onto", "r3")
    assert done.stderr == (
        "error: The history would not be right with down_revision = 'r3' in "
        f"migrations/versions/f1.py ({reason}): nothing was changed, so edit the file by hand.\n"
    )
    assert contents(branches) == before


def test_a_failure_leaves_the_file_as_it_was(branches: Project) -> None:
    """Where the file cannot be replaced, nothing is left of the attempt."""
    folder = branches.folder / "migrations" / "versions"
    before = contents(branches)
    program = """
        import pathlib
        from alembic_templates.cli import main
        def fails(self, target):
            raise KeyboardInterrupt
        pathlib.Path.replace = fails
        raise SystemExit(main(["rebase", "--onto", "r3"]))
    """
    assert "interrupted" in branches.python(program, ok=False).stderr
    assert contents(branches) == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_folder_that_may_not_be_written_to_is_one_sentence(branches: Project) -> None:
    """The reason is the system's, and nothing is changed."""
    folder = branches.folder / "migrations" / "versions"
    before = contents(branches)
    folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, sys.executable]
        + ["-m", "alembic_templates", "rebase", "--onto", "r3"],
        cwd=branches.folder,
        env=branches.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: migrations/versions/f1.py cannot be written (Permission denied): it stays as it "
        "is, and its folder has to be one that you may write to.\n"
    )
    assert contents(branches) == before


def test_what_python_has_compiled_is_not_taken_for_the_new_file(branches: Project) -> None:
    """A file of the same length and time as before is read anew."""
    folder = branches.folder / "migrations" / "versions"
    compiling = Project(branches.folder, {**branches.env, "PYTHONDONTWRITEBYTECODE": ""})
    compiling.alembic("heads")
    assert list((folder / "__pycache__").glob("f1.*"))
    stat = (folder / "f1.py").stat()
    program = f"""
        import os
        from alembic_templates import _revision_file
        write = _revision_file.replace_file
        def at_once(path, content):
            write(path, content)
            os.utime(path, ns=({stat.st_atime_ns}, {stat.st_mtime_ns}))
        _revision_file.replace_file = at_once
        from alembic_templates.cli import main
        raise SystemExit(main(["rebase", "--onto", "r3"]))
    """
    compiling.python(program)
    assert heads(compiling) == ["f2"]


@dataclass(frozen=True)
class Style:
    """How somebody writes a revision file."""

    assignment: str
    ending: str
    encoding: str
    revises: str

    def source(self, rev: str, down: str, body: str, extra: str) -> bytes:
        """Return the file of a revision."""
        named = f"\n{self.revises.format(down)}\n" if self.revises else "\n"
        coding = "" if self.encoding.startswith("utf-8") else f"# -*- coding: {self.encoding} -*-\n"
        lines = (
            f'{coding}"""Größe of {rev}\n\nRevision ID: {rev}{named}Create Date: now\n"""\n'
            "from typing import Sequence, Union\n\nimport sqlalchemy as sa\nfrom alembic import op\n\n"
            f"revision = {rev!r}\n{self.assignment.format(down)}\n{extra}\n\n"
            f"def upgrade():\n    # was after {down}\n    {body}\n\n\ndef downgrade():\n    pass\n"
        )
        return lines.replace("\n", self.ending).encode(self.encoding)


STYLES = st.builds(
    Style,
    st.sampled_from(
        [
            "down_revision = '{}'",
            'down_revision = "{}"  # the one before',
            'down_revision: Union[str, Sequence[str], None] = "{}"',
            "down_revision = ('{}',)",
            "down_revision: Union[str, None] = (\n    '{}'\n)",
            "ä = 'ä'; down_revision = '{}'",
        ]
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "iso-8859-15"]),
    st.sampled_from(["Revises: {}", "Revises:  {}  ", "  Revises: {} and nothing else", ""]),
)
OPERATIONS = st.sampled_from(
    [
        "op.create_table('{0}', sa.Column('id', sa.Integer, primary_key=True))",
        "with op.batch_alter_table('shared') as batch: batch.add_column(sa.Column('{0}', sa.Text))",
        "with op.batch_alter_table('shared') as batch: batch.create_index('ix_{0}', ['name'])",
        "op.execute(\"INSERT INTO shared (name) VALUES ('{0}')\")",
        "op.bulk_insert(sa.table('shared', sa.column('name')), [{{'name': '{0}'}}])",
        "pass",
    ]
)
BRANCH = st.lists(st.tuples(OPERATIONS, STYLES), min_size=1, max_size=5)


def write_branches(
    folder: Path, pair: dict[str, list[tuple[str, Style]]], labelled: str | None
) -> None:
    """Write the revision `root`, and from it a1, a2, … and b1, b2, …, which end in two heads."""
    root = Style("down_revision = None", "\n", "utf-8", "")
    table = "op.create_table('shared', sa.Column('name', sa.String(20)))"
    folder.joinpath("root.py").write_bytes(root.source("root", "", table, "branch_labels = 'all'"))
    for name, revisions in pair.items():
        down = "root"
        for number, (operation, style) in enumerate(revisions, 1):
            rev = f"{name}{number}"
            extra = (
                f"branch_labels = ('{name}_label',)" if (number == 1 and name == labelled) else ""
            )
            extra += "\ndepends_on = 'root'" if number == 2 else ""
            source = style.source(rev, down, operation.format(rev), extra)
            folder.joinpath(f"{rev}.py").write_bytes(source)
            down = rev


def moved(project: Project, onto: str, head: str, first: str) -> tuple[object, ...]:
    """Rebase a copy, upgrade a database by it, and return what the database then has."""
    versions = project.folder / "migrations" / "versions"
    before = {path.name: path.read_bytes() for path in versions.glob("*.py")}
    assert rebase(project.folder / "alembic.ini", onto=onto) is not None
    after = {path.name: path.read_bytes() for path in versions.glob("*.py")}
    assert [name for name in before if before[name] != after[name]] == [f"{first}.py"]
    old, new = (each[f"{first}.py"].splitlines(keepends=True) for each in (before, after))
    changed = [(was, now) for was, now in zip(old, new, strict=True) if was != now]
    for was, now in changed:
        assert now == was.replace(b"root", onto.encode())
    assert len(changed) == 1 + any(b"Revises:" in line for line in old)
    config = Config(project.folder / "alembic.ini")
    assert ScriptDirectory.from_config(config).get_heads() == [head]
    file = project.folder / "test.db"
    config.set_main_option("sqlalchemy.url", f"sqlite:///{file}")
    command.upgrade(config, "head")
    engine = create_engine(f"sqlite:///{file}")
    found = inspect(engine)
    with engine.connect() as connection:
        rows = sorted(connection.execute(text("SELECT name FROM shared")).scalars())
    schema = {
        table: (
            {column["name"] for column in found.get_columns(table)},
            {index["name"] for index in found.get_indexes(table)},
        )
        for table in found.get_table_names()
    }
    engine.dispose()
    return schema, rows


@settings(max_examples=EXAMPLES, deadline=None)
@given(a=BRANCH, b=BRANCH, labelled=st.sampled_from(["a", "b", None]))
def test_any_two_branches_become_one(
    a: list[tuple[str, Style]],
    b: list[tuple[str, Style]],
    labelled: str | None,
) -> None:
    """There is one head, two lines differ, and the schema is that of the other order."""
    heads = f"a{len(a)}", f"b{len(b)}"
    results = []
    path = list(sys.path)
    for onto, head, first in ((*heads, "b1"), (*heads[::-1], "a1")):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "project")
            project = render("shared", folder)
            project.set(target_metadata=None)
            write_branches(folder / "migrations" / "versions", {"a": a, "b": b}, labelled)
            results.append(moved(project, onto, head, first))
    sys.path[:] = path
    assert results[0] == results[1]
