"""Combine what the processes of `tox -e coverage` have measured, and report it by template.

A rendered environment is measured where a test has rendered it. Its files are those of a template,
and many stand in several templates, so a file is told by its content: what was measured of it
counts for the file of that content in the first template of ORDER. An environment that a test has
edited counts for nothing.

It fails if less of the lines was run than LEAST says; branches are reported alone. What no test can
run here is for other systems (Windows, Pythons from 3.12 on), or in a process that cannot be measured:
an installed copy of the command, and one that is killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import coverage
from coverage.exceptions import CoverageException

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("multitenant", "shared", "asyncio", "sync")
# How many of 100 lines have to be run.
LEAST = {"templates": 97.5, "src": 89.0}


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


def share_run(tool: coverage.Coverage, folder: str) -> float:
    """Return how many of 100 lines of the files in a folder were run."""
    found = [tool.analysis2(str(path)) for path in places().values() if folder in path.parts]
    lines, missed = (sum(len(each[index]) for each in found) for index in (1, 3))
    return 100 - 100 * missed / lines


def main() -> int:
    """Combine, report, and return 1 if less was run than LEAST says."""
    tool = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"), data_suffix=False)
    data = combine(Path(tool.config.data_file))
    for path in places().values():
        data.touch_file(str(path))
    data.write()
    tool.load()
    tool.report(include=["*/templates/*", "*/src/*"])
    found = {folder: share_run(tool, folder) for folder in LEAST}
    for folder, least in LEAST.items():
        print(f"{folder}: {found[folder]:.1f} of 100 lines were run, {least} are expected.")
    return 1 if any(found[folder] < least for folder, least in LEAST.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
