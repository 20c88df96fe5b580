"""The verb `new`: it makes what cookiecutter makes of the checkout, or nothing."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, tree
from processes import kept_environment, run_python

import alembic_templates
from alembic_templates import cli
from alembic_templates._catalog import scaffold_folder, templates_folder

TEMPLATE = "{{cookiecutter.project_slug}}"
KEYS = "project_name, project_slug, package_name, environment, database, python_version, license"
SLUG = (
    "expected lower-case letters and digits, a letter first, in words joined by single hyphens, "
    "such as 'my-project'."
)
COMBINATION = (
    "environment multitenant does not go with database sqlite, which has no schemas for the "
    "tenants: choose database postgresql or mariadb."
)
NOBODY = "There is nobody to ask: give --no-input, and answers such as database=postgresql."


@dataclass(frozen=True)
class Desk:
    """A folder to work in, with a home and a folder for temporary files beside it."""

    folder: Path

    @property
    def work(self) -> Path:
        """The current folder of the programs."""
        return self.folder / "work"

    @property
    def env(self) -> dict[str, str]:
        """The environment variables for the programs."""
        kept = kept_environment("PYTHONPATH")
        own = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp")}
        other = {"TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**kept, **own, **other}

    def run(self, *args: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a module, with nobody to ask; fail the test unless it ends with this exit code."""
        done = run_python(["-m", *args], self.work, {**self.env, **env})
        if done.returncode != code:
            pytest.fail(f"{args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def new(self, *args: str, **env: str) -> str:
        """Run `alembic-templates new`, which must succeed, and return what it prints."""
        done = self.run(cli.__name__, "new", *args, **env)
        assert done.stderr == ""
        return done.stdout

    def refused(self, *args: str, **env: str) -> str:
        """Run it, which must fail with one sentence and change no file; return the sentence."""
        before = tree(self.folder)
        done = self.run(cli.__name__, "new", *args, code=1, **env)
        assert tree(self.folder) == before
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith(".\n")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("error: ").removesuffix("\n")

    def cookiecutter(self, *args: str, source: Path = ROOT) -> Path:
        """Run cookiecutter itself on a checkout, and return the folder that it fills."""
        expected = self.folder / "expected"
        expected.mkdir()
        self.run("cookiecutter", str(source), "--no-input", "-o", str(expected), *args)
        return expected

    def start(self, stdin: int, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start `alembic-templates new` with a standard input, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", cli.__name__, "new", *args],
            cwd=self.work,
            env={**self.env, **env},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """An empty folder to work in."""
    for name in ("work", "home", "tmp"):
        (tmp_path / name).mkdir()
    return Desk(tmp_path)


@pytest.fixture
def as_installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with a copy of the package that has the scaffold inside."""
    package = tmp_path / "copy" / "alembic_templates"
    ignore = shutil.ignore_patterns("__pycache__", "templates", "hooks", TEMPLATE)
    shutil.copytree(Path(alembic_templates.__file__).parent, package, ignore=ignore)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(templates_folder(), package / "templates", ignore=ignore)
    for name in ("hooks", TEMPLATE):
        shutil.copytree(scaffold_folder() / name, package / name, ignore=ignore)
    shutil.copy2(scaffold_folder() / "cookiecutter.json", package)
    return package.parent


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param((), id="defaults"),
        pytest.param(("environment=asyncio", "database=postgresql"), id="asyncio"),
        pytest.param(
            ("environment=multitenant", "database=mariadb", "project_name=Acme & Sons' (2)"),
            id="multitenant",
        ),
        pytest.param(
            ("project_slug=shop", "package_name=shop_app", "python_version=3.12"), id="names"
        ),
    ],
)
def test_new_makes_what_cookiecutter_makes(desk: Desk, answers: tuple[str, ...]) -> None:
    """The tree is that of `cookiecutter .` to the byte, and no other file is made anywhere."""
    expected = tree(desk.cookiecutter(*answers))
    for name in ("home", "tmp"):  # where cookiecutter itself leaves files
        shutil.rmtree(desk.folder / name)
        (desk.folder / name).mkdir()
    printed = desk.new("--no-input", *answers)
    assert tree(desk.work) == expected
    assert len(expected) > 20
    (made,) = desk.work.iterdir()
    assert printed == (
        f"{made.name} was made: cd {made.name}, and run the commands of its README.md.\n"
    )
    assert list((desk.folder / "home").iterdir()) == list((desk.folder / "tmp").iterdir()) == []


def test_new_takes_a_folder_and_answers_in_any_order(desk: Desk) -> None:
    """The project's folder is made in DIR, and the line that is printed has it as it was given."""
    (desk.work / "my projects").mkdir()
    for number, args in enumerate(
        [
            ("my projects", "--no-input", "project_slug=p0", "database=postgresql"),
            ("--no-input", "my projects", "project_slug=p1", "database=postgresql"),
            ("project_slug=p2", "--no-input", "database=postgresql", "my projects"),
            ("database=postgresql", "my projects", "project_slug=p3", "--no-input"),
        ]
    ):
        assert desk.new(*args) == (
            f"my projects/p{number} was made: cd 'my projects/p{number}', and run the commands of "
            "its README.md.\n"
        )
        assert (desk.work / "my projects" / f"p{number}" / "compose.yaml").is_file()
    assert [path.name for path in desk.work.iterdir()] == ["my projects"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        pytest.param(
            ("nowhere",),
            "No project can be made in nowhere: No such file or directory.",
            id="no-folder",
        ),
        pytest.param(
            ("projct_name=x",),
            f"There is no answer 'projct_name': expected {KEYS}.",
            id="unknown-key",
        ),
        pytest.param(
            ("__url=x",), f"There is no answer '__url': expected {KEYS}.", id="private-key"
        ),
        pytest.param(
            ("license=GPL",),
            "license is 'GPL': expected none, MIT, BSD-3-Clause.",
            id="no-choice",
        ),
        pytest.param(
            ("database=mysql",),
            "database is 'mysql': expected sqlite, postgresql, mariadb; mariadb is for MySQL as "
            "well.",
            id="mysql",
        ),
        pytest.param(("environment=multitenant",), COMBINATION, id="combination"),
        pytest.param(("project_slug=a/b",), f"project_slug is 'a/b': {SLUG}", id="two-folders"),
        pytest.param(("project_slug=../x",), f"project_slug is '../x': {SLUG}", id="outside"),
        pytest.param(("project_slug=",), f"project_slug is '': {SLUG}", id="empty"),
        pytest.param(
            ("project_name={{ x }}",),
            "No project can be made in .: Unable to render variable 'project_name'.",
            id="undefined",
        ),
        pytest.param(
            ("project_name={% x",),
            "No project can be made in .: Encountered unknown tag 'x'.",
            id="unparsable",
        ),
    ],
)
def test_what_gives_no_project_is_one_sentence(
    desk: Desk, args: tuple[str, ...], sentence: str
) -> None:
    """A refusal names the answer and what was expected, and leaves no file or folder behind."""
    assert desk.refused("--no-input", *args) == sentence


def test_refused_combination_is_the_same_sentence_from_cookiecutter(desk: Desk) -> None:
    """The hook that `new` shares with cookiecutter refuses there as well."""
    args = (str(ROOT), "--no-input", "environment=multitenant")
    done = desk.run("cookiecutter", *args, code=1)
    assert done.stderr == f"error: {COMBINATION}\n"
    assert list(desk.work.iterdir()) == []


@pytest.mark.parametrize(
    "occupy",
    [
        pytest.param(Path.mkdir, id="empty-folder"),
        pytest.param(Path.touch, id="file"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling-link"),
    ],
)
def test_what_exists_is_kept(desk: Desk, occupy: Callable[[Path], None]) -> None:
    """Whatever has the name of the project's folder stays as it is."""
    occupy(desk.work / "my-project")
    assert desk.refused(".", "--no-input") == (
        "my-project exists already: choose another project_slug."
    )


def test_without_a_terminal_nothing_is_asked(desk: Desk) -> None:
    """Where nobody can answer, the sentence names --no-input."""
    before = tree(desk.folder)
    done = desk.run(cli.__name__, "new", "database=postgresql", code=1)
    assert done.stderr == f"error: {NOBODY}\n"
    assert tree(desk.folder) == before


def test_questions_are_cookiecutter_s_own(desk: Desk) -> None:
    """On a terminal it asks, with what was given as defaults, and makes what was answered."""
    controller, terminal = pty.openpty()
    process = desk.start(terminal, "database=mariadb", "project_slug=given")
    os.write(controller, b"Typed Name\n\ntyped_package\n4\n\n3\n2\n")
    printed, errors = process.communicate(timeout=60)
    os.close(controller)
    os.close(terminal)
    assert (process.returncode, errors) == (0, "")
    assert "Name of the project (My Project)" in printed
    assert "multitenant: a schema or a database for each tenant" in printed
    assert "mariadb, for MySQL as well" in printed
    expected = desk.cookiecutter(
        "project_name=Typed Name",
        "project_slug=given",
        "package_name=typed_package",
        "environment=multitenant",
        "database=mariadb",
        "python_version=3.12",
        "license=MIT",
    )
    assert tree(desk.work) == tree(expected)


def until_it_waits(process: int) -> None:
    """Wait until a process sleeps, as it does in reading what is typed.

    A signal between the question and the reading would be noticed only with the next line.
    """
    state = ["ps", "-o", "stat=", "-p", str(process)]
    while not subprocess.check_output(state, text=True).startswith("S"):
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("typed", "code", "error"),
    [
        pytest.param(b"\x03", 130, "error: interrupted\n", id="ctrl-c"),
        pytest.param(b"\x04", 1, f"error: {NOBODY}\n", id="ctrl-d"),
    ],
)
def test_question_left_unanswered(desk: Desk, typed: bytes, code: int, error: str) -> None:
    """Ctrl-C at a question interrupts as it does the other verbs; Ctrl-D is one sentence."""
    controller, terminal = pty.openpty()
    before = tree(desk.folder)
    script = (
        "import fcntl, os, sys, termios\n"
        "os.setsid()\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # Ctrl-C is a signal on one's own terminal alone
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "-m", cli.__name__, "new"],
        cwd=desk.work,
        env=desk.env,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    asked = process.stdout.read(len("  [1/7] Name"))
    until_it_waits(process.pid)
    os.write(controller, typed)
    _, errors = process.communicate(timeout=60)
    os.close(controller)
    os.close(terminal)
    assert asked == "  [1/7] Name"
    assert (process.returncode, errors) == (code, error)
    assert tree(desk.folder) == before


def test_interrupt_leaves_nothing_behind(desk: Desk, as_installed: Path) -> None:
    """A project that is interrupted in the making is removed."""
    hook = as_installed / "alembic_templates" / "hooks" / "post_gen_project.py"
    slow = "import time\nPath('../../baking').touch()\ntime.sleep(1)\n"
    hook.write_text(hook.read_text(encoding="utf-8") + slow, encoding="utf-8")
    process = desk.start(subprocess.DEVNULL, "--no-input", PYTHONPATH=str(as_installed))
    baking = desk.work / "baking"
    while not baking.exists():
        assert process.poll() is None
        time.sleep(0.01)
    assert list(desk.work.glob(".alembic-templates-*"))
    # The process group, as a terminal does; the hook's process belongs to it.
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert errors.endswith("error: interrupted\n")
    assert list(desk.work.iterdir()) == [baking]
    assert list((desk.folder / "tmp").iterdir()) == []


def test_hook_that_fails_leaves_nothing_behind(desk: Desk, as_installed: Path) -> None:
    """What a hook says of its failure is all that is printed, without what cookiecutter logs."""
    hook = as_installed / "alembic_templates" / "hooks" / "post_gen_project.py"
    hook.write_text("raise SystemExit('error: Not today.')\n", encoding="utf-8")
    assert desk.refused("--no-input", PYTHONPATH=str(as_installed)) == "Not today."


def test_hook_that_is_killed_is_one_sentence(desk: Desk, as_installed: Path) -> None:
    """Where a hook cannot say why it failed, the sentence says that it has."""
    hook = as_installed / "alembic_templates" / "hooks" / "post_gen_project.py"
    hook.write_text("import os\nos.kill(os.getpid(), 9)\n", encoding="utf-8")
    assert desk.refused("--no-input", PYTHONPATH=str(as_installed)) == (
        "No project can be made in .: Hook script failed (exit status: -9)."
    )


def test_caches_are_not_taken_along(desk: Desk, as_installed: Path) -> None:
    """What Python and tools leave in the scaffold gets into no project, nor into cookiecutter's."""
    package = as_installed / "alembic_templates"
    expected = tree(desk.cookiecutter())
    shutil.rmtree(desk.folder / "expected")
    for cache in ("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"):
        for place in (TEMPLATE, f"{TEMPLATE}/tests", "hooks", "templates/shared"):
            (package / place / cache / "nested").mkdir(parents=True)
            (package / place / cache / "nested" / "compiled.pyc").write_bytes(b"\xa7\r\r\n\0\0\0\0")
    desk.new("--no-input", PYTHONPATH=str(as_installed))
    assert tree(desk.work) == expected
    assert tree(desk.cookiecutter(source=package)) == expected


@pytest.mark.parametrize("where", ["home", "variable"])
def test_defaults_are_those_of_the_user(desk: Desk, where: str) -> None:
    """The file ~/.cookiecutterrc, or the one of COOKIECUTTER_CONFIG, has defaults."""
    name = ".cookiecutterrc" if where == "home" else "config"
    env = {} if where == "home" else {"COOKIECUTTER_CONFIG": str(desk.folder / "home" / name)}
    (desk.folder / "home" / name).write_text(
        "default_context: {project_name: Mine, database: postgresql}\n"
    )
    desk.new("--no-input", "environment=sync", **env)
    assert list((desk.folder / "home").iterdir()) == [desk.folder / "home" / name]
    (desk.folder / "home" / name).unlink()
    expected = desk.cookiecutter("project_name=Mine", "database=postgresql", "environment=sync")
    assert tree(desk.work) == tree(expected)


def test_default_that_is_no_choice_is_one_warning(desk: Desk) -> None:
    """A default that another template may have as a choice is left out, with a warning."""
    config = desk.folder / "home" / ".cookiecutterrc"
    config.write_text("default_context: {database: oracle}\n")
    done = desk.run(cli.__name__, "new", "--no-input")
    assert "Warning: Invalid default received: oracle provided for choice variable" in done.stderr
    assert (desk.work / "my-project" / "README.md").is_file()


def test_broken_configuration_is_one_sentence(desk: Desk) -> None:
    """A configuration that cannot be read is named with the reason."""
    config = desk.folder / "home" / ".cookiecutterrc"
    config.write_text("a: [")
    sentence = f"No project can be made in .: Unable to parse YAML file {config}."
    assert desk.refused("--no-input") == sentence


def test_no_home_is_needed(desk: Desk) -> None:
    """Where the home is missing, the project is made all the same, and no home."""
    (desk.folder / "home").rmdir()
    desk.new("--no-input")
    assert (desk.work / "my-project" / "README.md").is_file()
    assert not (desk.folder / "home").exists()
