"""Ways to be asked to stop, by Ctrl-C or a signal, that leave time to clean up."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminable() -> Iterator[None]:
    """End a run that is asked to stop as Ctrl-C does, so that it cleans up."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        # Not KeyboardInterrupt itself: in an event loop, asyncio takes SIGINT to cancel its task.
        signal.raise_signal(signal.SIGINT)

    with _handled_by(interrupt, "SIGTERM", "SIGHUP"):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off a request to stop until something is done, unless it is made a second time."""
    asked = False

    def put_off(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    with _handled_by(put_off, "SIGINT", "SIGTERM", "SIGHUP"):
        yield
    if asked:
        raise KeyboardInterrupt


@contextmanager
def postponed() -> Iterator[None]:
    """Put off a request to stop, also for the processes that are started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], *names: str) -> Iterator[None]:
    """Handle those of the signals that this system has."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
