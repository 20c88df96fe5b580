"""Combine what the processes of `tox -e coverage` have measured, and report it by template.

A rendered environment is measured where a test has rendered it. Its files are those of a template,
and many stand in several templates, so a file is told by its content: what was measured of it
counts for the file of that content in the first template of ORDER. An environment that a test has
edited counts for nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import coverage
from coverage.exceptions import CoverageException

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("multitenant", "shared", "asyncio", "sync")
# Percent of the lines and branches together, below which the run fails. It is 0 until a whole run has
# been measured: set it to what that reports, and raise it to 100, with a reason for each exclusion.
GATE = 0.0


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


def main() -> int:
    """Combine, report, and return 1 where the gate is not reached."""
    tool = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"), data_suffix=False)
    data = combine(Path(tool.config.data_file))
    for path in places().values():
        data.touch_file(str(path))
    data.write()
    tool.load()
    total = tool.report(include=["*/templates/*", "*/src/*"])
    return 0 if total >= GATE else 1


if __name__ == "__main__":
    sys.exit(main())
