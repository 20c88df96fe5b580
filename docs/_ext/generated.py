"""Parts of pages that are made while Sphinx reads them, where a page has `<!-- generated: NAME -->`.

The README of a template is plain text: where a page includes it, code gets its font.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from alembic_templates import cli

ROOT = Path(__file__).resolve().parents[2]


def verbs() -> list[str]:
    """Return the verbs of the command, in the order of its help."""
    actions = cli._parser()._actions
    (found,) = [each for each in actions if isinstance(each, argparse._SubParsersAction)]
    return list(found.choices)


def command_help() -> str:
    """Return a section for each verb with what its `--help` prints."""
    sections = [_help()]
    for verb in verbs():
        sections += [f"## {verb}", _help(verb)]
    return "\n\n".join(sections)


def _help(*verb: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", cli.__name__, *verb, "--help"],
        env={**os.environ, "COLUMNS": "88", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return f"```text\n{done.stdout.rstrip()}\n```"


def questions() -> str:
    """Return a table of what the scaffold asks, and of the answers that it takes."""
    asked = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    rows = []
    for key, words in asked["__prompts__"].items():
        answers = asked[key]
        title = words["__prompt__"] if isinstance(words, dict) else words
        choices = ", ".join(f"`{each}`" for each in answers) if isinstance(answers, list) else ""
        rows.append([f"`{key}`", title, choices])
    return table(["answer", "question", "choices, the first by default"], rows)


# What the benchmarks are about, by their names.
TITLES = {
    "startup": "A command with nothing to do",
    "commands": "A series of commands in a program",
    "fleet": "A fleet of tenants",
}


def results() -> dict[str, Any]:
    """Return what `tox -e bench` has written."""
    path = ROOT / "benchmarks" / "results.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def benchmarks() -> str:
    """Return the plot and the tables of the ratios."""
    machine = ", ".join(f"{name} {value}" for name, value in results()["machine"].items())
    image = "![The ratios as bars](../benchmarks/results.svg)"
    parts = [f"Measured on: {machine}.", f":::{{container}} scroll\n{image}\n:::"]
    for name, measured in results()["benchmarks"].items():
        rows = [
            [each["case"], each["way"], each["against"], ratio(each), each["goal"]]
            for each in measured
        ]
        head = ["case", "way", "compared with", "times as long", "goal"]
        parts += [f"### {TITLES.get(name, name)}", table(head, rows)]
    return "\n\n".join(parts)


def fleet_rows() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the measurements of the fleet's two workloads, by the workload and the way."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results()["benchmarks"]["fleet"]:
        if row.get("cpu"):
            found.setdefault(row["case"], {})[row["way"]] = row
    return found


def fleet_seconds() -> str:
    """Return the table of what each way takes for a fleet, and for one tenant of it."""
    cases = fleet_rows()
    head = [
        "",
        *cases,
        "ms of processor time a tenant, from empty",
        "statements a tenant, beside those of a revision",
    ]
    first = next(iter(cases.values()))
    ours = [ways["multitenant"] for ways in cases.values()]
    seconds = [f"{each['against_seconds']:.1f}" for each in ours]
    rows = [[ours[0]["against"], *seconds, "", f"{ours[0]['against_statements']:g}"]]
    for way in first:
        seconds = [f"{ways[way]['seconds']:.1f}" for ways in cases.values()]
        rows.append([way, *seconds, f"{first[way]['cpu']:.0f}", f"{first[way]['statements']:g}"])
    return table(head, rows)


def fleet_summary() -> str:
    """Return the sentences that the README and the page of the benchmarks begin with."""
    case, ways = next(iter(fleet_rows().items()))
    tenants, jobs = re.findall(r"\d+", case)
    ours, each = ways["multitenant"], ways["an alembic process for each tenant"]
    return (
        f"{tenants} schemas get ten revisions in {ours['seconds']:.0f} seconds with {jobs} jobs, for "
        f"which `psql` takes {ours['against_seconds']:.0f} with the same SQL, and an `alembic` "
        f"process for each schema {each['seconds']:.0f}. Beside those of its revisions a tenant costs "
        f"{ours['statements']:g} statements, where `psql` sends {ours['against_statements']:g}."
    )


def ratio(measured: dict[str, Any]) -> str:
    """Return the median of a ratio, with its range where there were several rounds."""
    if measured["min"] == measured["max"]:
        return f"{measured['median']:.3g}"
    return f"{measured['median']:.3g} ({measured['min']:.3g} to {measured['max']:.3g})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# What is code in the plain text of a template's README: an option of the command line, a URL, a
# name with _ or (), {tenant}, a file, and the key of an option.
CODE = re.compile(
    r"""(?<![\w`/.])(?:
        -x\ [a-z_]+=[^\s,;:|)]* | =[a-z]+(?:,[a-z]+)*
        | (?:info=)?\{"[^}]*\}
        | [a-z]+(?:\+\w+)?://[^\s,|]*[^\s,.|]
        | \{\w+\}
        | (?:\w+\.)*\w+\(\)
        | \w+(?:\.\w+)*\.(?:ini|toml|py|mako)\b
        | (?:sqlalchemy|public|postgresql|package|Config)\.[\w.:]*\w(?:\["\w+"\])?
        | [A-Za-z]+_\w+(?:\ =\ (?:true|\{[^}]*\}))?
        | --sql\b
    )""",
    re.VERBOSE,
)


def mark_code(line: str) -> str:
    """Return a line of a README with backticks around what is code and has none."""
    if line.startswith(("    ", "---", "|---")):
        return line
    parts = line.split("`")  # what stands between two backticks has them already
    return "`".join(
        part if number % 2 else CODE.sub(lambda found: f"`{found[0]}`", part)
        for number, part in enumerate(parts)
    )


def mark_readme(_app: Sphinx, path: Path, _page: str, content: list[str]) -> None:
    """Give the text of a template's README the font of code that a terminal does not need."""
    if path.name == "README":
        content[0] = "\n".join(map(mark_code, content[0].split("\n")))


def strip_ends(_app: Sphinx, page: nodes.document) -> None:
    """Take away the empty lines at the end of code, which a part of a file often has."""
    for block in page.findall(nodes.literal_block):
        text = block.astext().rstrip("\n")
        block.rawsource = text
        block[:] = [nodes.Text(text)]


MAKERS = {
    "benchmarks": benchmarks,
    "fleet in seconds": fleet_seconds,
    "fleet in a sentence": fleet_summary,
    "command help": command_help,
    "questions of the scaffold": questions,
}


def replace_marks(app: Sphinx, _page: str, content: list[str]) -> None:
    """Put what is made in the place of its mark."""

    def made(mark: re.Match[str]) -> str:
        app.env.note_reread()  # the page changes without its file
        return MAKERS[mark[1]]()

    content[0] = re.sub(r"^<!-- generated: (.+) -->$", made, content[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen for pages that are read, and for what they include."""
    app.connect("source-read", replace_marks)
    app.connect("include-read", mark_readme)
    app.connect("doctree-read", strip_ends)
    return {"parallel_read_safe": True}
