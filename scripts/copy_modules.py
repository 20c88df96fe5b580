"""Copy each module that stands in several templates from the one that is edited.

    python scripts/copy_modules.py            copies them, and names the files that it changed
    python scripts/copy_modules.py --check    changes nothing, and fails if there are such files

Each template is complete, for those who read or copy it. The one to edit is the copy in the first
of these templates that has the file, which is multitenant for nearly all. Another template gets
those files alone that it has; a new one is put there by hand first, even if it is empty.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Where the file to edit stands, by the first of these templates that has it.
SOURCES = ("multitenant", "shared", "asyncio", "sync")

# What each template has of its own; the three templates of one database share an env.py.
OWN = {"README", "alembic.ini.mako"}
OWN_ENV = "multitenant"


def differing() -> dict[Path, Path]:
    """Return the copies that differ from the file to edit, each with that file."""
    edited: dict[str, Path] = {}
    found: dict[Path, Path] = {}
    for template in SOURCES:
        for path in sorted((ROOT / "templates" / template).iterdir()):
            is_own = path.name in OWN or (path.name == "env.py" and template == OWN_ENV)
            if is_own or not path.is_file():
                continue
            source = edited.setdefault(path.name, path)
            if path.read_bytes() != source.read_bytes():
                found[path] = source
    return found


def main() -> None:
    """Copy the files, or name those that differ and exit with 1."""
    parser = argparse.ArgumentParser(description="Copy modules from one template to the others.")
    parser.add_argument("--check", action="store_true", help="change nothing, and name the files")
    check = parser.parse_args().check
    copies = differing()
    for path, source in copies.items():
        verb = "differs from" if check else "copied from"
        print(f"{path.relative_to(ROOT)}: {verb} {source.relative_to(ROOT)}")
        if not check:
            path.write_bytes(source.read_bytes())
    if check and copies:
        sys.exit("Edit the file in the second place, and run python scripts/copy_modules.py.")


if __name__ == "__main__":
    main()
