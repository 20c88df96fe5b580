"""Ways to be asked to stop, by Ctrl-C or a signal, that leave time to clean up on a server.

Files need none of this: a folder for scratch goes by itself, or is in nobody's way.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminable() -> Iterator[None]:
    """End a run that is asked to stop by a signal as Ctrl-C does, so that it cleans up.

    By itself SIGTERM, which a container gets, ends Python at once, and so does SIGHUP, which comes
    if the terminal is closed.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        # Not KeyboardInterrupt itself: in an event loop, asyncio takes SIGINT to cancel its task.
        signal.raise_signal(signal.SIGINT)

    with _handled_by(interrupt, "SIGTERM", "SIGHUP"):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off a request to stop until something is done, unless it is made a second time.

    Raises KeyboardInterrupt then, and at the end after a first request.
    """
    asked: list[int] = []

    def put_off(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    with _handled_by(put_off, "SIGINT", "SIGTERM", "SIGHUP"):
        yield
    if asked:
        raise KeyboardInterrupt


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], *names: str) -> Iterator[None]:
    """Handle those of the signals that this system has; Windows has no SIGHUP."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
