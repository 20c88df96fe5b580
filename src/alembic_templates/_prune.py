"""Drop old revision files, as Alembic's cookbook describes it ("Pruning old migration files")."""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError, to_tuple

from alembic_templates.errors import TemplatesError


@dataclass(frozen=True)
class Pruning:
    """The revision that becomes the base, and the files of those before it."""

    base: Script
    before: list[Script]

    def run(self) -> None:
        """Make the revision the base, then delete the files, newest first."""
        path = Path(self.base.path)
        changed = path.with_name(f"{path.name}.new")
        changed.write_text(_without_down_revision(self.base), encoding="utf-8")
        os.replace(changed, path)
        for script in self.before:
            Path(cache_from_source(script.path)).unlink(missing_ok=True)
            Path(script.path).unlink()


def plan(revision: str, config_file: Path) -> Pruning:
    """Find what pruning before a revision deletes; nothing is changed yet.

    Raises TemplatesError where a revision that stays needs one that would go.
    """
    try:
        directory = ScriptDirectory.from_config(_config(config_file))
        base = directory.get_revision(revision)
        scripts = {script.revision: script for script in directory.walk_revisions()}
    except CommandError as error:
        raise TemplatesError(f"{error}: nothing was deleted.") from error
    if base is None:  # what get_revision gives for `base`
        raise TemplatesError("There is no revision before base: name the one that becomes it.")
    before: dict[str, Script] = {}
    todo = [*to_tuple(base.down_revision, default=())]
    while todo:
        script = scripts[todo.pop(0)]
        if script.revision not in before:
            before[script.revision] = script
            todo += to_tuple(script.down_revision, default=())
    after = {script.revision for script in directory.iterate_revisions("heads", base.revision)}
    for script in scripts.values():
        _check(script, base, before)
        if script.revision not in before.keys() | after | {base.revision}:
            raise TemplatesError(
                f"Revision {script.revision} is neither before nor after {base.revision}: merge the "
                "branches first."
            )
    order = [script for script in scripts.values() if script.revision in before]
    return Pruning(base, order)


def _check(script: Script, base: Script, before: dict[str, Script]) -> None:
    """Raise TemplatesError if a revision makes the pruning unsafe."""
    if script.revision in before:
        labels = ", ".join(to_tuple(script.module.__dict__.get("branch_labels"), default=()))
        if labels:
            raise TemplatesError(
                f"Revision {script.revision} would be deleted and has the branch label {labels}: "
                f"move the label to {base.revision} first."
            )
        return
    needed = [*to_tuple(script.dependencies, default=())]
    if script.revision != base.revision:
        needed += to_tuple(script.down_revision, default=())
    for other in needed:
        if other in before:
            how = "depends on" if other in to_tuple(script.dependencies, default=()) else "follows"
            raise TemplatesError(
                f"Revision {script.revision} {how} {other}, which would be deleted: prune before a "
                "revision that all the others come after."
            )


def _config(path: Path) -> Config:
    if not path.is_file():
        raise TemplatesError(f"{path} does not exist: name the Alembic configuration by --config.")
    if path.suffix == ".toml":
        return Config(toml_file=path)
    toml = path.with_name("pyproject.toml")
    return Config(path, toml_file=toml if toml.is_file() else None)


def _without_down_revision(script: Script) -> str:
    """Return the source of a revision with None for its down_revision."""
    source = Path(script.path).read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = getattr(node, "value", None)
        if names == ["down_revision"] and isinstance(value, ast.expr):
            start, end = value.lineno - 1, (value.end_lineno or value.lineno) - 1
            head = lines[start].encode()[: value.col_offset].decode()
            tail = lines[end].encode()[value.end_col_offset :].decode()
            lines[start : end + 1] = [f"{head}None{tail}"]
            return "".join("Revises:\n" if line.startswith("Revises: ") else line for line in lines)
    raise TemplatesError(
        f"{script.path} has no line `down_revision = …`: set it to None by hand, and delete the "
        "files before it."
    )
