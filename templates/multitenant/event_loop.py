"""Run migrations on an async engine, in an event loop of their own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import URL, Connection, StaticPool

if TYPE_CHECKING:  # it needs greenlet, which sync drivers do without
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")


def require_greenlet() -> None:
    """Raise ImportError where greenlet is missing, which SQLAlchemy 2.0 would find out later."""
    if find_spec("greenlet") is None:
        raise ImportError("No module named 'greenlet'")


def runs() -> bool:
    """Tell whether an event loop runs in this thread, where asyncio.run() would raise."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run(
    engine: "AsyncEngine",
    work: Callable[[Connection], T],
    connection_errors: Callable[[URL], AbstractContextManager[None]],
) -> T:
    """Return what some work on a connection of the engine gives, and leave no open one in its pool.

    Where an event loop runs in this thread, the work is done in another thread while this one
    waits. `connection_errors` words what is raised where no connection can be had.
    """
    # A pooled connection is tied to the event loop that opened it: none is taken from an earlier
    # loop, none is left to a later one. A StaticPool's one connection may be the database itself.
    pooled = not isinstance(engine.pool, StaticPool)

    async def connect_and_work() -> T:
        if pooled:
            await engine.dispose(close=False)
        try:
            with connection_errors(engine.url):
                connection = await engine.connect()
            try:
                return await connection.run_sync(work)
            finally:
                await connection.close()
        finally:
            if pooled:
                await engine.dispose()

    if runs():
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(asyncio.run, connect_and_work()).result()
    return asyncio.run(connect_and_work())
