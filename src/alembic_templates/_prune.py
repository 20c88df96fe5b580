"""Drop old revision files, as Alembic's cookbook describes it ("Pruning old migration files").

Databases at the new base or after it are upgraded as before. All is looked at before anything is
changed, since a history with a hole in it cannot be loaded any more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from alembic_templates._alembic_config import config_of
from alembic_templates._history import (
    ancestors,
    dependencies,
    find,
    labels,
    load,
    parents,
    place,
)
from alembic_templates._revision_file import set_down_revision
from alembic_templates.errors import TemplatesError


@dataclass(frozen=True)
class Pruning:
    """The revision that becomes the base, and the files of those before it."""

    config: Config
    base: Script
    before: list[Script]

    def run(self) -> None:
        """Make the revision the base, then delete the files, newest first.

        Interrupted in between, it leaves a history that Alembic loads, in which the files that are
        left are a branch of their own: they can be deleted by hand. Raises TemplatesError where a
        file cannot be changed or deleted, and says which are left.
        """
        for folder in {Path(script.path).parent for script in self.before}:
            if not os.access(folder, os.W_OK):
                raise TemplatesError(
                    f"No file of {place(folder)} can be deleted: nothing was changed, and the "
                    "folder has to be one that you may write to."
                )
        set_down_revision(self.config, self.base, None)
        for number, script in enumerate(self.before):
            try:
                Path(cache_from_source(script.path)).unlink(missing_ok=True)
                Path(script.path).unlink()
            except OSError as error:
                left = ", ".join(place(each.path) for each in self.before[number:])
                raise TemplatesError(
                    f"{place(script.path)} cannot be deleted ({error.strerror or error}): "
                    f"{self.base.revision} is the base already, so delete {left} by hand."
                ) from error


def plan(revision: str, config_file: Path) -> Pruning:
    """Find what pruning before a revision deletes; nothing is changed yet.

    `config_file` is an alembic.ini, or a pyproject.toml with its settings. Raises TemplatesError
    where the revision or the configuration is not found, and where a revision that stays needs one
    that would go.
    """
    config = config_of(config_file)
    directory, scripts = load(config)
    found = find(directory, revision, "REVISION")
    if len(found) != 1:  # such as that of `base`, and of `heads` where there are two
        raise TemplatesError(
            f"REVISION is {revision!r}, which names {len(found)} revisions: name the one that "
            "becomes the base."
        )
    base = found[0]
    gone = ancestors(directory, base.revision) - {base.revision}
    after = {script.revision for script in directory.iterate_revisions("heads", base.revision)}
    for script in scripts:
        _check(directory, script, base, gone, after)
    return Pruning(
        config, base, [script for script in reversed(scripts) if script.revision in gone]
    )


def _check(
    directory: ScriptDirectory, script: Script, base: Script, gone: set[str], after: set[str]
) -> None:
    """Raise TemplatesError if a revision makes the pruning unsafe.

    One that goes may have a branch label, which others use. One that stays may follow one that
    goes, or depend on it; the base alone may follow one, since that is what pruning undoes. One on
    a branch of its own would be left without the tables of those that go.
    """
    if script.revision in gone:
        if labels(script):
            raise TemplatesError(
                f"Revision {script.revision} would be deleted and has the branch label "
                f"{', '.join(labels(script))}: move the label to {base.revision} first."
            )
        return
    needed = {each.revision for each in dependencies(directory, script)}
    if script.revision != base.revision:
        needed.update(parents(script))
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
