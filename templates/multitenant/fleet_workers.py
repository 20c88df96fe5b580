"""Worker processes that share the tenants of a run, and what ends them before its end."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from alembic.util import CommandError, load_python_file

runs = load_python_file(Path(__file__).parent, "fleet_run.py")

log = logging.getLogger("alembic.env")


def number_of_jobs(value: Any) -> int:
    """Return the number of worker processes from its setting, 1 where it is not set."""
    try:
        jobs = 1 if value is None else int(str(value))
    except (TypeError, ValueError):
        jobs = 0
    if jobs < 1:
        raise CommandError(f"jobs is {value!r}: expected a whole number, 1 or more.")
    return jobs


class Worker(NamedTuple):
    """A process, and the pipe that tasks go out by and results come in by."""

    process: BaseProcess
    pipe: Any


Serve = Callable[[Iterator[Any], Callable[[Any], None]], None]


@contextmanager
def workers(jobs: int, serve: Serve) -> Iterator[list[Worker]]:
    """Start the worker processes, none where this process does all, and end them.

    They are forked, so that all have the script directory that this one has loaded: before any
    connection is opened, which two processes must not use, and never beside other threads, whose
    locks a fork would leave locked for ever.
    """
    if jobs > 1 and (obstacle := obstacle_to_forks()):
        log.warning("One process does the work of %d jobs, since %s.", jobs, obstacle)
        jobs = 1
    started: list[Worker] = []
    try:
        while jobs > 1 and len(started) < jobs:
            mine, other = multiprocessing.Pipe()
            inherited = [*(worker.pipe for worker in started), mine]
            process = multiprocessing.get_context("fork").Process(
                target=work, args=(serve, other, inherited), daemon=True
            )
            try:
                process.start()
            except OSError as error:
                raise CommandError(
                    f"{jobs} worker processes cannot be started ({error}): set jobs to fewer."
                ) from error
            other.close()
            started.append(Worker(process, mine))
        yield started
    except BaseException:
        for worker in started:
            worker.process.kill()
        raise
    finally:
        for worker in started:
            worker.pipe.close()
            worker.process.join()


def obstacle_to_forks() -> str | None:
    """Say why this process cannot be forked, None where it can."""
    if "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin":
        return "this system has no safe fork"
    others = [each.name for each in threading.enumerate() if each != threading.current_thread()]
    return (
        f"it has other threads ({', '.join(others)}), which a fork would lose" if others else None
    )


def work(serve: Serve, pipe: Any, inherited: Sequence[Any]) -> None:
    """Serve tasks in a worker process until the pipe ends: also where its parent was killed."""
    for each in inherited:
        each.close()
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent hands out no more tasks
        signal.signal(number, signal.SIG_IGN)

    def tasks() -> Iterator[Any]:
        with suppress(EOFError):
            while True:
                yield runs.Task(*pipe.recv())

    with suppress(BrokenPipeError):
        try:
            serve(tasks(), lambda result: pipe.send(tuple(result)))
        except Exception as error:  # noqa: BLE001 - no connection, for one
            pipe.send(("", "lost", runs.described(error)))


def share(run: Any, started: list[Worker]) -> None:
    """Give each worker a task as it becomes free, until none is left.

    A worker that dies costs the tenant that it was at; the others go on with the rest.
    """
    busy: dict[Any, tuple[Worker, Any]] = {}
    idle = list(started)
    while True:
        while idle and (task := run.take()) is not None:
            worker = idle.pop(0)
            busy[worker.pipe] = (worker, task)
            with suppress(BrokenPipeError):  # read as its end below
                worker.pipe.send(tuple(task))
        if not busy:
            return
        for pipe in wait(list(busy)):
            worker, task = busy.pop(pipe)
            result = received(worker)._replace(tenant=task.tenant)
            if result.outcome == "lost":
                run.record(result._replace(outcome="failed"))
            else:
                run.record(result)
                idle.append(worker)


def received(worker: Worker) -> Any:
    """Return what a worker sends, `lost` where it has ended."""
    try:
        return runs.Result(*worker.pipe.recv())
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return runs.Result("", "lost", f"its worker process was {how}")


def work_alone(run: Any, serve: Serve) -> None:
    """Do all tasks in this process."""
    try:
        serve(iter(run.take, None), run.record)
    except CommandError as error:  # the connection is lost, and no other can be had
        for tenant in list(run.under_way):
            run.record(runs.Result(tenant, "failed", str(error)))


@contextmanager
def stoppable(run: Any, *, by_command: bool) -> Iterator[None]:
    """Let the first Ctrl-C, or SIGTERM, end the run after the tenants in flight; the second at once."""

    def stop(number: int, _frame: Any) -> None:
        if run.stopped_by:
            raise KeyboardInterrupt
        run.stopped_by = number
        count = len(run.under_way)
        message = f"\nFinishing {count} in flight; the same again rolls back.\n"
        os.write(sys.stderr.fileno(), message.encode())  # what print() does may be under way

    if not by_command:
        yield  # what a signal does is the program's to say
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
