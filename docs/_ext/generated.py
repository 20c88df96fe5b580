"""Parts of pages that are made while Sphinx reads them, where a page has `<!-- generated: NAME -->`."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def benchmarks() -> str:
    """Return the tables and the plot of the results, or a sentence where there are none yet."""
    folder = ROOT / "benchmarks"
    if not (folder / "results.json").is_file():
        return "There are no results yet."
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = [f"Measured on: {machine}."]
    if results.get("quick"):
        parts.append("This was a quick run, of few rounds: the numbers are a hint.")
    for plot in sorted(folder.glob("results*.svg")):
        parts.append(f"![The ratios as bars](../benchmarks/{plot.name})")
    for name, measured in results["benchmarks"].items():
        rows = [[each["case"], each["way"], each["against"], ratio(each)] for each in measured]
        parts += [f"## {name}", table(["case", "way", "against", "ratio of times"], rows)]
    return "\n\n".join(parts)


def ratio(measured: dict[str, Any]) -> str:
    """Return the median of a ratio, with its range where there were several rounds."""
    if measured["min"] == measured["max"]:
        return f"{measured['median']:.3g}"
    return f"{measured['median']:.3g} ({measured['min']:.3g} to {measured['max']:.3g})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


MAKERS = {
    "benchmarks": benchmarks,
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
    """Listen for pages that are read."""
    app.connect("source-read", replace_marks)
    return {"parallel_read_safe": True}
