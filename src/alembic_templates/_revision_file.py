"""The file of a revision, in which another down_revision is written and nothing else is changed.

Quotes, annotations, the ends of lines and the encoding stay as their author has them.
"""

from __future__ import annotations

import ast
import re
import shutil
import tempfile
import tokenize
from importlib.util import cache_from_source
from pathlib import Path

from alembic.config import Config
from alembic.script import Script
from alembic.util import to_tuple

from alembic_templates._history import load, parents, place
from alembic_templates.errors import TemplatesError


def set_down_revision(config: Config, script: Script, new: str | None) -> None:
    """Write another down_revision into a revision's file, and put the file back unless it holds.

    `new` is as in with_down_revision(). Raises TemplatesError where the file cannot be edited, where
    the history cannot be loaded with it, and where the revision has another down_revision then, as
    from a second line of that name.
    """
    path = Path(script.path)
    before = path.read_bytes()
    replace_file(path, with_down_revision(script, new))
    try:
        _, scripts = load(config)
        found = [parents(each) for each in scripts if each.revision == script.revision]
        wrong = None if found == [to_tuple(new, default=())] else "another line sets it again"
    except TemplatesError as error:
        wrong = str(error)
    if wrong:
        replace_file(path, before)
        raise TemplatesError(
            f"The history would not be right with down_revision = {new!r} in {place(path)} "
            f"({wrong}): nothing was changed, so edit the file by hand."
        )


def with_down_revision(script: Script, new: str | None) -> bytes:
    """Return a revision's file with another down_revision, in the bytes that it is written in.

    `new` takes the place of the only one that the revision has; None makes the revision a base. The
    line "Revises:" of the docstring says the same. Raises TemplatesError where down_revision is not
    found, or is not a text that stands in the file.
    """
    path = Path(script.path)
    content = path.read_bytes()
    with path.open("rb") as file:
        encoding, _ = tokenize.detect_encoding(file.readline)
    text = content.decode(encoding)
    module = ast.parse(content)
    value, span = _assigned(module), None
    if value is not None:
        span = _span(text, value) if new is None else _parent(text, value, *parents(script))
    if span is None:
        raise TemplatesError(
            f"{place(path)} has no line `down_revision = …` with the revision in quotes: set it to "
            f"{new!r} by hand."
        )
    edited = f"{text[: span[0]]}{new}{text[span[1] :]}"
    if ast.get_docstring(module) is not None:
        lines = _lines(edited)
        docstring = module.body[0]
        for number in range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno):
            lines[number] = _with_revises(lines[number], script, new)
        edited = "".join(lines)
    return edited.encode(encoding)


def replace_file(path: Path, content: bytes) -> None:
    """Write a revision's file as a whole, so that a failure leaves the old file or the new one.

    What Python has compiled of it goes: a file of the same size and second would be taken for the
    old one. Raises TemplatesError where the system does not let the file be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            new = Path(scratch, path.name)
            new.write_bytes(content)
            shutil.copymode(path, new)
            Path(cache_from_source(str(path))).unlink(missing_ok=True)
            new.replace(path)
    except OSError as error:
        raise TemplatesError(
            f"{place(path)} cannot be written ({error.strerror or error}): it stays as it is, and "
            "its folder has to be one that you may write to."
        ) from error


def _assigned(module: ast.Module) -> ast.expr | None:
    """Return the value that is assigned to down_revision, None if there is no such line."""
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(each, ast.Name) and each.id == "down_revision" for each in targets):
            value: ast.expr | None = getattr(node, "value", None)
            return value
    return None


def _parent(text: str, value: ast.expr, parent: str) -> tuple[int, int] | None:
    """Return where a revision stands in the value of down_revision, without its quotes.

    It is None unless the revision stands there once, as it is: not with escapes, or in two parts.
    """
    nodes = [node for node in ast.walk(value) if isinstance(node, ast.Constant)]
    spans = [_span(text, node) for node in nodes if node.value == parent]
    start = text.find(parent, *spans[0]) if len(spans) == 1 else -1
    return None if start < 0 else (start, start + len(parent))


def _span(text: str, node: ast.expr) -> tuple[int, int]:
    """Return where a node of the syntax tree stands in the text, from and to which character."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    start = _position(text, node.lineno, node.col_offset)
    return start, _position(text, node.end_lineno, node.end_col_offset)


def _position(text: str, number: int, column: int) -> int:
    """Return the position of a character, which Python counts in bytes of UTF-8 in its line."""
    lines = _lines(text)
    before = lines[number - 1].encode()[:column].decode()
    return sum(map(len, lines[: number - 1])) + len(before)


def _lines(text: str) -> list[str]:
    """Return the lines of a text with their ends, counted as Python counts them."""
    return re.findall(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+", text)


def _with_revises(line: str, script: Script, new: str | None) -> str:
    """Return a line of a docstring with another revision after "Revises:", or with none."""
    label, found, rest = line.partition("Revises:")
    if not found or label.strip(" \t\"'rRuU"):
        return line
    for old in parents(script):
        name = rf"(?<![\w.-]){re.escape(old)}(?![\w.-])"
        rest = re.sub(rf"[ ,]*{name}" if new is None else name, new or "", rest, count=1)
    return f"{label}{found}{rest}"
