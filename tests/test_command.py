"""The command `alembic-templates`, on a Python with an Alembic of its own to install into."""

from __future__ import annotations

import ast
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT, run
from sandboxes import Program, Sandbox, make_venv

import alembic_templates
from alembic_templates import cli
from alembic_templates._catalog import catalog, templates_folder
from alembic_templates._install import install, needed, target_of

SHARED = templates_folder() / "shared"
OTHER = "its answer is not a Python's"
VERBS = ["init", "list", "install", "uninstall", "path", "diff"]
VERBS += ["try", "prune", "lint", "rebase", "new"]

# Runs a program as a user who may not write where the mode says so, which root may: without the
# capability CAP_DAC_OVERRIDE (1), by prctl's PR_CAPBSET_DROP (24).
UNPRIVILEGED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

# Runs a program that can write no file of more than 2,000 bytes, as on a disk that fills up. It is
# not measured by `tox -e coverage`, whose files are larger.
NO_SPACE = """
import os, resource, sys
os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
os.execv(sys.argv[1], sys.argv[1:])
"""

# Kills its process in front of the n-th change that it makes to the file system.
KILLER = """
import os, signal, sys

CHANGES = {"fcntl.flock", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.copyfile"}

def kill_before(change):
    left = [change]
    def count(event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            left[0] -= 1
            if left[0] == 0:
                os.write(2, b"killed")
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

if "KILL_BEFORE" in os.environ:
    kill_before(int(os.environ["KILL_BEFORE"]))
"""

# Changes `shared` again and again, each time killed one change later, and looks at what each kill
# leaves: the state before (a copy of it is the third argument, if any), the state after, or none.
KILLED = f"""
{KILLER}
import shutil
from io import StringIO
from pathlib import Path
from alembic import command
from alembic.config import Config
from alembic_templates._install import install, states, target_of, uninstall

target = target_of(sys.executable)
place = target.folder / "shared"
work = dict(install=install, uninstall=uninstall)[sys.argv[1]]
force = sys.argv[2] == "--force"

def content():
    paths = place.rglob("*") if place.exists() else ()
    return {{path.relative_to(place): path.read_bytes() for path in paths if path.is_file()}}

def in_child(change):
    pid = os.fork()
    if pid == 0:
        kill_before(change)
        work("shared", target, force=force)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def set_up():
    shutil.rmtree(place, ignore_errors=True)
    if len(sys.argv) > 3:
        shutil.copytree(sys.argv[3], place)
    return content()

before = set_up()
assert in_child(0) == 0
after = content()
named = [("before", before), ("after", after), ("none", {{}})]
kills = []
for change in range(1, 1000):
    set_up()
    if in_child(change) == 0:
        break
    left = content()
    kills.append(next((name for name, each in named if each == left), "half"))
    listed = StringIO()
    command.list_templates(Config(stdout=listed))
    assert ("shared - " in listed.getvalue()) == bool(left), listed.getvalue()
    states(target)
    assert content() == left
    assert not list(target.folder.parent.glob(".alembic-templates*"))
    assert in_child(0) == 0
    assert content() == after
print(*kills)
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The command in the tests' own Python, in an empty folder."""
    return Program(tmp_path)


@pytest.fixture
def other_version(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with another version: `shared` differs, and `retired` is added."""
    package = tmp_path / "other" / "alembic_templates"
    ignore = shutil.ignore_patterns("templates")
    shutil.copytree(Path(alembic_templates.__file__).parent, package, ignore=ignore)
    for name in ("shared", "retired"):
        folder = package / "templates" / name
        shutil.copytree(SHARED, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "old_module.py").write_text("# of another version\n", encoding="utf-8")
        # As pip leaves it in an installed template.
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "env.cpython-311.pyc").write_bytes(b"compiled")
    return package.parent


def installed(sandbox: Sandbox) -> None:
    """Install `shared`."""
    install("shared", sandbox.target, force=False)


def edited(sandbox: Sandbox) -> str:
    """Install `shared` and edit a file of it."""
    installed(sandbox)
    with (sandbox.templates / "shared" / "env.py").open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    return "env.py"


def deleted(sandbox: Sandbox) -> str:
    """Install `shared` and delete a file of it."""
    installed(sandbox)
    (sandbox.templates / "shared" / "script.py.mako").unlink()
    return "script.py.mako"


def added_file(sandbox: Sandbox) -> str:
    """Install `shared` and put a file into it."""
    installed(sandbox)
    (sandbox.templates / "shared" / "mine.py").write_text("", encoding="utf-8")
    return "mine.py"


def added_folder(sandbox: Sandbox) -> str:
    """Install `shared` and put a folder into it."""
    installed(sandbox)
    folder = sandbox.templates / "shared" / "my_notes"
    folder.mkdir()
    (folder / "note").write_text("mine\n", encoding="utf-8")
    return "my_notes"


def manifest_cut(sandbox: Sandbox) -> str:
    """Install `shared` and cut its manifest short; no file of it can be told to be unmodified."""
    installed(sandbox)
    manifest = sandbox.templates / "shared" / ".alembic-templates" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:40])
    return ", ".join(sorted(path.name for path in SHARED.iterdir() if path.is_file()))


def foreign(sandbox: Sandbox) -> None:
    """Put another template of the same name there."""
    shutil.copytree(sandbox.templates / "generic", sandbox.templates / "shared")


def listed(sandbox: Sandbox) -> dict[str, str]:
    """Return the state of each template, as `list` shows it."""
    lines = sandbox.command("list").splitlines()
    return {line.split()[0]: line.rpartition("[")[2].removesuffix("]") for line in lines}


def test_list_shows_every_template_with_the_first_line_of_its_readme(sandbox: Sandbox) -> None:
    """The list names every template, with its synopsis and its state."""
    lines = sandbox.command("list").splitlines()
    readmes = {name: (templates_folder() / name / "README").read_text() for name in catalog()}
    width = max(map(len, readmes))
    assert lines == [
        f"{name:{width}}  {readme.splitlines()[0]}  [not installed]"
        for name, readme in sorted(readmes.items())
    ]


@pytest.mark.parametrize(
    ("prepare", "state"),
    [
        pytest.param(installed, "installed", id="installed"),
        pytest.param(edited, "modified", id="edited"),
        pytest.param(deleted, "modified", id="deleted"),
        pytest.param(added_file, "modified", id="added-file"),
        pytest.param(foreign, "not installed, another template has the name", id="foreign"),
    ],
)
def test_list_shows_the_state(
    sandbox: Sandbox, prepare: Callable[[Sandbox], object], state: str
) -> None:
    """The list says how a template stands in the Alembic of this Python."""
    prepare(sandbox)
    assert listed(sandbox)["shared"] == state


def test_list_shows_what_another_version_has_installed_as_outdated(
    sandbox: Sandbox, other_version: Path
) -> None:
    """A template as another version installed it is outdated, not modified."""
    sandbox.command("install", "shared", PYTHONPATH=str(other_version))
    assert listed(sandbox)["shared"] == "outdated"


def test_compiled_files_are_no_modification(sandbox: Sandbox) -> None:
    """A __pycache__ in an installed template leaves it installed, and goes with it."""
    installed(sandbox)
    sandbox.run(sandbox.python, "-m", "compileall", "-q", sandbox.templates / "shared")
    assert (sandbox.templates / "shared" / "__pycache__").is_dir()
    assert listed(sandbox)["shared"] == "installed"
    sandbox.command("uninstall", "shared")
    assert not (sandbox.templates / "shared").exists()


def test_install_puts_all_templates_there_and_nothing_else(sandbox: Sandbox) -> None:
    """Without a name, all templates are copied, each with its manifest; no other file changes."""
    before = sandbox.tree()
    printed = sandbox.command("install")
    assert printed.splitlines() == [
        f"{name}: installed in {sandbox.templates}" for name in catalog()
    ]
    after = sandbox.tree()
    expected: dict[str, bytes | None] = {}
    for name, template in catalog().items():
        place = f"alembic/templates/{name}"
        expected[place] = expected[f"{place}/.alembic-templates"] = None
        manifest = f"{place}/.alembic-templates/manifest.json"
        expected[manifest] = after[manifest]
        for path in template.folder.iterdir():
            if path.is_file():
                expected[f"{place}/{path.name}"] = path.read_bytes()
    assert after == {**before, **expected}


def test_install_takes_names(sandbox: Sandbox, other_version: Path) -> None:
    """With a name, that template alone is installed."""
    sandbox.command("install", "retired", PYTHONPATH=str(other_version))
    assert (sandbox.templates / "retired").is_dir()
    assert not (sandbox.templates / "shared").exists()


def test_install_a_second_time_changes_nothing(sandbox: Sandbox) -> None:
    """A template that is up to date is not written again."""
    installed(sandbox)
    folder = sandbox.templates / "shared"
    before = {path: path.stat() for path in (folder, *folder.rglob("*"))}
    assert sandbox.command("install", "shared") == f"shared: is up to date in {sandbox.templates}\n"
    after = {path: path.stat() for path in (folder, *folder.rglob("*"))}
    assert {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in after.items()} == {
        path: (stat.st_ino, stat.st_mtime_ns) for path, stat in before.items()
    }


def test_install_replaces_what_another_version_has_installed(
    sandbox: Sandbox, other_version: Path
) -> None:
    """An outdated template is replaced without --force, and files that are gone go."""
    installed(sandbox)
    expected = sandbox.tree()
    sandbox.command("install", "shared", PYTHONPATH=str(other_version))
    assert (sandbox.templates / "shared" / "old_module.py").is_file()
    assert sandbox.command("install", "shared") == f"shared: replaced in {sandbox.templates}\n"
    assert sandbox.tree() == expected


def test_install_refuses_a_template_of_somebody_else(sandbox: Sandbox) -> None:
    """A folder that this command did not make is kept, unless --force is given."""
    foreign(sandbox)
    before = sandbox.tree()
    assert sandbox.refused("install", "shared") == (
        f"{sandbox.templates / 'shared'} was not installed by alembic-templates: rename it, or "
        "give --force."
    )
    assert sandbox.tree() == before
    sandbox.command("install", "shared", "--force")
    assert sandbox.state() == "installed"


@pytest.mark.parametrize("options", [(), ("--force",)], ids=["plain", "force"])
def test_install_never_replaces_a_template_that_alembic_ships(
    sandbox: Sandbox, options: tuple[str, ...]
) -> None:
    """A name that Alembic ships is Alembic's, also with --force."""
    foreign(sandbox)
    record = next(sandbox.site.glob("alembic-*.dist-info")) / "RECORD"
    with record.open("a", encoding="utf-8") as file:
        file.write("alembic/templates/shared/env.py,,\n")
    before = sandbox.tree()
    assert sandbox.refused("install", "shared", *options) == (
        "Alembic ships a template 'shared' of its own, which is never replaced: use "
        "alembic-templates init shared migrations."
    )
    assert sandbox.tree() == before


def test_install_of_an_unknown_name_installs_nothing(sandbox: Sandbox) -> None:
    """One unknown name among several lists the known ones, and none is installed."""
    before = sandbox.tree()
    assert sandbox.refused("install", "shared", "nope") == (
        f"There is no template 'nope': expected {', '.join(catalog())}."
    )
    assert sandbox.tree() == before


@pytest.mark.parametrize("path", ["venv/bin/python", "{folder}/venv/bin/python"])
def test_install_into_another_python(sandbox: Sandbox, path: str) -> None:
    """With --python the templates go to the Alembic of that Python, and not to this one's."""
    python = path.format(folder=sandbox.folder)
    own = sandbox.run(sys.executable, "-m", "alembic", "list_templates").stdout
    done = sandbox.run(sys.executable, "-m", cli.__name__, "install", "--python", python)
    assert f"installed in {sandbox.templates}\n" in done.stdout
    assert sandbox.state() == "installed"
    assert sandbox.run(sys.executable, "-m", "alembic", "list_templates").stdout == own


def not_executable_format(folder: Path) -> Path:
    """Return a file that may be executed, and cannot be."""
    path = folder / "text"
    path.write_text("no program", encoding="utf-8")
    path.chmod(0o755)
    return path


def script(folder: Path, *lines: str) -> Path:
    """Return a shell script of these lines."""
    path = folder / "script"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            lambda folder: folder / "no-such-python", "No such file or directory", id="unknown"
        ),
        pytest.param(lambda folder: folder, "Permission denied", id="folder"),
        pytest.param(not_executable_format, "Exec format error", id="text-file"),
        pytest.param(lambda folder: shutil.which("true"), OTHER, id="other-program"),
        pytest.param(
            lambda folder: shutil.which("false"), "no error was printed", id="failing-program"
        ),
        pytest.param(
            lambda folder: make_venv(folder / "bare"),
            "importlib.metadata.PackageNotFoundError: No package metadata was found for alembic",
            id="without-alembic",
        ),
        pytest.param(
            lambda folder: script(folder, r"printf 'caf\351\n' >&2", "exit 1"),
            r"caf\xe9",
            id="error-in-latin-1",
        ),
        *(
            pytest.param(
                lambda folder, printed=printed: script(folder, f"printf '{printed}'"),
                OTHER,
                id=f"prints-{printed}",
            )
            for printed in (
                "5",
                "null",
                '"text"',
                "[null, []]",
                '["/folder", []]',
                '{"folder": 5}',
                r"caf\351",
                r"\000",
            )
        ),
    ],
)
def test_python_that_cannot_be_used_is_one_sentence(
    sandbox: Sandbox, make: Callable[[Path], object], reason: str
) -> None:
    """A --python that is no Python with an Alembic is refused by its name, with the reason."""
    python = str(make(sandbox.folder))
    assert sandbox.refused("install", "--python", python) == (
        f"{python} cannot be used ({reason}): expected a Python that has Alembic 1.16 or later, "
        "such as .venv/bin/python."
    )


def test_another_alembic_found_first_is_refused(sandbox: Sandbox) -> None:
    """A project's own package of that name, on PYTHONPATH, is not where templates are put."""
    other = sandbox.folder / "alembic"
    other.mkdir()
    (other / "__init__.py").touch()
    script = sandbox.python.with_name("alembic-templates")
    own = {"PYTHONPATH": str(sandbox.folder)}
    done = sandbox.run(sandbox.python, script, "install", code=1, **own)
    assert f"({other}/templates does not exist)" in done.stderr
    assert list(other.iterdir()) == [other / "__init__.py"]


def test_folder_is_where_alembic_looks(sandbox: Sandbox) -> None:
    """What is found without an import of Alembic is what Alembic says itself."""
    said = "from alembic.config import Config; print(Config().get_template_directory())"
    assert sandbox.run(sandbox.python, "-c", said).stdout == f"{sandbox.templates}\n"
    assert target_of(str(sandbox.python)).folder == sandbox.templates


def test_oldest_versions_are_those_of_the_dependencies() -> None:
    """What `install` takes for too old is what pyproject.toml says, for the same two names."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (line,) = re.findall(r"^dependencies = (.+)$", pyproject, re.MULTILINE)
    assert [f"{name}>={oldest}" for name, oldest in needed().items()] == ast.literal_eval(line)
    assert list(needed()) == ["alembic", "sqlalchemy"]


@pytest.mark.packaging
@pytest.mark.parametrize(
    ("alembic", "sqlalchemy", "sentence"),
    [
        pytest.param("1.13.3", "2.0.30", "alembic 1.16 or later, and {} has 1.13.3", id="alembic"),
        pytest.param("1.13.3", "1.4.54", "alembic 1.16 or later, and {} has 1.13.3", id="both"),
        pytest.param(
            "1.16.0", "1.4.54", "sqlalchemy 2.0.30 or later, and {} has 1.4.54", id="sqlalchemy"
        ),
    ],
)
def test_old_alembic_is_refused_and_can_be_cleared(
    tmp_path: Path, alembic: str, sqlalchemy: str, sentence: str
) -> None:
    """Nothing is installed into what is too old, also with --force; what is there can be removed."""
    python = make_venv(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "-q"]
    versions = [f"alembic=={alembic}", f"sqlalchemy=={sqlalchemy}"]
    run(tmp_path, *pip, "install", *versions, HOME=os.environ["HOME"])
    old = Sandbox(tmp_path)
    install("shared", old.target, force=False)
    before = old.tree()

    def command(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return old.run(sys.executable, "-m", cli.__name__, *args, code=code)

    for force in ([], ["--force"]):
        done = command("install", "--python", str(python), *force, code=1)
        needs = f"The templates need {sentence.format(python)}"
        assert done.stderr == f"error: {needs}: upgrade it first.\n"
        assert done.stdout == ""
        assert old.tree() == before
    assert "[installed]" in command("list", "--python", str(python)).stdout
    old.alembic("init", "-t", "shared", "migrations")
    assert command("diff", "shared", "migrations").stdout == ""
    printed = command("uninstall", "--python", str(python)).stdout
    assert printed == f"shared: removed from {old.templates}\n"


@pytest.mark.parametrize("active", ["other", "same", "link"])
def test_install_beside_the_active_environment_is_said(sandbox: Sandbox, active: str) -> None:
    """Where the active virtual environment is another one, a line says so; the rest is the same."""
    (sandbox.folder / "link").symlink_to(sandbox.folder / "venv")
    folder = sandbox.folder / ("venv" if active == "same" else active)
    program = sandbox.python.with_name("alembic-templates")
    done = sandbox.run(sandbox.python, program, "install", "shared", VIRTUAL_ENV=str(folder))
    assert done.stdout == f"shared: installed in {sandbox.templates}\n"
    assert done.stderr == (
        ""
        if active != "other"
        else warning(sandbox, f"not in the active virtual environment {folder}")
    )


def test_a_python_that_is_named_is_meant(sandbox: Sandbox) -> None:
    """With --python nothing is said of the active virtual environment."""
    program = sandbox.python.with_name("alembic-templates")
    args = ["install", "shared", "--python", str(sandbox.python)]
    done = sandbox.run(sandbox.python, program, *args, VIRTUAL_ENV=str(sandbox.folder / "other"))
    assert done.stdout == f"shared: installed in {sandbox.templates}\n"
    assert done.stderr == ""


def warning(sandbox: Sandbox, where: str) -> str:
    """Return the warning of templates that a project's Alembic will not find."""
    return (
        f"warning: the templates are for {sandbox.python}, which is {where}: install them where the "
        "project has its Alembic, by --python .venv/bin/python, or use alembic-templates init, "
        "which needs no install.\n"
    )


@pytest.mark.parametrize("receipt", ["pipx_metadata.json", "uv-receipt.toml"])
def test_install_into_the_environment_of_the_command_alone_is_said(
    sandbox: Sandbox, receipt: str
) -> None:
    """Under pipx and uv the command has an Alembic of its own, which no project runs."""
    (sandbox.folder / "venv" / receipt).touch()
    program = sandbox.python.with_name("alembic-templates")
    done = sandbox.run(sandbox.python, program, "install", "shared")
    assert done.stdout == f"shared: installed in {sandbox.templates}\n"
    assert done.stderr == warning(sandbox, "in an environment that is for this command alone")


def test_migrations_in_a_folder_named_alembic_are_not_taken_for_alembic(sandbox: Sandbox) -> None:
    """The working directory may be a project whose migrations are a package named alembic."""
    (sandbox.folder / "alembic").mkdir()
    (sandbox.folder / "alembic" / "__init__.py").write_text("raise RuntimeError\n")
    sandbox.command("install")
    assert sandbox.state() == "installed"


def test_alembic_knows_an_installed_template(sandbox: Sandbox, other_version: Path) -> None:
    """Alembic lists and renders it, without our manifest and without compiled files."""
    sandbox.command("install", "retired", PYTHONPATH=str(other_version))
    sandbox.command("install", "shared")
    synopsis = (SHARED / "README").read_text(encoding="utf-8").splitlines()[0]
    assert f"shared - {synopsis}\n" in sandbox.alembic("list_templates")
    for name, source in {"shared": SHARED, "retired": sandbox.templates / "retired"}.items():
        sandbox.alembic("init", "-t", name, name)
        rendered = {path.name for path in (sandbox.folder / name).iterdir()} - {"versions"}
        expected = {path.name for path in source.iterdir() if path.is_file()}
        assert rendered == expected - {"alembic.ini.mako"}
        (sandbox.folder / "alembic.ini").unlink()
    # It would be copied along by a later Alembic that copies folders, too.
    assert not (sandbox.templates / "retired" / "__pycache__").exists()


@pytest.mark.parametrize(
    ("start", "verb", "options"),
    [
        pytest.param("absent", "install", "", id="first-install"),
        pytest.param("outdated", "install", "", id="update"),
        pytest.param("modified", "install", "--force", id="replacement"),
        pytest.param("outdated", "uninstall", "", id="uninstall"),
    ],
)
def test_killed_command_leaves_the_old_or_the_new_template(
    sandbox: Sandbox, other_version: Path, start: str, verb: str, options: str
) -> None:
    """Killed before any change that it makes, a command leaves one whole state, or none at all.

    None is left between the two renames of a replacement alone. The next command, if only `list`,
    clears up, and the same command does the work.
    """
    original = sandbox.tree()
    args: list[str | Path] = [verb, options]
    if start != "absent":
        sandbox.command("install", "shared", PYTHONPATH=str(other_version))
        if start == "modified":
            (sandbox.templates / "shared" / "mine.py").write_text("", encoding="utf-8")
        args.append(sandbox.folder / "old")
        (sandbox.templates / "shared").rename(args[-1])
    kills = sandbox.run(sandbox.python, "-c", KILLED, *args).stdout.split()
    none = ["none"] if verb == "install" and start != "absent" else []
    before, after = kills.count("before"), kills.count("after")
    assert kills == [*["before"] * before, *none, *["after"] * after]
    assert before > (len(list(SHARED.iterdir())) if verb == "install" else 1)
    assert after > 0
    sandbox.command("uninstall")
    assert sandbox.tree() == original


@pytest.mark.parametrize("seed", range(3))
def test_commands_at_once_leave_whole_templates(
    sandbox: Sandbox, other_version: Path, seed: int
) -> None:
    """Two versions installed and removed by many processes, some of them killed: one stays, whole."""
    original = sandbox.tree()
    killer = sandbox.folder / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(KILLER, encoding="utf-8")
    other = {"PYTHONPATH": f"{other_version}{os.pathsep}{killer}"}
    own = {"PYTHONPATH": str(killer)}

    def content() -> dict[str, bytes]:
        place = sandbox.templates / "shared"
        paths = [path for path in place.rglob("*") if path.is_file()]
        return {str(path.relative_to(place)): path.read_bytes() for path in paths}

    whole: list[dict[str, bytes]] = [{}]
    for variables in (other, own):
        sandbox.command("install", "shared", **variables)
        whole.append(content())
    chance = random.Random(seed)
    started = []
    for number in range(10):
        verb = ("install", "install", "uninstall")[number % 3]
        variables = {**sandbox.env, **(own if number % 2 else other)}
        kills = number > 6
        if kills:
            variables["KILL_BEFORE"] = str(chance.randrange(1, 30))
        script = sandbox.python.with_name("alembic-templates")
        process = subprocess.Popen(
            [sandbox.python, script, verb, "shared"],
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append((process, kills))
    for process, kills in started:
        error = process.communicate(timeout=120)[1]
        killed = kills and error == "killed"  # or there were fewer changes to make
        assert (process.returncode, error) == ((-signal.SIGKILL, "killed") if killed else (0, ""))
    assert content() in whole
    sandbox.alembic("list_templates")
    sandbox.command("list")
    assert content() in whole
    sandbox.command("install", "shared")
    assert content() == whole[2]
    sandbox.command("uninstall")
    assert sandbox.tree() == original


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_read_only_alembic_is_one_sentence(sandbox: Sandbox, verb: str) -> None:
    """Who may not write there is told the folder and the way without an install."""
    if verb == "uninstall":
        installed(sandbox)
    before = sandbox.tree()
    for folder in (sandbox.templates, sandbox.templates.parent):
        folder.chmod(0o555)
    assert sandbox.refused(verb, "shared", wrapper=UNPRIVILEGED) == (
        f"{sandbox.templates} cannot be changed (Permission denied): use a template without "
        "installing it, by alembic-templates init NAME migrations."
    )
    assert sandbox.tree() == before


def test_install_without_space_leaves_nothing(sandbox: Sandbox) -> None:
    """A template that cannot be written whole is not written at all."""
    before = sandbox.tree()
    sentence = sandbox.refused("install", "shared", wrapper=NO_SPACE)
    assert sentence.startswith(f"{sandbox.templates} cannot be changed (File too large): ")
    assert sandbox.tree() == before


@pytest.mark.parametrize(
    ("args", "left"),
    [
        pytest.param((), set(), id="all"),
        pytest.param(("shared",), {"retired"}, id="by-name"),
        pytest.param(("retired",), {"shared"}, id="no-longer-shipped"),
    ],
)
def test_uninstall_removes_what_was_installed_and_nothing_else(
    sandbox: Sandbox, other_version: Path, args: tuple[str, ...], left: set[str]
) -> None:
    """Templates of this version or another go, and every other file stays as it is."""
    (sandbox.templates / "mine").mkdir()
    (sandbox.templates / "mine" / "README").write_text("My own template.\n")
    before = sandbox.tree()
    sandbox.command("install", PYTHONPATH=str(other_version))
    both = sandbox.tree()
    printed = sandbox.command("uninstall", *args)
    gone = sorted({"retired", "shared"} - left)
    assert printed.splitlines() == [f"{name}: removed from {sandbox.templates}" for name in gone]
    kept = {
        path: content for path, content in both.items() if set(Path(path).parts[2:3]) & set(left)
    }
    assert sandbox.tree() == {**before, **kept}


@pytest.mark.parametrize(
    ("verb", "action", "left"),
    [
        pytest.param("install", "replace", "installed", id="install"),
        pytest.param("uninstall", "remove", "not installed", id="uninstall"),
    ],
)
@pytest.mark.parametrize(
    "modify",
    [
        pytest.param(edited, id="edited"),
        pytest.param(added_folder, id="added-folder"),
        pytest.param(manifest_cut, id="manifest-cut"),
    ],
)
def test_modified_template_is_refused(
    sandbox: Sandbox, modify: Callable[[Sandbox], str], verb: str, action: str, left: str
) -> None:
    """What a user has changed is named and kept, unless --force is given."""
    names = modify(sandbox)
    before = sandbox.tree()
    assert sandbox.refused(verb, "shared") == (
        f"{sandbox.templates / 'shared'} was modified since it was installed ({names}): "
        f"give --force to {action} it."
    )
    assert sandbox.tree() == before
    sandbox.command(verb, "shared", "--force")
    assert sandbox.state() == left
    assert not (sandbox.templates / "shared" / "my_notes").exists()


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_modified_template_does_not_stop_the_others(sandbox: Sandbox, verb: str) -> None:
    """The other templates are installed or removed, and the exit code is 1."""
    install("sync", sandbox.target, force=False)
    edited(sandbox)
    program = sandbox.python.with_name("alembic-templates")
    done = sandbox.run(sandbox.python, program, verb, code=1)
    assert done.stderr.startswith(f"error: {sandbox.templates / 'shared'} was modified since")
    assert done.stderr.count("\n") == 1
    others = "installed" if verb == "install" else "not installed"
    expected = {**dict.fromkeys(catalog(), others), "shared": "modified"}
    assert listed(sandbox) == expected
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == (
        [name for name in catalog() if name != "shared"] if verb == "install" else ["sync"]
    )


def test_error_of_all_templates_is_said_once(sandbox: Sandbox) -> None:
    """Where none of the templates can be installed for the same reason, it is one sentence."""
    for folder in (sandbox.templates, sandbox.templates.parent):
        folder.chmod(0o555)
    assert "cannot be changed" in sandbox.refused("install", wrapper=UNPRIVILEGED)


@pytest.mark.parametrize("options", [(), ("--force",)], ids=["plain", "force"])
def test_uninstall_never_removes_a_template_of_somebody_else(
    sandbox: Sandbox, options: tuple[str, ...]
) -> None:
    """A folder that this command did not make stays, also with --force."""
    foreign(sandbox)
    before = sandbox.tree()
    assert sandbox.refused("uninstall", "shared", *options) == (
        f"{sandbox.templates / 'shared'} was not installed by alembic-templates: remove it by hand."
    )
    assert sandbox.command("uninstall", *options) == ""
    assert sandbox.tree() == before


def test_uninstall_of_what_is_not_installed_is_no_error(sandbox: Sandbox) -> None:
    """To remove what is not there is to have nothing to do."""
    before = sandbox.tree()
    assert sandbox.command("uninstall", "shared") == (
        f"shared: is not installed in {sandbox.templates}\n"
    )
    assert sandbox.tree() == before


@pytest.mark.parametrize("name", ["nope", "generic", ".."])
def test_uninstall_of_an_unknown_name_removes_nothing(sandbox: Sandbox, name: str) -> None:
    """One unknown name among several lists the known ones, and none is removed."""
    installed(sandbox)
    before = sandbox.tree()
    assert sandbox.refused("uninstall", "shared", name) == (
        f"There is no template {name!r}: expected {', '.join(catalog())}."
    )
    assert sandbox.tree() == before


def test_path_is_absolute(program: Program) -> None:
    """The printed folder is absolute, and is the template's."""
    printed = program.command("path", "shared")
    assert printed == f"{SHARED}\n"
    assert SHARED.is_absolute()


def test_path_needs_no_install(sandbox: Sandbox) -> None:
    """In a shell, `alembic init` takes the printed folder as it is."""
    line = 'alembic init -t "$(alembic-templates path shared)" migrations'
    sandbox.run("sh", "-ec", line)
    rendered = {path.name for path in (sandbox.folder / "migrations").iterdir()}
    expected = {path.name for path in SHARED.iterdir() if path.is_file()} - {"alembic.ini.mako"}
    assert rendered == expected | {"versions"}
    assert not (sandbox.templates / "shared").exists()


@pytest.fixture
def environment(sandbox: Sandbox) -> Path:
    """An environment of `shared` with an edited ini file, a revision and modules of the user."""
    sandbox.alembic("init", "-t", str(SHARED), "migrations")
    folder = sandbox.folder / "migrations"
    (sandbox.folder / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
    (folder / "alembic.ini").write_text("[alembic]\nmine = yes\n")
    (folder / "mine.py").write_text("mine = True\n")
    (folder / "versions" / "abc_first.py").write_text("revision = 'abc'\n")
    return folder


def test_diff_of_an_environment_as_rendered_is_empty(sandbox: Sandbox, environment: Path) -> None:
    """What a user must edit and has added is no difference: exit code 0."""
    assert sandbox.command("diff", "shared", "migrations") == ""
    assert environment.is_dir()


def test_diff_shows_what_was_changed(sandbox: Sandbox, environment: Path) -> None:
    """A changed file is a unified diff from the template to the environment: exit code 1."""
    template = (SHARED / "env.py").read_text(encoding="utf-8")
    with (environment / "env.py").open("a", encoding="utf-8") as file:
        file.write("\n# mine")
    last = template.splitlines()
    done = sandbox.run(sandbox.python, "-m", cli.__name__, "diff", "shared", "migrations", code=1)
    assert done.stdout.splitlines() == [
        "--- shared/env.py",
        "+++ migrations/env.py",
        f"@@ -{len(last) - 2},3 +{len(last) - 2},5 @@",
        *(f" {line}" for line in last[-3:]),
        "+",
        "+# mine",
        "\\ No newline at end of file",
    ]
    assert done.stderr == ""


def test_diff_shows_a_missing_module(sandbox: Sandbox, environment: Path) -> None:
    """A module of the template that the environment lacks is a difference: all of its lines."""
    (environment / "migration_lock.py").unlink()
    done = sandbox.run(sandbox.python, "-m", cli.__name__, "diff", "shared", "migrations", code=1)
    lines = (SHARED / "migration_lock.py").read_text(encoding="utf-8").splitlines()
    assert done.stdout.splitlines() == [
        "--- shared/migration_lock.py",
        "+++ migrations/migration_lock.py",
        f"@@ -1,{len(lines)} +0,0 @@",
        *(f"-{line}" for line in lines),
    ]


@pytest.mark.parametrize("name", catalog())
def test_diff_knows_what_may_be_deleted(sandbox: Sandbox, name: str) -> None:
    """Without a file that the README marks there is no difference; with a change in it there is."""
    sandbox.alembic("init", "-t", str(templates_folder() / name), "migrations")
    folder = sandbox.folder / "migrations"
    optional = catalog()[name].optional
    assert {"autogenerate_rules.py", "sqlite_transactions.py", "mysql_lock.py"} < optional
    assert ("commands.py" in optional) == (name in {"shared", "multitenant"})
    assert ("replay.py" in optional) == (name == "multitenant")
    for file in optional - {"autogenerate_rules.py"}:
        (folder / file).unlink()
    assert sandbox.command("diff", name, "migrations") == ""
    (folder / "autogenerate_rules.py").write_text("")
    (folder / "script.py.mako").unlink()
    done = sandbox.run(sandbox.python, "-m", cli.__name__, "diff", name, "migrations", code=1)
    changed = re.findall(r"^--- (.+)$", done.stdout, re.MULTILINE)
    assert changed == [f"{name}/autogenerate_rules.py", f"{name}/script.py.mako"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("\n", "\r\n", id="carriage-returns"),
        pytest.param("import asyncio", "\f\nimport asyncio", id="form-feed"),
        pytest.param("import logging", "# \xe9 \u2028\nimport logging", id="line-separator"),
    ],
)
def test_diff_is_one_that_patch_applies(
    sandbox: Sandbox, environment: Path, old: str, new: str
) -> None:
    """Whatever ends the lines of an environment, each line of the diff is one of a patch."""
    with (SHARED / "settings.py").open(encoding="utf-8") as file:
        content = file.read()
    changed = content.replace(old, new) if old in content else f"{new}\n{content}"
    (environment / "settings.py").write_bytes(changed.encode())
    script = sandbox.python.with_name("alembic-templates")
    done = subprocess.run(
        [sandbox.python, script, "diff", "shared", "migrations"],
        cwd=sandbox.folder,
        env=sandbox.env,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stdout.decode().removesuffix("\n").split("\n")[3:]
    assert {line[:1] for line in lines} <= set(" +-@")
    added = "\n".join(line[1:] for line in lines if line[0] == "+")
    assert added in changed


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        pytest.param(
            ("nope", "migrations"),
            f"There is no template 'nope': expected {', '.join(catalog())}.",
            id="unknown-template",
        ),
        pytest.param(
            ("shared", "nowhere"),
            "nowhere has no env.py: expected the folder that alembic init has made.",
            id="no-folder",
        ),
        pytest.param(
            ("shared", "."),
            ". has no env.py: expected the folder that alembic init has made.",
            id="no-environment",
        ),
    ],
)
def test_diff_error_is_told_from_a_difference(
    program: Program, args: tuple[str, ...], sentence: str
) -> None:
    """What cannot be compared is exit code 2."""
    assert program.refused("diff", *args, code=2) == sentence


def test_version_is_that_of_the_package(program: Program) -> None:
    """The version comes from the package's metadata."""
    expected = f"alembic-templates {version('alembic-templates')}\n"
    assert program.command("--version") == expected


def test_help_has_a_working_example_of_each_verb(program: Program) -> None:
    """The help ends with one example for each verb, which the command takes."""
    printed = program.command("--help")
    examples = [
        shlex.split(line, comments=True)
        for line in printed.partition("examples:\n")[2].splitlines()
    ]
    assert [words[:2] for words in examples] == [["alembic-templates", verb] for verb in VERBS]
    for words in examples:
        cli._parser().parse_args(words[1:])


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_its_example(program: Program, verb: str) -> None:
    """The help of a verb ends with an example of it."""
    *_, last = program.command(verb, "--help", COLUMNS="200").splitlines()
    assert last.startswith(f"example: alembic-templates {verb}")


@pytest.mark.parametrize(
    "args",
    [
        pytest.param((), id="no-verb"),
        pytest.param(("init", "shared"), id="no-folder-to-make"),
        pytest.param(("nope",), id="unknown-verb"),
        pytest.param(("list", "shared"), id="too-many"),
        pytest.param(("path",), id="no-name"),
        pytest.param(("path", "shared", "sync"), id="two-names"),
        pytest.param(("diff", "shared"), id="no-folder"),
        pytest.param(("install", "--nope"), id="unknown-option"),
        pytest.param(("install", "--python"), id="no-value"),
        pytest.param(("try",), id="nothing-to-try"),
        pytest.param(("new", "here", "there"), id="two-folders"),
        pytest.param(("new", "here", "--no-input", "--nope", "a=b"), id="option-among-answers"),
        pytest.param(("path", "shared", "a=b"), id="answer-to-nothing"),
    ],
)
def test_usage_mistakes_are_exit_code_2(program: Program, args: tuple[str, ...]) -> None:
    """A mistake in the usage shows the usage and is no failure of the command."""
    script = program.python.with_name("alembic-templates")
    done = program.run(program.python, script, *args, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("usage: alembic-templates")


def test_without_a_verb_all_verbs_are_shown(program: Program) -> None:
    """The command alone prints its help, as a mistake in the usage."""
    script = program.python.with_name("alembic-templates")
    done = program.run(program.python, script, code=2)
    assert done.stderr == program.command("--help")
    assert [
        verb for verb in VERBS if not re.search(rf"^ +{verb}\b", done.stderr, re.MULTILINE)
    ] == []


def test_package_runs_as_the_command(sandbox: Sandbox) -> None:
    """`python -m alembic_templates` is the command."""
    done = sandbox.run(sandbox.python, "-m", "alembic_templates", "path", "shared")
    assert done.stdout == sandbox.command("path", "shared")
    assert (
        "usage: alembic-templates "
        in sandbox.run(sandbox.python, "-m", "alembic_templates", "--help").stdout
    )


@pytest.mark.parametrize("args", ["list", "--help", "diff shared empty"])
def test_closed_pipe_is_no_error(sandbox: Sandbox, args: str) -> None:
    """Where nobody reads the output any more, nothing is printed about that."""
    (sandbox.folder / "empty").mkdir()
    (sandbox.folder / "empty" / "env.py").touch()
    script = sandbox.python.with_name("alembic-templates")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sandbox.python, script, *args.split()],
        cwd=sandbox.folder,
        env=sandbox.env,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize("verb", ["path", "try"])
def test_unknown_template_is_one_sentence(program: Program, verb: str) -> None:
    """An unknown name lists the known ones."""
    assert program.refused(verb, "nope") == (
        f"There is no template 'nope': expected {', '.join(catalog())}."
    )
