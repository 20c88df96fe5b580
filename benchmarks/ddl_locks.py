"""What it costs an application that a migration waits for a table.

    python -m benchmarks.ddl_locks [--upgrades N] [--url URL]

Ten revisions change a table of PostgreSQL or MariaDB, while an application writes 50 rows a second
and reports read the table in transactions of 2 to 10 seconds. It is done with retries, without
retries, and without ddl_lock_timeout. Nothing is written to results.json.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter, sleep

from sqlalchemy import URL, Engine, make_url

from alembic_templates._catalog import find
from benchmarks.measure import alembic, postgresql, scratch_database
from benchmarks.projects import render, write_revision

WAYS: dict[str, dict[str, str]] = {
    "with retries": {"ddl_lock_timeout": "1", "ddl_lock_retries": "50"},
    "without retries": {"ddl_lock_timeout": "1", "ddl_lock_retries": "0"},
    "without the timeout": {},
}
NAMES = [f"r{number}" for number in range(10)]


class Application:
    """Five writers and a report, which note how long each write has taken."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waits: list[float] = []
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=each) for each in [self.report, *[self.write] * 5]]
        for thread in self.threads:
            thread.start()

    def write(self) -> None:
        """Write ten rows a second."""
        with self.engine.connect() as connection:
            while not self.ended.is_set():
                start = perf_counter()
                connection.exec_driver_sql("INSERT INTO busy (id) VALUES (1)")
                connection.commit()
                self.waits.append(perf_counter() - start)
                sleep(max(0.0, 0.1 - self.waits[-1]))

    def report(self) -> None:
        """Read the table in one transaction after the other, with a second in between."""
        with self.engine.connect() as connection:
            while not self.ended.is_set():
                connection.exec_driver_sql("SELECT count(*) FROM busy").all()
                self.ended.wait(random.uniform(2, 10))
                connection.rollback()
                self.ended.wait(1)

    def end(self) -> None:
        """Wait until all have ended."""
        self.ended.set()
        for thread in self.threads:
            thread.join()


def upgrade(server: URL, way: str) -> tuple[bool, float, list[float]]:
    """Upgrade beside the application; return whether it ended, the seconds and each write's wait."""
    with tempfile.TemporaryDirectory() as name, scratch_database(server) as (url, engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE busy (id INTEGER)")
        options = {"sqlalchemy__url": url.render_as_string(hide_password=False), **WAYS[way]}
        template = str(find("sync").folder)
        render(Path(name), template, transaction_per_migration="true", **options)
        for number, revision in enumerate(NAMES, start=1):
            body = f"op.add_column('busy', sa.Column('c_{revision}', sa.Integer))"
            write_revision(Path(name), NAMES[:number], body)
        application = Application(engine)
        sleep(0.5)
        start = perf_counter()
        has_ended = True
        try:
            alembic(Path(name), "upgrade", "head").run()
        except SystemExit:
            has_ended = False
        seconds = perf_counter() - start
        application.end()
    return has_ended, seconds, application.waits


def main() -> None:
    """Print what some upgrades have cost in each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrades", type=int, default=3)
    parser.add_argument("--url", type=make_url, help="a server, such as mysql+pymysql://root@host/")
    given = parser.parse_args()
    with nullcontext(given.url) if given.url else postgresql() as server:
        for way in WAYS:
            found = [upgrade(server, way) for _ in range(given.upgrades)]
            waits = [wait for _, _, each in found for wait in each]
            seconds = sum(each for _, each, _ in found)
            print(
                f"{way:20} {sum(each for each, _, _ in found)} of {given.upgrades} upgrades ended, "
                f"{seconds / given.upgrades:5.1f} seconds each, {len(waits) / seconds:4.0f} writes "
                f"a second, longest wait {max(waits):.2f} seconds",
                flush=True,
            )


if __name__ == "__main__":
    main()
