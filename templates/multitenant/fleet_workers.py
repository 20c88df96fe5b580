"""Worker processes that share the tenants of a run, and what stops them early.

They are processes and not threads, since Alembic keeps the environment that runs in
globals. Each gets one tenant at a time, so that a slow tenant does not hold up others.
If a worker dies, only the tenant that it was at fails, and the other workers go on.

The first Ctrl-C lets the tenants in progress finish, so that a deployment that is
stopped leaves no tenant halfway. The second one rolls them back.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from alembic.util import CommandError

from .fleet import describe_error
from .fleet_report import Result, Run
from .tenants import Tenant

log = logging.getLogger("alembic.env")

# What a worker does: it takes tenants as they come, and reports a result for each.
Serve = Callable[[Iterator[Tenant], Callable[[Result], None]], None]


@dataclass(frozen=True)
class Worker:
    """A process, and the pipe that sends tenants to it and gets its results."""

    process: BaseProcess
    pipe: Any


@contextmanager
def workers(jobs: int, serve: Serve) -> Iterator[list[Worker]]:
    """Start worker processes, and end them with the block.

    The list is empty if this process has to do the work alone. A fork gives each worker
    the revisions that this process has loaded. It is made while no connection is open,
    since two processes must not use one (SQLAlchemy manual, "Using Connection Pools
    with Multiprocessing or os.fork()"), and never beside other threads, since a lock
    that one of them holds would stay locked for ever (Python manual, os.fork). After an
    error the workers are killed, and the server rolls their transactions back. Raises
    CommandError if the system has no process left.
    """
    jobs = possible_jobs(jobs)
    started: list[Worker] = []
    try:
        while jobs > 1 and len(started) < jobs:
            try:
                started.append(started_worker(serve, started))
            except OSError as error:
                raise CommandError(
                    f"{jobs} worker processes cannot be started ({error}): set jobs to "
                    "fewer."
                ) from error
        yield started
    except BaseException:
        for worker in started:
            worker.process.kill()
        raise
    finally:
        for worker in started:
            worker.pipe.close()
            worker.process.join()


def started_worker(serve: Serve, others: Sequence[Worker]) -> Worker:
    """Start a worker process and return it.

    It closes the ends of pipes that it inherits (its own and those of `others`): a
    worker that holds one would keep another from seeing that its parent has died.
    """
    mine, its = multiprocessing.Pipe()
    inherited = [*(worker.pipe for worker in others), mine]
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=work, args=(serve, its, inherited), daemon=True)
    process.start()
    its.close()
    return Worker(process, mine)


def possible_jobs(jobs: int) -> int:
    """Return the number of processes that can be used for so many jobs.

    It is 1 if this process cannot be forked, and a warning says why.
    """
    obstacle = obstacle_to_forks() if jobs > 1 else None
    if obstacle:
        log.warning("One process does the work of %d jobs, since %s.", jobs, obstacle)
    return 1 if obstacle else jobs


def obstacle_to_forks() -> str | None:
    """Return why this process cannot be forked, None if it can.

    macOS has fork, but its system libraries may crash after it, so Python does not use
    it there (Python manual, multiprocessing, "Contexts and start methods").
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    if not can_fork or sys.platform == "darwin":
        return "this system has no safe fork"
    deadline = time.monotonic() + 0.1
    while (others := other_threads()) and time.monotonic() < deadline:
        time.sleep(0.005)  # a driver's thread ends a moment after its connection
    if not others:
        return None
    return f"it has other threads ({', '.join(others)}), which a fork would lose"


def other_threads() -> list[str]:
    """Return the names of the threads that run beside this one."""
    this = threading.current_thread()
    return [each.name for each in threading.enumerate() if each != this]


def work(serve: Serve, pipe: Any, inherited: Sequence[Any]) -> None:
    """Serve tenants in a worker process, until the parent closes the pipe or dies.

    A worker ignores Ctrl-C, which a terminal sends to all processes: the parent
    decides, and hands out no more tenants.
    """
    for each in inherited:
        each.close()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError):
        try:
            serve(received_tenants(pipe), pipe.send)
        except Exception as error:  # noqa: BLE001 - such as no connection
            pipe.send(Result("", "lost", error=describe_error(error)))


def received_tenants(pipe: Any) -> Iterator[Tenant]:
    """Give the tenants that come in through a pipe, until the other end is closed."""
    with suppress(EOFError):
        while True:
            yield pipe.recv()


def share(run: Run, started: list[Worker]) -> None:
    """Give each worker a tenant when it is free, until all tenants have a result.

    A worker that has died is not used again, and its tenant counts as failed. If no
    worker is left, the rest of the tenants stay without a result, and are reported.
    """
    busy: dict[Any, tuple[Worker, Tenant]] = {}
    idle = list(started)
    while True:
        while idle and (tenant := run.take()) is not None:
            worker = idle.pop(0)
            busy[worker.pipe] = (worker, tenant)
            with suppress(BrokenPipeError):  # it has died, which is seen below
                worker.pipe.send(tenant)
        if not busy:
            return
        for pipe in wait(list(busy)):
            worker, tenant = busy.pop(pipe)
            result = replace(received_result(worker), name=tenant.name)
            if result.outcome == "lost":
                run.record(replace(result, outcome="failed"))
            else:
                run.record(result)
                idle.append(worker)


def received_result(worker: Worker) -> Result:
    """Return the result that a worker sends; "lost" if the worker has ended.

    The error then says how, such as by signal 9 if there was too little memory.
    """
    try:
        result: Result = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = (
            f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        )
        return Result("", "lost", error=f"its worker process was {how}")
    return result


def work_alone(run: Run, serve: Serve) -> None:
    """Run all tenants in this process, without workers."""
    serve(iter(run.take, None), run.record)


class Stop:
    """What a signal does: end the run after the tenants in progress, or at once.

    The first signal sets a value of the run, which Run.take() looks at, and says so.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, number: int, _frame: object) -> None:
        """Handle a signal; raise KeyboardInterrupt for the second."""
        if self.run.stopped_by:
            raise KeyboardInterrupt
        self.run.stopped_by = number
        self.run.fleet.servers.stopped[0] = 1
        message = (
            f"\nFinishing the {len(self.run.under_way)} tenants in progress. "
            "Press Ctrl-C again to roll them back and stop now.\n"
        )
        # A print() may have been interrupted, and a second one would raise an error.
        os.write(sys.stderr.fileno(), message.encode())


@contextmanager
def stoppable(run: Run, *, by_command: bool) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the run of the `alembic` command; see Stop.

    In a program they do what the program says. The handlers from before are put back.
    """
    if not by_command:
        yield
        return
    stop = Stop(run)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
