"""A run on an async engine, in an event loop of its own.

A pooled connection belongs to the event loop that opened it (SQLAlchemy manual, "Using
multiple asyncio event loops"). So a run takes no connection from an earlier loop and
leaves none in the pool: the next command, which has a loop of its own, would fail on
it. An owner without async drivers can delete this file.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine, StaticPool

if TYPE_CHECKING:  # it needs greenlet, which sync drivers do without
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")


def as_async_engine(engine: "Engine | AsyncEngine") -> "AsyncEngine":
    """Return an engine of an async driver as an AsyncEngine.

    Raises ImportError without greenlet. SQLAlchemy 2.0 would raise only when the engine
    connects, and 2.1 no longer installs greenlet by itself.
    """
    if find_spec("greenlet") is None:
        raise ImportError("No module named 'greenlet'")
    from sqlalchemy.ext.asyncio import AsyncEngine

    return AsyncEngine(engine) if isinstance(engine, Engine) else engine


def is_running() -> bool:
    """Tell whether an event loop runs in this thread: asyncio.run() would raise."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run(
    engine: "AsyncEngine",
    work: Callable[[Connection], T],
    connection_errors: AbstractContextManager[None],
) -> T:
    """Call `work` with a connection of the engine, and return its result.

    If an event loop runs in this thread, the work is done in another thread while this
    one waits. `connection_errors` turns the driver's error into a sentence if the
    engine cannot connect.
    """
    done = run_in_loop(engine, work, connection_errors)
    if not is_running():
        return asyncio.run(done)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, done).result()


async def run_in_loop(
    engine: "AsyncEngine",
    work: Callable[[Connection], T],
    connection_errors: AbstractContextManager[None],
) -> T:
    """Connect, call `work` and empty the pool, all in one event loop.

    What an earlier loop has pooled is dropped and not closed (`close=False`), since
    only that loop could close it.
    """
    # A StaticPool is left alone: its one connection may be an SQLite database in
    # memory.
    is_pooled = not isinstance(engine.pool, StaticPool)
    if is_pooled:
        await engine.dispose(close=False)
    try:
        with connection_errors:
            connection = await engine.connect()
        try:
            return await connection.run_sync(work)
        finally:
            await connection.close()
    finally:
        if is_pooled:
            await engine.dispose()
