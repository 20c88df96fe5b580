"""The plot of the ratios, an SVG without a background, in colours that any background lets read."""

from __future__ import annotations

from html import escape
from pathlib import Path
from statistics import median

from benchmarks.measure import Row

# In pixels: a line, the place of the labels, of the bars, and what stays for the numbers.
LINE, LABELS, BARS, NUMBERS = 20, 300, 360, 60
# Grey with a contrast of more than four to white and to black, and a light blue.
TEXT, BAR = "#767676", "#5aa0e6"


def write_plot(path: Path, results: dict[str, list[Row]]) -> None:
    """Draw a bar for the median of each ratio, a line for its range and one where the ratio is 1."""
    shapes: list[str] = []
    top = 0
    for name, rows in results.items():
        shapes.append(label(0, top, name, 'font-weight="bold"'))
        top += LINE
        for case in dict.fromkeys(row.case for row in rows):
            of_case = [row for row in rows if row.case == case]
            shapes += [label(0, top, f"{case}: times as long as"), *bars(top + LINE, of_case)]
            top += (len(of_case) + 1) * LINE + LINE // 2
        top += LINE
    width = LABELS + BARS + NUMBERS
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" '
        f'height="{top}" font-family="sans-serif" font-size="12" fill="{TEXT}">\n'
        + "".join(f"{shape}\n" for shape in shapes)
        + "</svg>\n",
        encoding="utf-8",
    )


def bars(top: int, rows: list[Row]) -> list[str]:
    """Return the shapes of the rows of a case, which have one scale."""
    scale = BARS / max(1.0, *(ratio for row in rows for ratio in row.ratios))
    one = f'<path d="M{LABELS + scale} {top}v{len(rows) * LINE}" stroke-dasharray="3 3"'
    shapes = [f'{one} stroke="{TEXT}"/>']
    for number, row in enumerate(rows):
        y = top + number * LINE
        middle, ratio = y + LINE // 2, median(row.ratios)
        low, high = (LABELS + scale * end for end in (min(row.ratios), max(row.ratios)))
        shapes += [
            label(LABELS - 8, y, f"{row.way} / {row.against}", 'text-anchor="end"'),
            f'<path d="M{LABELS} {middle}h{scale * ratio:.1f}" stroke="{BAR}" stroke-width="12"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{TEXT}" stroke-width="2"/>',
            label(LABELS + BARS + 8, y, f"{ratio:.2f}"),
        ]
    return shapes


def label(x: int, top: int, text: str, attributes: str = "") -> str:
    """Return a line of text that stands below `top`."""
    return f'<text x="{x}" y="{top + 14}" {attributes}>{escape(text)}</text>'
