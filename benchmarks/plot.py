"""The plot of the ratios, an SVG without a background, in colours that any background lets read."""

from __future__ import annotations

from html import escape
from itertools import groupby
from pathlib import Path

from benchmarks.measure import Row

# In pixels: a line, the place of the labels, of the bars, and what stays for the numbers.
LINE, LABELS, BARS, NUMBERS = 20, 400, 360, 60
# Grey with a contrast of more than four to white and to black, and a light blue.
TEXT, BAR = "#767676", "#5aa0e6"


def write_plot(path: Path, rows: list[Row]) -> None:
    """Draw a bar for the median of each ratio, a line for its range and one where the ratio is 1."""
    shapes: list[str] = []
    top = 0
    for case, group in groupby(rows, key=lambda row: row["case"]):
        of_case = list(group)
        scale = BARS / max(1, *(row["max"] for row in of_case))
        one = f"M{LABELS + scale:.1f} {top + LINE}v{len(of_case) * LINE}"
        shapes += [label(0, top, f"{case}: times as long as"), line(one, 1, TEXT)]
        for row in of_case:
            top += LINE
            middle = top + LINE // 2
            bar = f"M{LABELS} {middle}h{scale * row['median']:.1f}"
            low, high = (LABELS + scale * row[end] for end in ("min", "max"))
            shapes += [
                label(LABELS - 8, top, f"{row['way']} / {row['against']}", "end"),
                line(bar, 12, BAR),
                line(f"M{low:.1f} {middle}H{high:.1f}", 2, TEXT),
                label(LABELS + BARS + 8, top, f"{row['median']:.2f}"),
            ]
        top += 2 * LINE
    width = LABELS + BARS + NUMBERS
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}"'
    style = f'height="{top}" font-family="sans-serif" font-size="12" fill="{TEXT}"'
    path.write_text("\n".join([f"{head} {style}>", *shapes, "</svg>\n"]), encoding="utf-8")


def line(shape: str, width: int, colour: str) -> str:
    """Return a line of some width in pixels."""
    return f'<path d="{shape}" stroke="{colour}" stroke-width="{width}"/>'


def label(x: int, top: int, text: str, anchor: str = "start") -> str:
    """Return a line of text that stands below `top`."""
    return f'<text x="{x}" y="{top + 14}" text-anchor="{anchor}">{escape(text)}</text>'
