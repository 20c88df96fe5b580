"""Count the lines that the owner of an environment gets, and keep them from growing unnoticed.

    python scripts/count_lines.py            prints the lines of each file, and of each template
    python scripts/count_lines.py --check    fails if scripts/lines.json has other numbers
    python scripts/count_lines.py --write    writes scripts/lines.json

A line is code unless it is blank, or holds nothing but a comment or a part of a docstring. All
files of a template are counted but README. lines.json has the lines of code of each sum, so that a
change of them is seen in a review. A sum that has grown is not written before the section
Unreleased of CHANGELOG.md tells the owners why, in a line with the sum's name in backquotes and its
new number, such as: - `sync` has 655 lines of code, 20 more, for …
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "scripts" / "lines.json"

# What an owner without SQLite deletes, and the template that is counted without it as well.
DELETABLE, COUNTED_WITHOUT = "sqlite_transactions.py", "sync"

# Tokens that make no line a line of code.
NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


@dataclass(frozen=True)
class Lines:
    """Numbers of lines; blank ones count in docstrings alone."""

    code: int = 0
    docstring: int = 0
    comment: int = 0

    @property
    def explained(self) -> float:
        """The lines of docstrings and comments for each line of code."""
        return (self.docstring + self.comment) / self.code if self.code else 0.0


def total(counted: Iterable[Lines]) -> Lines:
    """Return the sum of some files' lines."""
    return Lines(*map(sum, zip(*map(astuple, counted), strict=True)))


def count(path: Path) -> Lines:
    """Return the lines of a file; of one that is no Python, a comment begins with #."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return count_python(text)
    filled = [line.strip() for line in text.splitlines() if line.strip()]
    comments = sum(line.startswith("#") for line in filled)
    return Lines(code=len(filled) - comments, comment=comments)


def count_python(source: str) -> Lines:
    """Return the lines of a Python file."""
    filled = {number for number, line in enumerate(source.splitlines(), 1) if line.strip()}
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        # A text that stands alone explains something, be it a function or an attribute.
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            docstrings.update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    code = (code - docstrings) & filled
    return Lines(len(code), len(docstrings), len(filled - code - docstrings))


def count_folders() -> dict[str, dict[str, Lines]]:
    """Return the lines of each file of the templates and of src/, by the name of its sum."""
    folders = {path.name: path for path in (ROOT / "templates").iterdir() if path.is_dir()}
    counted = {
        name: {path.name: count(path) for path in sorted(folder.iterdir()) if is_counted(path)}
        for name, folder in sorted(folders.items())
        if (folder / "README").is_file()
    }
    counted["src"] = {
        path.name: count(path) for path in sorted((ROOT / "src" / "alembic_templates").glob("*.py"))
    }
    return counted


def is_counted(path: Path) -> bool:
    """Tell whether a file of a template is a part of what its owner has to read."""
    return path.is_file() and path.name != "README"


def sums_of(counted: dict[str, dict[str, Lines]]) -> dict[str, Lines]:
    """Return the sums: one for each folder, and one for an owner who deleted a file."""
    sums = {name: total(files.values()) for name, files in counted.items()}
    kept = (lines for name, lines in counted[COUNTED_WITHOUT].items() if name != DELETABLE)
    sums[f"{COUNTED_WITHOUT} without {DELETABLE}"] = total(kept)
    return sums


def committed() -> dict[str, int]:
    """Return the lines of code of each sum as they were written last."""
    found: dict[str, int] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    return found


def unannounced(sums: dict[str, Lines]) -> list[str]:
    """Return a sentence for each sum that has grown without a line in the changelog."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = changelog.partition("## Unreleased")[2].partition("\n## ")[0].splitlines()
    problems = []
    for name, before in committed().items():
        now = sums[name].code if name in sums else 0
        said = any(f"`{name}`" in line and re.search(rf"\b{now}\b", line) for line in unreleased)
        if now > before and not said:
            problems.append(
                f"{name} has grown from {before} to {now} lines of code: say so in the section "
                f"Unreleased of CHANGELOG.md, in a line with `{name}` and {now}."
            )
    return problems


def as_table(counted: dict[str, dict[str, Lines]], sums: dict[str, Lines]) -> str:
    """Return a text with a row for each file and each sum."""
    rows = [f"{'':<36}{'code':>7}{'docstring':>11}{'comment':>9}{'explained':>11}"]
    for name, lines in sums.items():
        rows.append("")
        rows += [as_row(f"  {file}", found) for file, found in counted.get(name, {}).items()]
        rows.append(as_row(name, lines))
    return "\n".join(rows)


def as_row(name: str, lines: Lines) -> str:
    """Return a row of the table."""
    return (
        f"{name:<36}{lines.code:>7}{lines.docstring:>11}{lines.comment:>9}{lines.explained:>11.2f}"
    )


def main() -> None:
    """Print the numbers, or compare or write them; exit with what is wrong, if something is."""
    parser = argparse.ArgumentParser(description="Count the lines that owners get.")
    parser.add_argument("--check", action="store_true", help="compare them with lines.json")
    parser.add_argument("--write", action="store_true", help="write them to lines.json")
    given = parser.parse_args()
    counted = count_folders()
    sums = sums_of(counted)
    numbers = {name: lines.code for name, lines in sums.items()}
    if not given.check and not given.write:
        print(as_table(counted, sums))
        return
    problems = unannounced(sums)
    if given.check and not problems and numbers != committed():
        problems = ["scripts/lines.json is stale: run python scripts/count_lines.py --write."]
    if problems:
        sys.exit("\n".join(problems))
    if given.write:
        COMMITTED.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
