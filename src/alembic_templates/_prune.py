"""Drop old revision files, as Alembic's cookbook describes it ("Pruning old migration files").

Databases at the new base or after it are upgraded as before. All is looked at before anything is
changed, since a history with a hole in it cannot be loaded any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError

from alembic_templates._alembic_config import config_of
from alembic_templates._history import ancestors, dependencies, labels, load, parents
from alembic_templates._revision_file import replace_file, with_down_revision
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
        replace_file(Path(self.base.path), with_down_revision(self.base, None))
        for script in self.before:
            Path(cache_from_source(script.path)).unlink(missing_ok=True)
            Path(script.path).unlink()


def plan(revision: str, config_file: Path) -> Pruning:
    """Find what pruning before a revision deletes; nothing is changed yet.

    `config_file` is an alembic.ini, or a pyproject.toml with its settings. Raises TemplatesError
    where the revision or the configuration is not found, and where a revision that stays needs one
    that would go.
    """
    directory, scripts = load(config_of(config_file))
    try:
        base = directory.get_revision(revision)
    except CommandError as error:
        raise TemplatesError(f"{error}: nothing was deleted.") from error
    if base is None:  # what get_revision gives for `base`
        raise TemplatesError("There is no revision before base: name the one that becomes it.")
    gone = ancestors(directory, base.revision) - {base.revision}
    after = {script.revision for script in directory.iterate_revisions("heads", base.revision)}
    for script in scripts:
        _check(directory, script, base, gone, after)
    return Pruning(base, [script for script in reversed(scripts) if script.revision in gone])


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
