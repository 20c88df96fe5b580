"""Compare an environment with the template that it came from.

What comes out is a patch: who upgrades an environment may edit it and apply it in reverse, and so
it has each line as it is in the file, whatever ends it.
"""

from __future__ import annotations

from difflib import unified_diff
from pathlib import Path

from alembic_templates._catalog import Template, files
from alembic_templates.errors import TemplatesError


def diff(template: Template, folder: Path) -> str:
    """Return the unified diff from a template to an environment's folder, empty where they agree.

    The ini file is the user's to edit and is not compared, nor is what a user has added. A file that
    may be deleted is compared where it is there. Raises TemplatesError where the folder holds no
    env.py.
    """
    if not (folder / "env.py").is_file():
        raise TemplatesError(
            f"{folder} has no env.py: expected the folder that alembic init has made."
        )
    return "".join(
        _file_diff(path, folder / path.name, template.name)
        for path in files(template.folder)
        if path.name != "alembic.ini.mako"
        and ((folder / path.name).is_file() or path.name not in template.optional)
    )


def _file_diff(path: Path, other: Path, name: str) -> str:
    """Return the diff of one file, with the words of diff(1) for a last line that does not end."""
    lines = unified_diff(_lines(path), _lines(other), f"{name}/{path.name}", str(other))
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, none where an environment lacks it."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        return list(file)  # split at \n alone, as patch does
