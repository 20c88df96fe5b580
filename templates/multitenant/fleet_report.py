"""What became of each tenant, and what the run says of it.

A deployment reads two things: the exit code, and the last line. Both show a failure, a
tenant that was left out, and a run that was stopped. Without that, a deployment would
start the new code on tenants that are not migrated.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from alembic.util import CommandError

from .fleet import Fleet
from .fleet_servers import server_of
from .tenants import Tenant

log = logging.getLogger("alembic.env")

# The word in the summary for the tenants that a command has changed.
DONE = {"upgrade": "upgraded", "downgrade": "downgraded", "stamp": "stamped"}


@dataclass(frozen=True)
class Result:
    """What became of a tenant, in a form that a worker process can send.

    `outcome` is "changed", "current" (there was nothing to do), "failed", "locked" (by
    another run, so that it is tried again at the end), "down" (its server does not
    answer), or "lost" (the worker process has ended). `revision` is where the tenant is
    now, or that in which it has failed; empty at base, None if that is not known.
    `error` is one line, `trace` the traceback if --raiseerr asks for it, and `seconds`
    the time that the tenant took, 0 if it was not started.
    """

    name: str
    outcome: str
    revision: str | None = None
    error: str = ""
    trace: str = ""
    seconds: float = 0.0


@dataclass
class Failure:
    """The tenants that have failed in the same words, by their names.

    `first` is the result of one of them. `words` has {tenant} in the place of a name.
    """

    first: Result
    words: str
    names: list[str] = field(default_factory=list)

    @property
    def error(self) -> str:
        """The error of the tenant, or the words of all."""
        return self.first.error if len(self.names) == 1 else self.words

    def __str__(self) -> str:
        """Name the tenant, or say how many there are and name five."""
        names = ", ".join(map(repr, self.names[:5]))
        if len(self.names) == 1:
            return names
        return f"{len(self.names)} tenants ({names}{', …' * (len(self.names) > 5)})"


class Run:
    """The tenants of a run, in the order of the fleet, and their results so far.

    A tenant is in `waiting`, then in `under_way` while a worker has it. In `locked` are
    those that another run has. `done` is the word of the summary for a changed tenant.
    `failures` has the failed ones by the words of their errors. `shown` is called with
    each result. `stopped_by` is the number of the signal that has stopped the run, None
    without one.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.done = DONE.get(fleet.command or "", "migrated")
        self.waiting: deque[Tenant] = deque()
        self.locked: deque[Tenant] = deque()
        self.under_way: dict[str, Tenant] = {}
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, Failure] = {}
        self.shown: Callable[[Result], object] = partial(log_result, self)
        self.start = time.monotonic()
        self.stopped_by: int | None = None

    def take(self) -> Tenant | None:
        """Return the next tenant to run, None if no more may be started.

        Those that another run has come last, and then wait for its lock.
        """
        limit = self.fleet.options.max_failures
        has_enough = limit is not None and self.counts["failed"] >= limit
        if self.stopped_by or has_enough or not (self.waiting or self.locked):
            return None
        if self.waiting:
            tenant = self.waiting.popleft()
        else:
            tenant = replace(self.locked.popleft(), is_last_try=True)
        self.under_way[tenant.name] = tenant
        return tenant

    def record(self, result: Result) -> None:
        """Note the result of a tenant; a locked one is put back, to be tried again.

        If its server is down, the other tenants there fail in the same words.
        """
        tenant = self.under_way.pop(result.name, None)
        if result.outcome == "locked" and tenant is not None:
            self.locked.append(tenant)
            return
        if result.outcome == "down" and tenant is not None:
            self.record(replace(result, outcome="failed"))
            self.give_up(server_of(tenant.url), result.error)
            return
        self.counts[result.outcome] += 1
        if result.outcome == "failed":
            words = common_words(result.error, result.name, tenant)
            failure = self.failures.setdefault(words, Failure(result, words))
            failure.names.append(result.name)
        self.shown(result)

    def give_up(self, server: str | None, error: str) -> None:
        """Let the tenants fail that are on a server and have not been started."""
        for tenants in (self.waiting, self.locked):
            there = [each for each in tenants if server_of(each.url) == server]
            others = [each for each in tenants if server_of(each.url) != server]
            tenants.clear()
            tenants.extend(others)
            for tenant in there:
                self.record(Result(tenant.name, "failed", error=error))

    @property
    def left(self) -> int:
        """The number of tenants that have no result yet."""
        return len(self.waiting) + len(self.locked) + len(self.under_way)

    def summary(self) -> str:
        """Return the last line of a run, such as `12 upgraded, 3 current, 1 failed`."""
        parts = [
            f"{self.counts['changed']} {self.done}",
            f"{self.counts['current']} current",
            f"{self.counts['failed']} failed",
        ]
        return ", ".join(parts + ([f"{self.left} left"] if self.left else []))


def common_words(error: str, name: str, tenant: Tenant | None) -> str:
    """Return an error with {tenant} in the place of the tenant's name and database.

    A server quotes these. Without this, a thousand tenants without a database would be
    a thousand entries.
    """
    database = tenant.url.database if tenant is not None and tenant.url else None
    for own in filter(None, (database, name)):
        for quote in ("'", '"'):
            error = error.replace(quote + own + quote, quote + "{tenant}" + quote)
    return error


def log_result(run: Run, result: Result) -> None:
    """Log what became of a tenant, with fields for a formatter that writes JSON.

    A tenant that was not started is logged as DEBUG: on most days that is the whole
    fleet, with nothing to do. report() logs the errors at the end.
    """
    outcome = run.done if result.outcome == "changed" else result.outcome
    level = logging.INFO if result.seconds else logging.DEBUG
    fields = {
        "tenant": result.name,
        "revision": result.revision,
        "outcome": outcome,
        "seconds": round(result.seconds, 3),
    }
    said = "Tenant %r: %s in %.2f s"
    log.log(level, said, result.name, outcome, result.seconds, extra=fields)


def report(run: Run) -> None:
    """End a run: log what failed and the time it took, and print the summary.

    For the `alembic` command, the exit code is 1 if a tenant failed or was left out,
    and after a signal it is 128 plus the number of the signal, as in a shell. In a
    program, CommandError is raised instead.
    """
    for failure in run.failures.values():
        one = "Tenant " if len(failure.names) == 1 else ""
        log.error("%s%s failed: %s%s", one, failure, failure.error, failure.first.trace)
    seconds = time.monotonic() - run.start
    log.info("The run took %.1f s", seconds, extra={"seconds": round(seconds, 3)})
    is_bad = bool(run.failures or run.left)
    settings = run.fleet.settings
    if settings.is_alembic_command and settings.connection is None:
        settings.config.print_stdout(run.summary())
        if run.stopped_by or is_bad:
            raise SystemExit(128 + run.stopped_by if run.stopped_by else 1)
        return
    log.info(run.summary())
    if is_bad:
        first = list(run.failures.values())[:5]
        some = [f"{each}: {each.error.rstrip('.')}" for each in first]
        failed = "; ".join(some + ["…"] * (len(run.failures) > 5))
        raise CommandError(
            f"{run.summary()}: {failed}; fix it, and run the command again."
        )
