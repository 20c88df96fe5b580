"""Combine what the processes of `tox -e coverage` have measured, and report it by template.

A rendered environment is measured where a test has rendered it. Its files are those of a template,
and many stand in several templates, so a file is told by its content: what was measured of it
counts for the file of that content in the first template of ORDER. An environment that a test has
edited counts for nothing.

Each line has to be run, or to be in uncovered.toml with the reason; it fails for a line that is not
there, and for one that is there and was run. Branches are reported alone.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import coverage
from coverage.exceptions import CoverageException

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which Alembic brings along

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("multitenant", "shared", "asyncio", "sync")
EXCEPTIONS = Path(__file__).with_name("uncovered.toml")


@cache
def places() -> dict[bytes, Path]:
    """Return the file that each content belongs to: those of the templates and of the command."""
    found: dict[bytes, Path] = {}
    for folder in (*(ROOT / "templates" / name for name in ORDER), ROOT / "src"):
        for path in sorted(folder.rglob("*.py")):
            found.setdefault(path.read_bytes(), path)
    return found


def combine(measured: Path) -> coverage.CoverageData:
    """Combine the data files beside `measured`, each under the names of the templates' files."""
    known, names = places(), {}

    def name_of(path: str) -> str:
        if path not in names:
            file = Path(path)
            place = known.get(file.read_bytes()) if file.is_file() else None
            names[path] = str(place or "other")
        return names[path]

    combined = coverage.CoverageData(str(measured))
    combined.erase()
    for file in sorted(measured.parent.glob(f"{measured.name}.*")):
        part = coverage.CoverageData(str(file))
        try:
            part.read()
            combined.update(part, map_path=name_of)
        except CoverageException as error:  # of a process that was killed while it wrote
            print(f"{file.name}: left out, {error}")
    return combined


def functions(node: ast.AST, outer: str = "") -> dict[int, str]:
    """Return the function or class that each line stands in, such as Lock.take."""
    found: dict[int, str] = {}
    for child in ast.iter_child_nodes(node):
        name = outer
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{outer}.{child.name}".lstrip(".")
            found |= dict.fromkeys(range(child.lineno, (child.end_lineno or 0) + 1), name)
        found |= functions(child, name)
    return found


def missed(tool: coverage.Coverage) -> Counter[str]:
    """Count the lines that were not run, each named by file, function and text."""
    found: Counter[str] = Counter()
    for content, path in places().items():
        lines, names = content.decode().splitlines(), functions(ast.parse(content))
        for number in tool.analysis2(str(path))[3]:
            place = "::".join(filter(None, [path.relative_to(ROOT).as_posix(), names.get(number)]))
            found[f"{place}: {lines[number - 1].strip()}"] += 1
    return found


def main() -> int:
    """Combine, report, and return 1 unless the lines that were not run are those of the list."""
    tool = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"), data_suffix=False)
    data = combine(Path(tool.config.data_file))
    for path in places().values():
        data.touch_file(str(path))
    data.write()
    tool.load()
    tool.report(include=["*/templates/*", "*/src/*"])
    left, listed, required = missed(tool), Counter[str](), Counter[str]()
    for entry in tomllib.loads(EXCEPTIONS.read_text(encoding="utf-8"))["exception"]:
        listed.update(entry["lines"])
        required.update([] if entry.get("may_run") else entry["lines"])
    unlisted, unneeded = left - listed, required - left
    for line in unlisted.elements():
        print(f"No test runs {line}\n    Test it, or give the reason in {EXCEPTIONS.name}.")
    for line in unneeded.elements():
        print(f"A test runs, or nobody has written, {line}\n    Take it out of {EXCEPTIONS.name}.")
    print(f"{left.total()} lines were not run, of which {(left & listed).total()} are exceptions.")
    return 1 if unlisted or unneeded else 0


if __name__ == "__main__":
    sys.exit(main())
