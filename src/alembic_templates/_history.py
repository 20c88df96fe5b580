"""The history of revisions, loaded from the files of an environment."""

from __future__ import annotations

import os
from pathlib import Path

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError, to_tuple

from alembic_templates._alembic_config import reason
from alembic_templates.errors import TemplatesError


def load(config: Config) -> tuple[ScriptDirectory, list[Script]]:
    """Return the script directory and all its revisions, each before those that follow it.

    Raises TemplatesError where the directory is not found, or a file in it cannot be loaded.
    """
    try:
        directory = ScriptDirectory.from_config(config)
        return directory, list(reversed(list(directory.walk_revisions())))
    except CommandError as error:
        raise TemplatesError(f"{error}") from error
    except Exception as error:  # whatever the code of a revision raises
        raise TemplatesError(
            f"The revisions cannot be loaded ({reason(error)}): correct the file."
        ) from error


def place(path: str | Path) -> str:
    """Return a file's path as it is printed: from the current folder if it is in there."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def find(directory: ScriptDirectory, name: str, option: str) -> list[Script]:
    """Return the revisions of a name as Alembic takes it: an id, a part of one, a branch label.

    Raises TemplatesError, which names the option, for one that is not there.
    """
    if not name.rpartition("@")[2]:  # which Alembic only asserts
        raise TemplatesError(f"{option} is {name!r}, which names no revision: correct it.")
    try:
        found = directory.get_revisions(name)
    except CommandError as error:
        raise TemplatesError(f"{error}: correct {option}.") from error
    return [script for script in found if script is not None]


def ancestors(
    directory: ScriptDirectory, revision: str, *, with_dependencies: bool = False
) -> set[str]:
    """Return the ids of a revision and of those before it, which it may depend on."""
    found: set[str] = set()
    left = [revision]
    while left:
        script = directory.get_revision(left.pop())
        if script is None or script.revision in found:
            continue
        found.add(script.revision)
        left += parents(script)
        if with_dependencies:
            left += [each.revision for each in dependencies(directory, script)]
    return found


def parents(script: Script) -> tuple[str, ...]:
    """Return the ids that a revision has for its down_revision: two or more in a merge."""
    found: tuple[str, ...] = to_tuple(script.down_revision, default=())
    return found


def labels(script: Script) -> tuple[str, ...]:
    """Return the branch labels that stand in the file of a revision."""
    found: tuple[str, ...] = to_tuple(getattr(script.module, "branch_labels", None), default=())
    return found


def dependencies(directory: ScriptDirectory, script: Script) -> list[Script]:
    """Return the revisions that one depends on, which it may name by a label or a part of an id."""
    found: list[Script] = []
    for name in to_tuple(script.dependencies, default=()):
        found += [each for each in directory.get_revisions(name) if each is not None]
    return found
