"""Squawk, the linter of PostgreSQL's migrations, which finds what is unsafe in SQL.

It is a program in a wheel (`squawk-cli`), and comes with the extra `alembic-templates[lint]`. It
runs once for all revisions, on a file of SQL for each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic_templates.errors import TemplatesError

if sys.version_info >= (3, 11):
    import tomllib
else:  # Alembic needs it there as well
    import tomli as tomllib

_SETTINGS = ".squawk.toml"


@dataclass(frozen=True)
class Problem:
    """What squawk has found: in which file, by its number, at which text of which line (from 0)."""

    file: int
    line: int
    rule: str
    sentence: str
    text: str


def settings() -> dict[str, Any]:
    """Return what the project's .squawk.toml says, looked for here and in the folders above.

    Raises TemplatesError where it cannot be read.
    """
    for folder in [Path.cwd(), *Path.cwd().parents]:
        path = folder / _SETTINGS
        if path.is_file():
            try:
                found = tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise TemplatesError(f"{path} cannot be read ({error}): correct it.") from error
            # Its paths are those of files that squawk itself is given.
            names = {"included_rules", "excluded_rules", "pg_version"}
            return {name: value for name, value in found.items() if name in names}
    return {}


def squawk(files: Mapping[int, str], options: Mapping[str, Any]) -> list[Problem]:
    """Let squawk look at the SQL of each file, and return what it finds.

    Raises TemplatesError where there is no squawk, and where it fails.
    """
    program = _program()
    with tempfile.TemporaryDirectory(prefix="alembic-templates-") as scratch:
        folder = Path(scratch)
        for number, sql in files.items():
            (folder / f"{number}.sql").write_text(sql, encoding="utf-8", newline="\n")
        # JSON's texts and lists are written as TOML writes them.
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in options.items()]
        (folder / _SETTINGS).write_text("".join(lines), encoding="utf-8")
        done = subprocess.run(
            [program, "--config", _SETTINGS, "--reporter", "json", "*.sql"],
            cwd=folder,
            # There, older versions write annotations of their own among the JSON.
            env={name: value for name, value in os.environ.items() if name != "GITHUB_ACTIONS"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr or done.stdout).strip().partition("\n")[0]
        if "Configuration error" in said:
            raise TemplatesError(f"{program} failed ({said}): correct .squawk.toml.") from None
        raise TemplatesError(f"{program} failed ({said}): try a newer squawk-cli.") from None
    return [_problem(each, files) for each in found]


def _problem(found: dict[str, Any], files: Mapping[int, str]) -> Problem:
    number, line = int(Path(found["file"]).stem), int(found["line"])
    row = files[number].split("\n")[line].encode()
    end = found.get("column_end") if found.get("line_end") == line else None
    text = row[found["column"] : end].decode(errors="replace")
    sentence = " ".join(filter(None, [found["message"], found.get("help")]))
    return Problem(number, line, found["rule_name"], sentence, text)


def _program() -> str:
    """Return the path of squawk: beside this Python, which is not always on the PATH, or on it."""
    beside = shutil.which("squawk", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("squawk")
    if found is None:
        raise TemplatesError(
            "squawk is not installed, which knows what is unsafe on PostgreSQL: run "
            "pip install 'alembic-templates[lint]'."
        )
    return found
