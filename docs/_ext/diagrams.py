"""Diagrams as text: who owns what (`owners`) and who calls whom (`sequence`), drawn as SVG.

Colours stand in _static/site.css, so that they follow the light and the dark theme.
"""

from __future__ import annotations

import re
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WIDTH = 720
ROW = 34


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Return a line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a rectangle."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="{kind}"/>'
    )


def owners(lines: list[str]) -> tuple[int, list[str]]:
    """Draw lines such as `an Engine: yours engine, ours connection`: boxes, each in the one before.

    The first word is the owner, who is drawn in a colour, and the rest is the label.
    """
    parts: list[str] = []
    width = (WIDTH - 20) / 2
    depth = max(line.count(",") + 1 for line in lines)
    height = 26 * (depth - 1) + 50
    for number, line in enumerate(lines):
        title, _, boxes = line.partition(":")
        left, top = (number % 2) * (width + 20), (number // 2) * (height + 48)
        parts.append(text(left, top + 18, title.strip(), "title"))
        for level, each in enumerate(boxes.split(",")):
            owner, _, label = each.strip().partition(" ")
            x, y = left + 14 * level, top + 28 + 26 * level
            parts.append(
                box(x, y, width - 28 * level, height - 26 * level - 6 * level, f"box {owner}")
            )
            parts.append(text(x + 10, y + 18, label))
    rows = (len(lines) + 1) // 2
    return rows * (height + 48), parts


def sequence(lines: list[str]) -> tuple[int, list[str]]:
    """Draw actors, named in the first line, and under them `one -> other: words` or `== words`."""
    actors = [name.strip() for name in lines[0].split(",")]
    width = 150
    gap = (WIDTH - width) / (len(actors) - 1)
    middle = {name: width / 2 + gap * number for number, name in enumerate(actors)}
    height = 46 + ROW * (len(lines) - 1)
    parts = []
    for name, x in middle.items():
        parts.append(f'<line x1="{x:g}" y1="30" x2="{x:g}" y2="{height}" class="life"/>')
        parts.append(box(x - width / 2, 2, width, 28, "box actor"))
        parts.append(text(x, 21, name, "middle"))
    for number, line in enumerate(lines[1:]):
        y = 58 + ROW * number
        call = re.fullmatch(r"(.+?) -> (.+?): (.+)", line)
        if not call:
            parts.append(box(0, y - 18, WIDTH, 24, "phase"))
            parts.append(text(WIDTH / 2, y - 1, line.strip("= "), "middle title"))
            continue
        start, end = middle[call[1]], middle[call[2]]
        if start == end:
            parts.append(box(start - 4, y - 12, 8, 16, "box actor"))
            parts.append(text(start + 10, y, call[3]))
            continue
        toward = 1 if end > start else -1
        parts.append(f'<line x1="{start:g}" y1="{y}" x2="{end - toward * 8:g}" y2="{y}"/>')
        parts.append(f'<path d="M{end:g} {y} l{-9 * toward} -5 v10 z"/>')
        parts.append(text((start + end) / 2, y - 6, call[3], "middle"))
    return height, parts


class Diagram(SphinxDirective):
    """A diagram whose content is its text, with the words that a screen reader says as argument."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the SVG, which stands in the page itself and so sees the page's colours."""
        draw = {"owners": owners, "sequence": sequence}[self.name]
        height, parts = draw([line for line in self.content if line.strip()])
        svg = (
            f'<svg class="diagram" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{escape(self.arguments[0])}">{"".join(parts)}</svg>'
        )
        svg = f'<div class="scroll">{svg}</div>'
        return [nodes.raw("", svg, format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the two directives."""
    app.add_directive("owners", Diagram)
    app.add_directive("sequence", Diagram)
    return {"parallel_read_safe": True}
