"""Time `alembic upgrade head` with nothing to do, against the templates that Alembic ships.

Whole processes, from the start of Python to its end, which take turns. `multitenant` has one tenant.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine

from alembic_templates._catalog import find
from benchmarks.measure import (
    Row,
    alembic,
    interleave,
    progress,
    scratch_database,
    timed,
    with_goal,
)
from benchmarks.projects import render, write_revision

# For each driver, Alembic's template and ours that can take its place.
CASES = {
    "sqlite": ("generic", ["sync", "shared", "multitenant"]),
    "sqlite+aiosqlite": ("async", ["asyncio", "shared"]),
    "postgresql+psycopg": ("generic", ["sync", "shared", "multitenant"]),
    "postgresql+asyncpg": ("async", ["asyncio", "shared"]),
}
GOAL = 1.05
# The only tenant of a fleet: a schema on PostgreSQL, a file on SQLite.
TENANT = "public"


def run(server: URL, *, rounds: int) -> list[Row]:
    """Return a row for each template and driver; the server is one of PostgreSQL."""
    rows = []
    for driver, (stock, ours) in CASES.items():
        progress(f"start-up, {driver}")
        with tempfile.TemporaryDirectory() as name, scratch_database(server) as (database, _):
            folder = Path(name)
            url = database.set(drivername=driver)
            if url.get_backend_name() == "sqlite":
                url = URL.create(driver, database=str(folder / f"{TENANT}.db"))
            for template in [stock, *ours]:
                prepare(folder / template, template, url)
            ways = {
                template: partial(timed, [alembic(folder / template, "upgrade", "head")])
                for template in [stock, *ours]
            }
            seconds = interleave(ways, rounds)
        for template in ours:
            case = f"upgrade head with nothing to do, {driver}"
            against = f"Alembic's {stock}"
            row = Row(case, template, against, seconds[template], seconds[stock])
            rows.append(with_goal(row, "<", GOAL))
    return rows


def prepare(folder: Path, template: str, url: URL) -> None:
    """Render a template of ours or of Alembic, and bring the database to its only revision."""
    text = url.render_as_string(hide_password=False)
    if template == "multitenant" and url.get_backend_name() == "sqlite":
        text = text.replace(f"{TENANT}.db", "{tenant}.db")
        Path(str(url.database)).touch()
    source = template if template in {"generic", "async"} else str(find(template).folder)
    render(folder, source, sqlalchemy__url=text, tenants=TENANT)
    write_revision(folder, ["r1"], 'op.create_table("t", sa.Column("id", sa.Integer))')
    # It also has Python compile the modules, which no later run does.
    alembic(folder, "upgrade", "head").run()
    sync = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}[url.get_backend_name()]
    with create_engine(url.set(drivername=sync), poolclass=NullPool).connect() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if version != "r1":
        raise SystemExit(f"{template} has left the database at {version!r}: expected 'r1'.")
