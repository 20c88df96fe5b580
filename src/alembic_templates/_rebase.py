"""Put one of two branches behind the other, after both were merged into one tree of files.

Alembic has no order for two heads, and `upgrade head` fails until there is one. A merge revision is
one more file each time; moving the revisions that nobody has run yet is what a person would do by
hand: in the first of them `down_revision` and the line "Revises:" are changed, and nothing else.
What cannot be known to be right is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from alembic_templates._alembic_config import config_of
from alembic_templates._applied import applied_heads
from alembic_templates._git import on_main
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
class Branch:
    """The revisions that lead to a head and not to the other one, oldest first."""

    head: str
    revisions: list[Script]

    @property
    def ids(self) -> set[str]:
        """The ids of its revisions."""
        return {script.revision for script in self.revisions}

    def __str__(self) -> str:
        return ", ".join(script.revision for script in self.revisions)


@dataclass(frozen=True)
class Rebased:
    """What was moved: the branch, the head that it stands behind, and the file that was changed.

    `file` is the path as it is printed.

    `unasked` says why no database was asked whether it has these revisions, None if one was.
    """

    moved: Branch
    behind: str
    file: str
    unasked: str | None


def rebase(config_file: Path, *, onto: str | None) -> Rebased | None:
    """Move one of two branches behind the head of the other; None if there is one head.

    The branch that leads to `onto` stays. Without it, that stays which git's main branch has.
    Raises TemplatesError, before anything is changed, where it cannot be known which branch moves
    or that it may.
    """
    config = config_of(config_file)
    directory, scripts = load(config)
    if onto is not None:
        find(directory, onto, "--onto")  # an unknown one is an error with one head, too
    heads = sorted(directory.get_heads())
    if len(heads) < 2:
        return None
    if len(heads) > 2:
        raise TemplatesError(
            f"There are {len(heads)} heads ({', '.join(heads)}): expected two, so bring the others "
            "together by `alembic merge` first."
        )
    branches = _branches(directory, scripts, heads)
    moving = _named(directory, branches, onto) if onto is not None else _of_git(branches)
    staying = branches[1 - branches.index(moving)]
    first = _first(directory, moving, staying)
    unasked = _require_unapplied(config, directory, moving, first)
    set_down_revision(config, first, staying.head)
    return Rebased(moving, staying.head, place(first.path), unasked)


def _branches(directory: ScriptDirectory, scripts: list[Script], heads: list[str]) -> list[Branch]:
    """Return the two branches; raise TemplatesError if they have no revision in common."""
    before = [ancestors(directory, head) for head in heads]
    if not before[0] & before[1]:
        raise TemplatesError(
            f"The heads {heads[0]} and {heads[1]} have no revision in common: they are histories "
            "of their own, which rebase does not join."
        )
    return [
        Branch(head, [each for each in scripts if each.revision in mine - other])
        for head, mine, other in zip(heads, before, reversed(before), strict=True)
    ]


def _named(directory: ScriptDirectory, branches: list[Branch], onto: str) -> Branch:
    """Return the branch that moves, which is the one that does not lead to `onto`."""
    named = {script.revision for script in find(directory, onto, "--onto")}
    left = [branch for branch in branches if not named & branch.ids]
    if len(left) != 1:
        raise TemplatesError(
            f"--onto {onto} does not tell the branches apart: name one of their heads, "
            f"{branches[0].head} or {branches[1].head}."
        )
    return left[0]


def _of_git(branches: list[Branch]) -> Branch:
    """Return the branch that moves, which is the one that git's main branch has nothing of.

    Raises TemplatesError where git does not tell, and where both have labels, as branches have that
    are meant to last.
    """
    ask = f"name the head that stays by --onto, {branches[0].head} or {branches[1].head}."
    marks = [sorted({*chain(*map(labels, branch.revisions))}) for branch in branches]
    if all(marks):
        raise TemplatesError(
            f"Both branches have labels of their own ({', '.join(marks[0] + marks[1])}), and may "
            f"be meant to stay apart: if not, {ask}"
        )
    paths = [[Path(script.path) for script in branch.revisions] for branch in branches]
    for known in on_main([*paths[0], *paths[1]]):
        own = [not known.intersection(each) for each in paths]
        if own.count(True) == 1:
            return branches[own.index(True)]
    raise TemplatesError(f"git does not tell which branch is not on main or master yet: {ask}")


def _first(directory: ScriptDirectory, moving: Branch, staying: Branch) -> Script:
    """Return the revision that gets another down_revision: the first of the branch that moves.

    Raises TemplatesError where the branch has a merge, whose other parent would be left behind, and
    where a revision that stays depends on one that moves, which would then come after it.
    """
    for script in moving.revisions:
        if len(parents(script)) > 1:
            raise TemplatesError(
                f"Revision {script.revision} merges {' and '.join(parents(script))}: a branch with "
                "a merge cannot be moved, so use `alembic merge heads`, or move the other branch "
                f"by --onto {moving.head}."
            )
    for script in staying.revisions:
        needed = {each.revision for each in dependencies(directory, script)} & moving.ids
        if needed:
            raise TemplatesError(
                f"Revision {script.revision} depends on {', '.join(sorted(needed))}, which would "
                f"come after it: move the other branch by --onto {moving.head}."
            )
    return moving.revisions[0]


def _require_unapplied(
    config: Config, directory: ScriptDirectory, moving: Branch, first: Script
) -> str | None:
    """Raise TemplatesError if the database has a revision of the branch that moves.

    Returns why the database could not be asked, None if it was.
    """
    words, unasked = applied_heads(config)
    applied: set[str] = set()
    for script in directory.walk_revisions():
        if script.revision in words:
            applied |= ancestors(directory, script.revision) & moving.ids
    if applied:
        raise TemplatesError(
            f"The database has applied {', '.join(sorted(applied))}, which would move: run "
            f"`alembic downgrade {parents(first)[0]}` first, move the other branch by --onto "
            f"{moving.head}, or use `alembic merge heads`."
        )
    return unasked
