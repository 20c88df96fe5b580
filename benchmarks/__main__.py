"""Run every benchmark, print tables of ratios, and write results.json and results.svg.

    tox -e bench
    tox -e bench -- --quick --folder /tmp/results
    tox -e bench -- --only startup,commands

Each ratio is against an alternative that took turns with it in the same run. PostgreSQL is that of
TEST_POSTGRESQL_URL, else one is started from the PyPI wheel.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import URL

from benchmarks import commands, fleet, startup
from benchmarks.measure import Row, machine, postgresql, table, write_results
from benchmarks.plot import write_plot

NAMES = ("startup", "commands", "fleet")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes: to see that it works, not to judge by")
    add("--folder", type=Path, default=Path(__file__).parent, help="of the results (%(default)s)")
    add("--only", default=",".join(NAMES), help="names of them (%(default)s)")
    add("--rounds", type=int, help="how often each is run (startup 20, the others 3)")
    add("--tenants", type=int, help="of the fleet, at most 9999 (500)")
    add("--idle-tenants", type=int, help="those with nothing to do, 0 for none (5000)")
    add("--jobs", help="numbers of jobs of the fleet (1,2,4,8)")
    add("--ways", default="".join(fleet.WAYS), help="letters of the fleet's (%(default)s)")
    add("--workloads", default=",".join(fleet.WORKLOADS), help="of the fleet (%(default)s)")
    given = parser.parse_args()
    sizes = {"tenants": 500, "idle_tenants": 5000, "jobs": "1,2,4,8"}
    if given.quick:
        sizes = {"tenants": 2, "idle_tenants": 2, "jobs": "1"}
        given.rounds = given.rounds or 1
    for name, size in sizes.items():
        if getattr(given, name) is None:
            setattr(given, name, size)
    given.only = given.only.split(",")
    given.jobs = [int(number) for number in given.jobs.split(",")]
    given.workloads = given.workloads.split(",")
    if not set(given.only) <= set(NAMES):
        parser.error(f"expected some of {', '.join(NAMES)}")
    if not set(given.ways) <= set(fleet.WAYS) or len(set(given.ways)) < 2:
        parser.error(f"expected two or more of the ways {''.join(fleet.WAYS)}")
    if not set(given.workloads) <= set(fleet.WORKLOADS):
        parser.error(f"expected some of the workloads {', '.join(fleet.WORKLOADS)}")
    if not 1 <= given.tenants <= 9999 or not 0 <= given.idle_tenants <= 9999:
        parser.error("expected 1 to 9999 tenants")
    return given


def benchmarks(server: URL, given: argparse.Namespace) -> dict[str, Callable[[], list[Row]]]:
    """Return each benchmark by its name."""
    return {
        "startup": partial(startup.run, server, rounds=given.rounds or 20),
        "commands": partial(
            commands.run,
            files=[3] if given.quick else [20, 200, 1000],
            commands=3 if given.quick else 20,
            rounds=given.rounds or 3,
        ),
        "fleet": partial(
            fleet.run,
            server,
            tenants=given.tenants,
            jobs=given.jobs,
            rounds=given.rounds or 3,
            ways=given.ways,
            workloads=given.workloads,
            idle_tenants=given.idle_tenants,
        ),
    }


def main() -> None:
    """Run what is asked for, and print and write what was found."""
    given = arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The benchmark was ended."))
    with postgresql() as server:
        on = machine(server)
        if given.quick:
            print("A quick run: its sizes are too small to judge by.")
        print("\n".join(f"{name}: {value}" for name, value in on.items()), flush=True)
        every = benchmarks(server, given)
        results: dict[str, list[Row]] = {}
        for name in given.only:
            results[name] = every[name]()
            if given.quick:  # the goals are for the sizes of a whole run
                results[name] = [replace(row, goal="", met=None) for row in results[name]]
            print(table(results[name]), flush=True)
            # After each of them, so that a run that is ended leaves what it has found.
            write_results(given.folder / "results.json", on, results, quick=given.quick)
            write_plot(given.folder / "results.svg", results)


if __name__ == "__main__":
    main()
