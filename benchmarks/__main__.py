"""Run the benchmarks, print their ratios, and write results.json and results.svg.

    tox -e bench
    tox -e bench -- --quick --folder /tmp/results
    tox -e bench -- --only startup commands

Each ratio is against an alternative that took turns with it in the same run. PostgreSQL is that of
TEST_POSTGRESQL_URL, else one is started from the PyPI wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

from benchmarks import commands, fleet, startup
from benchmarks.measure import Row, machine, postgresql, say
from benchmarks.plot import write_plot

NAMES = ["startup", "commands", "fleet"]


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes: to see that it works, not to judge by")
    add("--folder", type=Path, default=Path(__file__).parent, help="of the results (%(default)s)")
    add("--only", nargs="+", choices=NAMES, default=NAMES, help="names of them (all)")
    add("--rounds", type=int, help="how often each is run (startup 20, the others 3)")
    add("--tenants", type=int, default=500, help="of the fleet (%(default)s)")
    add("--idle-tenants", type=int, default=5000, help="those with nothing to do (%(default)s)")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="of the fleet (one for each CPU)")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.tenants, given.idle_tenants, given.jobs = 1, 2, 2, 1
    return given


def main() -> None:
    """Run what is asked for, and print and write what was found."""
    given = arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The benchmark was ended."))
    with postgresql() as server:
        found = {"machine": machine(server), "quick": given.quick, "benchmarks": {}}
        print("\n".join(f"{name}: {value}" for name, value in found["machine"].items()), flush=True)
        files, count = ([3], 3) if given.quick else ([20, 200, 1000], 20)
        sizes = {name: getattr(given, name) for name in ("tenants", "idle_tenants", "jobs")}
        rounds = given.rounds or 3
        every: dict[str, Callable[[], list[Row]]] = {
            "startup": partial(startup.run, server, rounds=given.rounds or 20),
            "commands": partial(commands.run, files=files, commands=count, rounds=rounds),
            "fleet": partial(fleet.run, server, rounds=rounds, **sizes),
        }
        for name in given.only:
            rows = found["benchmarks"][name] = every[name]()
            for row in rows:
                say(row)
            # After each of them, so that a run that is ended leaves what it has found.
            text = json.dumps(found, indent=1)
            (given.folder / "results.json").write_text(f"{text}\n", encoding="utf-8")
            write_plot(given.folder / "results.svg", [*chain(*found["benchmarks"].values())])


if __name__ == "__main__":
    main()
