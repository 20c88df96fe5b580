"""What it costs an application that a migration waits for a table.

    python -m benchmarks.ddl_locks [--upgrades N] [--seconds LOW HIGH] [--url URL]

Ten revisions change a table of PostgreSQL or MariaDB, while an application writes 50 rows a second
and a report reads the table in transactions of some seconds. It is done with retries, without
retries, and without ddl_lock_timeout. Nothing is written to results.json.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, sleep

from sqlalchemy import URL, Engine, create_engine, make_url

from alembic_templates._catalog import templates_folder
from benchmarks.measure import alembic, postgresql, scratch_database
from benchmarks.projects import render, write_revision

WAYS: dict[str, dict[str, str]] = {
    "with retries": {"ddl_lock_timeout": "1", "ddl_lock_retries": "50"},
    "without retries": {"ddl_lock_timeout": "1", "ddl_lock_retries": "0"},
    "without the timeout": {},
}
REVISIONS = [f"r{number}" for number in range(10)]


class Application:
    """Writers and a report, which note how long each write has taken."""

    def __init__(self, engine: Engine, seconds: tuple[float, float]) -> None:
        self.engine = engine
        self.seconds = seconds
        self.waits: list[float] = []
        self.ended = threading.Event()

    def write(self) -> None:
        """Write ten rows a second."""
        with self.engine.connect() as connection:
            while not self.ended.is_set():
                start = perf_counter()
                connection.exec_driver_sql("INSERT INTO busy (id) VALUES (1)")
                connection.commit()
                self.waits.append(perf_counter() - start)
                sleep(max(0.0, 0.1 - (perf_counter() - start)))

    def report(self) -> None:
        """Read the table in one transaction after the other, with a second in between."""
        with self.engine.connect() as connection:
            while not self.ended.is_set():
                connection.exec_driver_sql("SELECT count(*) FROM busy").all()
                self.ended.wait(random.uniform(*self.seconds))
                connection.rollback()
                self.ended.wait(1)


def measured(
    folder: Path, engine: Engine, seconds: tuple[float, float]
) -> tuple[bool, list[float]]:
    """Upgrade beside the application; return whether it ended, the seconds and each write's wait."""
    application = Application(engine, seconds)
    works = [application.report, *[application.write] * 5]
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    sleep(0.5)
    start = perf_counter()
    has_ended = True
    try:
        alembic(folder, "upgrade", "head").run()
    except SystemExit:
        has_ended = False
    took = perf_counter() - start
    application.ended.set()
    for thread in threads:
        thread.join()
    return has_ended, [took, *application.waits]


def upgrade(url: URL, engine: Engine, way: str, given: argparse.Namespace) -> None:
    """Print what some upgrades in one way have cost."""
    ended, took, waits = 0, 0.0, [0.0]
    for _ in range(given.upgrades):
        with tempfile.TemporaryDirectory() as place, engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS busy")
            connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
            connection.exec_driver_sql("CREATE TABLE busy (id INTEGER)")
            connection.commit()
            folder = Path(place)
            text = url.render_as_string(hide_password=False)
            options = {"sqlalchemy__url": text, "transaction_per_migration": "true"}
            render(folder, str(templates_folder() / "sync"), **options, **WAYS[way])
            body = "op.add_column('busy', sa.Column(f'c_{revision}', sa.Integer))"
            for number in range(10):
                write_revision(folder, REVISIONS[: number + 1], body)
            has_ended, (seconds, *each) = measured(folder, engine, tuple(given.seconds))
            ended += has_ended
            took += seconds
            waits += each
    print(
        f"{way:20} {ended} of {given.upgrades} upgrades ended, {took / given.upgrades:5.1f} seconds "
        f"each, {len(waits) / took:4.0f} writes a second, longest wait {max(waits):.2f} seconds",
        flush=True,
    )


def main() -> None:
    """Run the upgrades in each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrades", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs=2, default=(2.0, 10.0))
    parser.add_argument("--url", type=make_url, help="a server, such as mysql+pymysql://root@host/")
    given = parser.parse_args()
    with ExitStack() as stack:
        server = given.url or stack.enter_context(postgresql())
        url, _ = stack.enter_context(scratch_database(server))
        engine = create_engine(url, pool_size=10)
        for way in WAYS:
            upgrade(url, engine, way, given)
        engine.dispose()


if __name__ == "__main__":
    main()
