"""The README: its first steps work as they are pasted, and what it shows and counts is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import MATRIX, ROOT, Database, environment_of_a_shell, run
from test_packaging import copy_checkout

from alembic_templates._catalog import catalog

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS = [
    "What goes wrong with a stock env.py, and not here",
    "Install, and the first migration",
    "The templates",
    "Two commands to judge it by",
    "How it compares",
    "Speed",
    "When something fails",
    "How much code you get, and why it is yours",
]


def section(title: str) -> str:
    """Return the text of a section."""
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def blocks(language: str, text: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_readme_is_short_and_in_order() -> None:
    """The README has at most 120 lines, and the losses come before the commands."""
    assert len(README.splitlines()) <= 120
    assert re.findall(r"^## (.+)", README, re.MULTILINE) == SECTIONS
    losses = re.findall(r"^- \*\*(.+?)\.?\*\*", section(SECTIONS[0]), re.MULTILINE)
    assert len(losses) == 5


def test_the_two_commands_stand_there_to_the_letter() -> None:
    """One line tries a template, and one line runs all tests; continuous integration has it too."""
    commands = [block.splitlines()[-1] for block in blocks("sh", section(SECTIONS[3]))]
    start = "python3 -m venv .venv && .venv/bin/pip install "
    assert commands == [
        f"{start}. && .venv/bin/alembic-templates try shared",
        f"{start}tox && .venv/bin/tox",
    ]


def test_readme_lists_the_templates_and_their_drivers() -> None:
    """The table of the README is the one that tests/test_matrix.py runs."""
    everything = sorted({driver for drivers in MATRIX.values() for driver in drivers})
    rows = {}
    for line in README.splitlines():
        name, *cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if name in catalog():
            listed = cells[-1]
            rows[name] = everything if listed == "all of them" else sorted(listed.split(", "))
    assert rows == {template: sorted(drivers) for template, drivers in MATRIX.items()}
    assert set(MATRIX) == set(catalog())


@pytest.mark.packaging
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_first_steps_work_as_they_are_pasted(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """From a checkout and a shell alone, the blocks bring a person's models into their database."""
    database = request.getfixturevalue(kind)
    steps = section(SECTIONS[1])
    install, paste = blocks("sh", steps)
    if kind == "postgresql":
        driver = re.search(r"`(pip install \"psycopg\[binary\]\")`", steps)
        url = re.search(r"`(DATABASE_URL=\S+)`", steps)
        assert driver
        assert url
        install += f"{driver[1]}\n"
        paste = paste.replace("DATABASE_URL=sqlite:///app.db", url[1])
        assert url[1] in paste
        paste = paste.replace(url[1], f"DATABASE_URL='{database.text}'")
    copy_checkout(tmp_path / "checkout")
    done = paste_into_a_shell(tmp_path / "checkout", f"{install}{paste}alembic check\n")
    if done.returncode or "Traceback" in done.stdout:
        pytest.fail(done.stdout)
    assert found_tables(database, tmp_path / "bookshop") == {"book", "alembic_version"}
    (printed,) = blocks("text", steps)
    lines = done.stdout.splitlines()
    for line in printed.splitlines():
        pattern = re.escape(line).replace("…", r"\w+").replace("'app\\.db'", "'.+'.*")
        assert any(re.fullmatch(pattern, each) for each in lines), (line, done.stdout)


def paste_into_a_shell(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run the lines in a shell whose python3 is this one; the first that fails ends it."""
    kept = environment_of_a_shell("HOME", "PYTHONPATH")
    return subprocess.run(
        ["bash", "-ec", text],
        cwd=folder,
        env={**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def found_tables(database: Database, folder: Path) -> set[str]:
    """Return the tables of the database that the steps have used: on SQLite, app.db."""
    if database.kind == "sqlite":
        url = database.url.set(database=str(folder / "app.db"))
        return Database("sqlite", url).tables()
    return database.tables()


def words(picture: Path) -> list[str]:
    """Return the lines of a picture of a terminal, with … for each number."""
    lines: dict[str, list[str]] = {}
    for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text"):
        lines.setdefault(text.get("y", ""), []).append(text.text or "")
    return [
        re.sub(r"\d+\.\d+", "…", "".join(parts).replace("\xa0", " ").rstrip())
        for parts in lines.values()
    ]


def test_picture_shows_what_the_commands_print(tmp_path: Path) -> None:
    """The README's picture is what `python scripts/picture.py` draws today, but for the times."""
    drawn = tmp_path / "terminal.svg"
    run(tmp_path, sys.executable, ROOT / "scripts" / "picture.py", drawn)
    (committed,) = re.findall(r"!\[.+?\]\((.+?\.svg)\)", README)
    lines = words(drawn)
    assert any("1 failed" in line for line in lines)
    assert words(ROOT / committed) == lines
    links = [value for each in ElementTree.parse(drawn).iter() for value in each.attrib.values()]
    assert [link for link in links if "http" in link] == []  # it loads nothing from elsewhere


def test_frequent_errors_are_those_of_the_environments() -> None:
    """Each error of the README's table is one that the troubleshooting page explains."""
    quotes = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z].+?) \| .+ \|$", section(SECTIONS[6]), re.MULTILINE)
    assert len(rows) > 3
    assert [row for row in rows if f"| `{row}" not in quotes] == []


def test_lines_of_code_are_counted_roughly() -> None:
    """The README's numbers of lines are within a seventh of what is counted."""
    lines = json.loads((ROOT / "scripts" / "lines.json").read_text(encoding="utf-8"))
    told = [int(each.replace(",", "")) for each in re.findall(r"(\d,\d00) lines", README)]
    counted = [lines["sync without sqlite_transactions.py"], lines["multitenant"]]
    for number, real in zip(told[:2], counted, strict=True):
        assert abs(number - real) <= real / 7


def test_every_relative_link_leads_to_a_file() -> None:
    """What the README links to in the repository is there."""
    links = re.findall(r"\]\((?!https?:)(.+?)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
