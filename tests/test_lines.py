"""The scripts that count what an owner gets, and keep the copies of a module the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tree

COUNT, COPY = "scripts/count_lines.py", "scripts/copy_modules.py"

STALE = "scripts/lines.json is stale: run python scripts/count_lines.py --write.\n"

SOURCE = '''\
"""A module.

Its docstring has a blank line.
"""

import sys  # a comment beside code

# A comment of its own.
TEXT = """Not a docstring,

though it has a blank line."""


class Thing:
    """A class."""

    size = 1
    """What stands alone explains an attribute."""

    def name(
        self,
    ) -> str:
        """Return the name."""
        # A comment.
        return (
            "thing"
            # A comment inside of an expression.
        )
'''


def script(folder: Path, *args: str, code: int = 0) -> str:
    """Run a script of a checkout from anywhere; return what it prints, errors last."""
    done = subprocess.run(
        [sys.executable, folder / args[0], *args[1:]],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != code:
        pytest.fail(f"{args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def unwanted(folder: str, names: list[str]) -> list[str]:
    """Return the names in a folder that no copy needs: caches, and what takes long to count."""
    return [
        name for name in names if name == "__pycache__" or Path(folder, name).stat().st_size > 9_500
    ]


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the scripts look at, without large modules, after a run of both."""
    copy = tmp_path_factory.mktemp("counted")
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "scripts", copy / "scripts", ignore=no_caches)
    for name in ("src", "templates"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    (copy / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.0\n")
    (copy / "scripts" / "lines.json").write_text("{}")
    script(copy, COPY)
    script(copy, COUNT, "--write")
    return copy


@pytest.fixture
def checkout(counted: Path, tmp_path: Path) -> Path:
    """A copy of that, in which a test may write."""
    return Path(shutil.copytree(counted, tmp_path / "checkout"))


def numbers(checkout: Path, name: str) -> list[int]:
    """Return what is printed of the last file, or the sum, of a name: code, docstrings, comments."""
    rows = re.findall(rf"^ *{re.escape(name)} +(\d.*)$", script(checkout, COUNT), re.MULTILINE)
    return [int(number) for number in rows[-1].split()[:3]]


def grow(checkout: Path, template: str) -> int:
    """Add a line of code to a template, and return the number that it has then."""
    with (checkout / "templates" / template / "env.py").open("a", encoding="utf-8") as file:
        file.write("pass\n")
    return numbers(checkout, template)[0]


def say(checkout: Path, line: str, heading: str = "## Unreleased\n") -> None:
    """Write a line under a heading of the changelog."""
    path = checkout / "CHANGELOG.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(heading, f"{heading}\n{line}\n"), encoding="utf-8")


# --- lines -------------------------------------------------------------------------------------


def test_numbers_of_lines_are_those_that_were_written() -> None:
    """No owner gets more lines than lines.json has, which is written if the changelog says so."""
    script(ROOT, COUNT, "--check")


def test_each_kind_of_line_is_counted(checkout: Path) -> None:
    """Code, docstrings and comments are told apart; blank lines and a README are not counted."""
    before = numbers(checkout, "sync")
    (checkout / "templates" / "sync" / "counted.py").write_text(SOURCE, encoding="utf-8")
    (checkout / "templates" / "sync" / "counted.mako").write_text("# comment\n\ncode = 1\n")
    (checkout / "templates" / "sync" / "README").write_text("Words.\n")
    assert numbers(checkout, "counted.py") == [11, 7, 3]
    assert numbers(checkout, "counted.mako") == [1, 0, 1]
    assert numbers(checkout, "sync") == [n + m for n, m in zip(before, [12, 7, 4], strict=True)]


def test_lines_for_an_owner_without_sqlite(checkout: Path) -> None:
    """What an owner may delete is left out of a sum of its own, and of no other."""
    (checkout / "templates" / "sync" / "sqlite_transactions.py").write_text("a = 1\nb = 2\n")
    assert numbers(checkout, "sync without sqlite_transactions.py")[0] == (
        numbers(checkout, "sync")[0] - 2
    )


def test_growth_needs_a_line_in_the_changelog(checkout: Path) -> None:
    """A sum that has grown is refused until the section Unreleased has its name and its number."""
    now = grow(checkout, "shared")
    sentence = (
        f"shared has grown from {now - 1} to {now} lines of code: say so in the section Unreleased "
        f"of CHANGELOG.md, in a line with `shared` and {now}.\n"
    )
    say(checkout, f"- `shared` has {now} lines.", "## 0.1.0\n")
    say(checkout, f"- `shared` has {now}0 lines.")
    say(checkout, f"- Some shared lines are {now}.")
    for option in ("--check", "--write"):
        assert script(checkout, COUNT, option, code=1) == sentence


def test_growth_with_a_line_in_the_changelog_is_written(checkout: Path) -> None:
    """With that line the number is stale until it is written, and right afterwards."""
    now = grow(checkout, "shared")
    say(checkout, f"- `shared` has {now} lines of code, one more, for a test.")
    assert script(checkout, COUNT, "--check", code=1) == STALE
    script(checkout, COUNT, "--write")
    assert script(checkout, COUNT, "--check") == ""


def test_fewer_lines_are_written_without_a_word(checkout: Path) -> None:
    """A sum that has shrunk makes the numbers stale, and from then on is the most that it may be."""
    (checkout / "templates" / "asyncio" / "script.py.mako").unlink()
    assert script(checkout, COUNT, "--check", code=1) == STALE
    script(checkout, COUNT, "--write")
    assert script(checkout, COUNT, "--check") == ""
    grow(checkout, "asyncio")
    assert "asyncio has grown" in script(checkout, COUNT, "--check", code=1)


# --- CONTRIBUTING.md ---------------------------------------------------------------------------


def commands(program: str) -> list[str]:
    """Return the commands of CONTRIBUTING.md that run a program, without the comments."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(rf"^({re.escape(program)} .+?)(?: +#.*)?$", text, re.MULTILINE)
    assert found
    return found


def test_commands_of_contributing_that_run_scripts_work(checkout: Path) -> None:
    """One after another, they end well and leave templates that agree with lines.json."""
    with (checkout / "templates" / "multitenant" / "script.py.mako").open("a") as file:
        file.write("# a comment\n")
    before = tree(checkout / "templates")
    for command in commands("python3"):
        if " -m venv " not in command:
            script(checkout, *command.split()[1:])
    changed = {path for path, held in tree(checkout / "templates").items() if held != before[path]}
    assert changed == {f"{other}/script.py.mako" for other in ("asyncio", "shared", "sync")}


def test_commands_of_contributing_that_check_are_those_of_tox() -> None:
    """What it says to run by hand is what tox runs, to the word."""
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    for program in ("ruff", "black", "mypy"):
        for command in commands(f".venv/bin/{program}"):
            assert re.search(rf"(^|= | {{4}}){command.partition('bin/')[2]}$", tox, re.MULTILINE)


@pytest.mark.parametrize("command", commands(".venv/bin/pytest"))
def test_commands_of_contributing_select_tests(command: str) -> None:
    """Each command of pytest finds tests."""
    args = [sys.executable, "-m", *command.partition("bin/")[2].split(), "--collect-only", "-q"]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- copies ------------------------------------------------------------------------------------


def test_edit_of_a_module_reaches_its_copies(checkout: Path) -> None:
    """The copy in multitenant is edited; the others are named, and written by one command."""
    templates = checkout / "templates"
    name = "database_url.py"
    (templates / "multitenant" / name).write_text("edited\n", encoding="utf-8")
    others = ["shared", "asyncio", "sync"]
    assert script(checkout, COPY, "--check", code=1) == "".join(
        [
            *(
                f"templates/{other}/{name}: differs from templates/multitenant/{name}\n"
                for other in others
            ),
            "Edit the file in the second place, and run python scripts/copy_modules.py.\n",
        ]
    )
    before = tree(templates)
    printed = script(checkout, COPY)
    assert printed.count(f"copied from templates/multitenant/{name}\n") == 3
    changed = {path for path, held in tree(templates).items() if held != before[path]}
    assert changed == {f"{other}/{name}" for other in others}
    assert {(templates / other / name).read_text() for other in others} == {"edited\n"}
    assert script(checkout, COPY, "--check") == ""


def test_own_files_are_never_copied(checkout: Path) -> None:
    """What each template has of its own stays, and no template gets a file that it has not."""
    for name in ("README", "alembic.ini.mako", "env.py", "new.py"):
        (checkout / "templates" / "multitenant" / name).write_text("edited\n", encoding="utf-8")
    before = tree(checkout / "templates")
    assert script(checkout, COPY, "--check") == script(checkout, COPY) == ""
    assert tree(checkout / "templates") == before


def test_file_that_multitenant_has_not_is_copied_from_the_next(checkout: Path) -> None:
    """The first template of the order that has a file is the place to edit it."""
    templates = checkout / "templates"
    for template in ("shared", "sync"):
        (templates / template / "new.py").write_text(f"{template}\n", encoding="utf-8")
    assert script(checkout, COPY) == "templates/sync/new.py: copied from templates/shared/new.py\n"
    assert (templates / "sync" / "new.py").read_text() == "shared\n"
