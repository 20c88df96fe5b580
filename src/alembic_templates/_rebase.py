"""Put one of two branches behind the other, after both were merged into one tree of files.

Alembic has no order for two heads, and `upgrade head` fails until there is one. A merge revision is
one more file each time; moving the revisions that nobody has run yet is what a person would do by
hand: in the first of them `down_revision` and the line "Revises:" are changed, and nothing else.
What cannot be known to be right is refused.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import tempfile
import tokenize
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from alembic_templates._alembic_config import config_of
from alembic_templates._applied import applied_heads
from alembic_templates._git import on_main
from alembic_templates._history import ancestors, dependencies, find, load, parents, place
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
    _replace(config, first, _edited(first, staying.head))
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
    labels = [sorted(_labels(branch)) for branch in branches]
    if all(labels):
        raise TemplatesError(
            f"Both branches have labels of their own ({', '.join(labels[0] + labels[1])}), and may "
            f"be meant to stay apart: if not, {ask}"
        )
    paths = [[Path(script.path) for script in branch.revisions] for branch in branches]
    for known in on_main([*paths[0], *paths[1]]):
        own = [not known.intersection(each) for each in paths]
        if own.count(True) == 1:
            return branches[own.index(True)]
    raise TemplatesError(f"git does not tell which branch is not on main or master yet: {ask}")


def _labels(branch: Branch) -> set[str]:
    """Return the labels that stand in the files of a branch."""
    found: set[str] = set()
    for script in branch.revisions:
        given = getattr(script.module, "branch_labels", None) or ()
        found.update([given] if isinstance(given, str) else given)
    return found


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


def _edited(script: Script, behind: str) -> bytes:
    """Return a revision's file with another down_revision, in the bytes that it is written in.

    Raises TemplatesError where down_revision is not a text that stands in the file.
    """
    path = Path(script.path)
    content = path.read_bytes()
    with path.open("rb") as file:
        encoding, _ = tokenize.detect_encoding(file.readline)
    text = content.decode(encoding)
    (old,) = parents(script)
    module = ast.parse(content)
    start, end = _place(text, _down_revision(module, script), old, script)
    edited = f"{text[:start]}{behind}{text[end:]}"
    docstring = module.body[0]
    if ast.get_docstring(module) is not None:
        lines = _lines(edited)
        for number in range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno):
            lines[number] = _with_revises(lines[number], old, behind)
        edited = "".join(lines)
    return edited.encode(encoding)


def _down_revision(module: ast.Module, script: Script) -> ast.expr:
    """Return the value that is assigned to down_revision."""
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value and any(isinstance(n, ast.Name) and n.id == "down_revision" for n in targets):
            assert isinstance(value, ast.expr)
            return value
    raise _not_found(script)


def _place(text: str, value: ast.expr, old: str, script: Script) -> tuple[int, int]:
    """Return where the old revision stands in the text, from which character to which."""
    found = [
        node
        for node in ast.walk(value)
        if isinstance(node, ast.Constant) and node.value == old and node.end_lineno == node.lineno
    ]
    if len(found) != 1:
        raise _not_found(script)
    (node,) = found
    lines = _lines(text)
    row = lines[node.lineno - 1]
    # Python counts bytes of UTF-8, without the mark at the beginning of a file.
    column = len(row.encode()[: node.col_offset].decode())
    at = row.find(old, column)
    if at < 0:
        raise _not_found(script)
    start = sum(map(len, lines[: node.lineno - 1])) + at
    return start, start + len(old)


def _lines(text: str) -> list[str]:
    """Return the lines of a text with their ends, counted as Python counts them."""
    return re.findall(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+", text)


def _not_found(script: Script) -> TemplatesError:
    return TemplatesError(
        f"{place(script.path)} has no line `down_revision = …` with the revision in quotes: set it by hand."
    )


def _with_revises(line: str, old: str, new: str) -> str:
    """Return a line of a docstring with another revision after "Revises:"."""
    label, found, rest = line.partition("Revises:")
    if not found or label.strip(" \t\"'rRuU"):
        return line
    return f"{label}{found}" + re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w.-])", new, rest, count=1)


def _replace(config: Config, script: Script, content: bytes) -> None:
    """Write a revision's file, and put it back unless there is one head now.

    It is replaced as a whole, so that a failure leaves the old file or the new one. What Python has
    compiled of it goes, since a file of the same size and second would be taken for the old one.
    """
    path = Path(script.path)
    before = path.read_bytes()
    _write(path, content)
    try:
        heads = load(config)[0].get_heads()
        reason = f"{len(heads)} heads" if len(heads) != 1 else None
    except TemplatesError as error:
        reason = str(error)
    if reason:
        _write(path, before)
        raise TemplatesError(
            f"The history would not be right with {script.revision} moved ({reason}): nothing was "
            "changed, use `alembic merge heads`."
        )


def _write(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        shutil.copymode(path, new)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    Path(cache_from_source(str(path))).unlink(missing_ok=True)
