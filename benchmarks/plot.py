"""The plot of the ratios, an SVG without a background, in colours that any background lets read."""

from __future__ import annotations

from html import escape
from pathlib import Path

from benchmarks.measure import Row

# In pixels: a line, the place of the labels, of the bars, and what stays for the numbers.
LINE, LABELS, BARS, NUMBERS = 20, 260, 360, 130
# Grey with a contrast of more than four to white and to black, and a light blue.
TEXT, BAR = "#767676", "#5aa0e6"


def write_plot(path: Path, results: dict[str, list[Row]]) -> None:
    """Draw a bar for the median of each plotted ratio, a line for its range and one for 1."""
    shapes: list[str] = []
    top = 0
    for name, rows in results.items():
        plotted = [row for row in rows if row.plotted]
        shapes.append(_text(0, top, name, weight="bold"))
        top += LINE
        for case in dict.fromkeys(row.case for row in plotted):
            of_case = [row for row in plotted if row.case == case]
            header = f"{case}: times {of_case[0].against}"
            shapes += [_text(0, top, header), *_bars(top + LINE, of_case)]
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


def _bars(top: int, rows: list[Row]) -> list[str]:
    """Return the shapes of the rows of a case, which have one scale."""
    # A pixel is 1 / scale times; the line of 1 is on the plot wherever the bars end.
    scale = BARS / max(1.0, *(ratio for row in rows for ratio in row.ratios))
    shapes = []
    thick = f'stroke-width="{LINE - 8}" stroke-opacity="0.6"'
    for number, row in enumerate(rows):
        y = top + number * LINE
        middle = y + LINE // 2
        low, high = (LABELS + scale * end for end in (min(row.ratios), max(row.ratios)))
        shapes += [
            _text(LABELS - 8, y, row.way, anchor="end"),
            f'<path d="M{LABELS} {middle}h{scale * row.median:.1f}" stroke="{BAR}" {thick}/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{TEXT}" stroke-width="2"/>',
            _text(LABELS + BARS + 8, y, row.text),
        ]
    one = LABELS + scale
    shapes.append(
        f'<path d="M{one:.1f} {top}v{len(rows) * LINE}" stroke="{TEXT}" stroke-dasharray="3 3"/>'
    )
    return shapes


def _text(x: int, top: int, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    """Return a line of text that stands below `top`."""
    return (
        f'<text x="{x}" y="{top + 14}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
