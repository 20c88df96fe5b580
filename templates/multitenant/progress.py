"""How far a run of a fleet is: the bar on a terminal.

Elsewhere, such as in the log of a deployment, a run writes a line for each tenant. An
owner can delete this file; then a run writes these lines on a terminal, too.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True)
class Bar:
    """How to count one more tenant, and how to write a line above the bar."""

    advance: Callable[[], object]
    write: Callable[[str], object]


@contextmanager
def bar(total: int) -> Iterator[Bar]:
    """Show how many of `total` tenants are done, the rate, and the time that is left.

    tqdm or rich draw the bar if one is installed; neither is needed.
    """
    if find_spec("tqdm"):
        with import_module("tqdm").tqdm(total=total, unit="tenant") as shown:
            yield Bar(shown.update, partial(shown.write, file=sys.stderr))
    elif find_spec("rich"):
        with rich_progress() as shown:
            task = shown.add_task("tenants", total=total)
            write = partial(shown.console.print, markup=False, soft_wrap=True)
            yield Bar(partial(shown.advance, task), write)
    else:
        plain = PlainBar(total)
        yield Bar(plain.advance, plain.write)
        print(file=sys.stderr)


def rich_progress() -> Any:
    """Return a bar of rich that writes to standard error, as the other bars do."""
    progress = import_module("rich.progress")
    console = import_module("rich.console").Console(stderr=True)
    return progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TaskProgressColumn(show_speed=True),
        progress.TimeRemainingColumn(),
        console=console,
    )


class PlainBar:
    """A line on standard error that is written anew for each tenant."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0
        self.start = time.monotonic()

    def advance(self) -> None:
        """Count one more tenant, and write the line over the one before."""
        self.count += 1
        rate = self.count / max(time.monotonic() - self.start, 0.001)
        left = (self.total - self.count) / rate
        line = f"{self.count}/{self.total} tenants, {rate:.1f}/s, {left:.0f} s left"
        print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """Write text in place of the line, which is written anew below it."""
        print(f"\r{text:<60}", file=sys.stderr)
