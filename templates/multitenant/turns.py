"""One command at a time in a process: a turn that threads and tasks wait for.

Alembic keeps the environment that runs in globals of its modules alembic.context and
alembic.op. Without turns, two threads that run commands at once would work on each
other's connections. `Migrations` in commands.py takes a turn for each command; a
program that calls alembic.command takes none, and has to use one thread.
"""

import asyncio
import os
import sys
import threading
import time
from types import ModuleType
from typing import Any, cast

from alembic.runtime.environment import EnvironmentContext
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.engine import AdaptedConnection

from .migration_lock import TurnLost

# Alembic's globals belong to the process, and so must the turn: the copies of this file
# in several environments find it in sys.modules under this name. It has the lock, and
# the thread and the task that hold it.
SHARED = "alembic_environments_turn"


def make_turn() -> ModuleType:
    """Return the module that holds the turn; the first environment makes it."""
    turn = ModuleType(SHARED)
    vars(turn).update(lock=threading.Lock(), holder=None)
    shared = sys.modules.setdefault(SHARED, turn)
    if shared is turn and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget_other_threads)
    return shared


def forget_other_threads() -> None:
    """Free the turn in a forked process, if another thread of the parent has it.

    A fork copies only the thread that calls it, so nobody would ever free the lock.
    """
    holder = PROCESS.holder
    if PROCESS.lock.locked() and (not holder or holder[0] != threading.get_ident()):
        vars(PROCESS).update(lock=threading.Lock(), holder=None)


PROCESS = make_turn()


class Turn:
    """The turn of one command, with its environment in Alembic's globals.

    A thread sleeps until it has the turn. A task waits in its event loop, so that other
    tasks can work. `is_mine` says that this command has the turn now.
    """

    def __init__(
        self, environment: EnvironmentContext, connection: Connection, timeout: float
    ) -> None:
        """Prepare to wait up to `timeout` seconds each time."""
        self.environment = environment
        self.connection = connection
        self.timeout = timeout
        self.is_mine = False

    def __enter__(self) -> None:
        """Wait for the turn, and put the environment into Alembic's globals.

        Raises CommandError after the timeout: the command that has the turn may wait
        for a table that a transaction of this one has locked. Raises it at once if the
        wait would never end.
        """
        caller = threading.get_ident(), current_task()
        self.refuse_endless_wait(*caller)
        deadline = time.monotonic() + self.timeout
        while not self.take():
            if time.monotonic() >= deadline:
                raise CommandError(
                    "A command of another thread or task has not ended in "
                    f"{self.timeout:g} seconds: end the transaction that it may wait "
                    "for, or raise lock_timeout."
                )
        vars(PROCESS).update(holder=caller)
        self.is_mine = True
        self.environment.__enter__()

    def __exit__(self, *_error: object) -> None:
        """Give the turn back, unless it could not be taken again after a sleep."""
        if self.is_mine:
            self.is_mine = False
            self.environment.__exit__()
            vars(PROCESS).update(holder=None)
            PROCESS.lock.release()

    def refuse_endless_wait(self, thread: int, task: Any) -> None:
        """Raise CommandError if the command that has the turn waits for this one.

        That is so if both run in one thread, unless they are two tasks with async
        connections, which let each other work.
        """
        holder = PROCESS.holder
        is_async = self.connection.dialect.is_async
        if holder and holder[0] == thread and (holder[1] is task or not is_async):
            raise CommandError(
                "Another command of Migrations runs in this thread: a revision cannot "
                "run one, and neither can sync code beside an async one in its event "
                "loop."
            )

    def take(self) -> bool:
        """Try to take the turn, and return whether this command has it.

        A thread waits for the whole timeout. A task tries once and then lets others
        work, since a wait for the lock would stop its event loop.
        """
        if not self.connection.dialect.is_async:
            timeout = min(self.timeout, threading.TIMEOUT_MAX)
            return bool(PROCESS.lock.acquire(timeout=timeout))
        taken = bool(PROCESS.lock.acquire(blocking=False))
        if not taken:
            pause(self.connection, 0.01)
        return taken

    def sleep(self, seconds: float) -> None:
        """Sleep some seconds without the turn, so that other commands can have it.

        One of them may hold the lock that this command waits for. Raises TurnLost if
        the turn cannot be had again, which ends the command.
        """
        self.__exit__()
        pause(self.connection, seconds)
        try:
            self.__enter__()
        except CommandError as error:
            raise TurnLost(str(error)) from error


def current_task() -> Any:
    """Return the asyncio task that runs in this thread, None without an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def pause(connection: Connection, seconds: float) -> None:
    """Sleep some seconds; on an async connection, without stopping its event loop.

    run_async() of SQLAlchemy's adapter awaits a coroutine from sync code.
    """
    if connection.dialect.is_async:
        driver = cast(AdaptedConnection, connection.connection.dbapi_connection)
        driver.run_async(lambda _: asyncio.sleep(seconds))
    else:
        time.sleep(seconds)
