"""A run over many tenants: who works on which, what became of each, and how far the run is."""

import logging
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from alembic import context, op
from alembic.util import CommandError

log = logging.getLogger("alembic.env")


class Task(NamedTuple):
    """One tenant to run, and what is known of it before.

    `schema` is None where the connection leads to its own database. `has_table` says whether there
    is a version table, and `heads` its revisions; both are None where nobody has looked.
    `script` is replayed if it is still at `heads` when its lock is taken, for which the run
    waits `timeout` seconds. `first` says that it is tried again if another runner has it.
    """

    tenant: str
    schema: str | None = None
    missing: bool = False
    has_table: bool | None = None
    heads: tuple[str, ...] | None = None
    script: list[list[str]] | None = None
    timeout: float = 0
    first: bool = True


class Result(NamedTuple):
    """What became of a tenant: `changed`, `current`, `failed` or `locked` by another runner."""

    tenant: str
    outcome: str
    error: str = ""
    seconds: float = 0


class Run:
    """The tasks of a run, in the order of the fleet, and its results."""

    def __init__(self, done: str, lock_timeout: float, *, fail_fast: bool) -> None:
        """Begin a run. `done` is what its summary says of a changed tenant: upgraded."""
        self.done = done
        self.lock_timeout = lock_timeout
        self.fail_fast = fail_fast
        self.tasks: deque[Task] = deque()
        self.locked: deque[Task] = deque()
        self.under_way: dict[str, Task] = {}
        self.counts: Counter[str] = Counter()
        self.failed: list[Result] = []
        self.shown: Callable[[Result], None] = lambda _: None
        self.stopped_by: int | None = None

    def take(self) -> Task | None:
        """Give the next task. Tenants that another runner has come last, and are waited for."""
        if self.stopped_by or (self.fail_fast and self.failed):
            return None
        if self.tasks:
            task = self.tasks.popleft()
        elif self.locked:
            task = self.locked.popleft()._replace(timeout=self.lock_timeout, first=False)
        else:
            return None
        self.under_way[task.tenant] = task
        return task

    def record(self, result: Result) -> None:
        """Take the result of a task."""
        task = self.under_way.pop(result.tenant, None)
        if result.outcome == "locked" and task is not None:
            self.locked.append(task)
            return
        self.counts[result.outcome] += 1
        if result.outcome == "failed":
            self.failed.append(result)
        self.shown(result)

    @property
    def left(self) -> int:
        """How many tenants the run has not come to."""
        return len(self.tasks) + len(self.locked) + len(self.under_way)

    def summary(self) -> str:
        """Return the line with which a run ends."""
        parts = [
            f"{self.counts['changed']} {self.done}",
            f"{self.counts['current']} current",
            f"{self.counts['failed']} failed",
        ]
        return ", ".join(parts + ([f"{self.left} left"] if self.left else []))


def attempt(task: Task, work: Callable[[Task], bool]) -> Result:
    """Run a task and return its result; `work` tells whether it changed anything."""
    start = time.monotonic()
    error = ""
    try:
        outcome = "changed" if work(task) else "current"
    except (Exception, SystemExit) as raised:  # the others go on, whatever it is
        # Told by its attribute, as commands.py does: the class is another each time it is loaded.
        is_locked = isinstance(raised, CommandError) and hasattr(raised, "timeout")
        if is_locked and context.config.attributes.get("takes_turns"):
            raise  # a series of commands waits by itself
        outcome = "locked" if task.first and is_locked else "failed"
        error = described(raised)
        log.debug("Tenant %r: %s", task.tenant, error, exc_info=True)
    return Result(task.tenant, outcome, error, time.monotonic() - start)


def described(error: BaseException) -> str:
    """Say in one line what was raised, and in which revision."""
    reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    if isinstance(error, CommandError):
        return reason
    revisions = [
        f" (revision {frame.f_globals['revision']}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if {"revision", "down_revision"} <= frame.f_globals.keys()
    ]
    return f"{type(error).__name__}: {reason}{revisions[-1] if revisions else ''}"


@contextmanager
def cleaned() -> Iterator[None]:
    """Take away what Alembic leaves in its module `op` where a revision fails."""
    try:
        yield
    except BaseException:
        left = getattr(op, "_proxy", None)
        if left is not None:
            left._remove_proxy()
        raise


@contextmanager
def progress(run: Run) -> Iterator[None]:
    """Show how far the run is: a bar on a terminal, elsewhere a line for each tenant."""
    if not run.left:
        yield
        return
    if not sys.stderr.isatty():
        run.shown = lambda result: log_line(run, result)
        yield
        return
    with bar(run.left) as advance:
        run.shown = lambda _: advance()
        yield


@contextmanager
def bar(total: int) -> Iterator[Callable[[], Any]]:
    """Show count, rate and time left, by tqdm or rich where one is installed."""
    if find_spec("tqdm"):
        with import_module("tqdm").tqdm(total=total, unit="tenant") as shown:
            yield shown.update
    elif find_spec("rich"):
        progress, console = import_module("rich.progress"), import_module("rich.console")
        columns = [
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TaskProgressColumn(show_speed=True),
            progress.TimeRemainingColumn(),
        ]
        with progress.Progress(*columns, console=console.Console(stderr=True)) as shown:
            task = shown.add_task("tenants", total=total)
            yield lambda: shown.advance(task)
    else:
        start = time.monotonic()
        count = 0

        def advance() -> None:
            nonlocal count
            count += 1
            rate = count / max(time.monotonic() - start, 0.001)
            line = f"{count}/{total} tenants, {rate:.1f}/s, {(total - count) / rate:.0f} s left"
            print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)

        yield advance
        print(file=sys.stderr)


def log_line(run: Run, result: Result) -> None:
    """Log what became of a tenant; its error comes at the end."""
    outcome = run.done if result.outcome == "changed" else result.outcome
    log.info("Tenant %r: %s in %.2f s", result.tenant, outcome, result.seconds)


def report(run: Run, *, by_command: bool) -> None:
    """End a run: name what failed, and print the summary; a program gets a CommandError instead.

    The exit code is 1 where a tenant failed, and 128 and the signal's number after a signal.
    """
    for result in run.failed:
        log.error("Tenant %r failed: %s", result.tenant, result.error)
    if by_command:
        context.config.print_stdout(run.summary())
        if run.stopped_by or run.failed or run.left:
            raise SystemExit(128 + run.stopped_by if run.stopped_by else 1)
        return
    log.info(run.summary())
    if run.failed or run.left:
        failed = "; ".join(f"{result.tenant!r}: {result.error}" for result in run.failed[:5])
        more = "; …" if len(run.failed) > 5 else ""
        raise CommandError(f"{run.summary()}: {failed}{more}; mend it, and run the command again.")
