"""Drop old revision files, as Alembic's cookbook describes it ("Pruning old migration files").

Databases at the new base or after it are upgraded as before. All is looked at before anything is
changed, since a history with a hole in it cannot be loaded any more.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError, to_tuple

from alembic_templates._alembic_config import config_of
from alembic_templates.errors import TemplatesError


@dataclass(frozen=True)
class Pruning:
    """The revision that becomes the base, and the files of those before it."""

    base: Script
    before: list[Script]

    def run(self) -> None:
        """Make the revision the base, then delete the files, newest first.

        Interrupted in between, it leaves a history that Alembic loads, in which the files that are
        left are a branch of their own: they can be deleted by hand.
        """
        path = Path(self.base.path)
        changed = path.with_name(f"{path.name}.new")
        changed.write_text(_without_down_revision(self.base), encoding="utf-8")
        os.replace(changed, path)
        for script in self.before:
            Path(cache_from_source(script.path)).unlink(missing_ok=True)
            Path(script.path).unlink()


def plan(revision: str, config_file: Path) -> Pruning:
    """Find what pruning before a revision deletes; nothing is changed yet.

    `config_file` is an alembic.ini, or a pyproject.toml with its settings. Raises TemplatesError
    where the revision or the configuration is not found, and where a revision that stays needs one
    that would go.
    """
    try:
        directory = ScriptDirectory.from_config(config_of(config_file))
        base = directory.get_revision(revision)
        scripts = list(directory.walk_revisions())
    except CommandError as error:
        raise TemplatesError(f"{error}: nothing was deleted.") from error
    if base is None:  # what get_revision gives for `base`
        raise TemplatesError("There is no revision before base: name the one that becomes it.")
    before = _ancestors(base, scripts)
    gone = {script.revision for script in before}
    after = {script.revision for script in directory.iterate_revisions("heads", base.revision)}
    for script in scripts:
        _check(script, base, gone, after)
    return Pruning(base, before)


def _ancestors(base: Script, scripts: list[Script]) -> list[Script]:
    """Return those of the scripts, given newest first, that lead to one by their down_revision.

    What one of them depends on is on another branch, and is not among them.
    """
    found: list[Script] = []
    parents = {*to_tuple(base.down_revision, default=())}
    for script in scripts:
        if script.revision in parents:
            found.append(script)
            parents.update(to_tuple(script.down_revision, default=()))
    return found


def _check(script: Script, base: Script, gone: set[str], after: set[str]) -> None:
    """Raise TemplatesError if a revision makes the pruning unsafe.

    One that goes may have a branch label, which others use. One that stays may follow one that
    goes, or depend on it; the base alone may follow one, since that is what pruning undoes. One on
    a branch of its own would be left without the tables of those that go.
    """
    if script.revision in gone:
        labels = ", ".join(to_tuple(getattr(script.module, "branch_labels", None), default=()))
        if labels:
            raise TemplatesError(
                f"Revision {script.revision} would be deleted and has the branch label {labels}: "
                f"move the label to {base.revision} first."
            )
        return
    needed = {*to_tuple(script.dependencies, default=())}
    if script.revision != base.revision:
        needed.update(to_tuple(script.down_revision, default=()))
    if needed & gone:
        raise TemplatesError(
            f"Revision {script.revision} needs {', '.join(sorted(needed & gone))}, which would be "
            "deleted: prune before a revision that all the others come after."
        )
    if script.revision not in after | {base.revision}:
        raise TemplatesError(
            f"Revision {script.revision} is neither before nor after {base.revision}: merge the "
            "branches first."
        )


def _without_down_revision(script: Script) -> str:
    """Return the source of a revision with None for its down_revision, and nothing else changed.

    Raises TemplatesError where the assignment is not one that can be found, in another's style.
    """
    source = Path(script.path).read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        value = getattr(node, "value", None)
        start, end = node.lineno - 1, node.end_lineno
        if isinstance(value, ast.expr) and re.match(r"down_revision\b", lines[start]):
            # Not the value's own line and column: a tuple may go over several lines.
            statement = "".join(lines[start:end])
            old = ast.get_source_segment(source, value) or ""
            lines[start:end] = [statement.replace(old, "None")]
            return "".join("Revises:\n" if line.startswith("Revises: ") else line for line in lines)
    raise TemplatesError(
        f"{script.path} has no line `down_revision = …`: set it to None by hand, and delete the "
        "files before it."
    )
