"""Combine what the processes of `tox -e coverage` have measured, and report it by template.

A rendered environment is measured where a test has rendered it. Its files are those of a template,
and many stand in several templates, so a file is told by its content: what was measured of it
counts for the file of that content in the first template of ORDER. An environment that a test has
edited counts for nothing.

It fails if a line was not run that is none of NOT_RUN, and if one of NOT_RUN was. Branches are
reported alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import coverage
from coverage.exceptions import CoverageException

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("multitenant", "shared", "asyncio", "sync")
# The lines that no test runs, by their file and their text, and why.
NOT_RUN: dict[tuple[str, str], str] = {}


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


def missed_lines(tool: coverage.Coverage) -> dict[tuple[str, str], str]:
    """Return the lines that were not run, as NOT_RUN has them, with the place of each."""
    found = {}
    for path in places().values():
        lines = path.read_text(encoding="utf-8").splitlines()
        for number in tool.analysis2(str(path))[3]:
            place = f"{path.relative_to(ROOT)}:{number}"
            found[path.name, lines[number - 1].strip()] = place
    return found


def main() -> int:
    """Combine, report, and return 1 if a line was not run that should be, or the other way round."""
    tool = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"), data_suffix=False)
    data = combine(Path(tool.config.data_file))
    for path in places().values():
        data.touch_file(str(path))
    data.write()
    tool.load()
    tool.report(include=["*/templates/*", "*/src/*"])
    missed = missed_lines(tool)
    wrong = [f"{missed[key]}: not run: {key[1]}" for key in missed.keys() - NOT_RUN.keys()]
    wrong += [f"{file}: run after all: {text}" for file, text in NOT_RUN.keys() - missed.keys()]
    print(*sorted(wrong), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
