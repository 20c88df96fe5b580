"""What does an upgrade with nothing to do cost? Whole processes, beside the templates of Alembic.

They take turns in one run. `multitenant` has one tenant: a schema on PostgreSQL, a file on SQLite.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from sqlalchemy import URL

from alembic_templates._catalog import find
from benchmarks.measure import Row, alembic, compare, interleave, progress, scratch_database, timed
from benchmarks.projects import render, write_revision

# For each driver, Alembic's template and ours that can take its place.
CASES = {
    "sqlite": ("Alembic's generic", ["sync", "shared", "multitenant"]),
    "sqlite+aiosqlite": ("Alembic's async", ["asyncio", "shared"]),
    "postgresql+psycopg": ("Alembic's generic", ["sync", "shared", "multitenant"]),
    "postgresql+asyncpg": ("Alembic's async", ["asyncio", "shared"]),
}
GOAL = 1.05


def run(server: URL, *, rounds: int) -> list[Row]:
    """Return a row for each template and driver; the server is one of PostgreSQL."""
    rows = []
    for driver, (stock, ours) in CASES.items():
        progress(f"start-up, {driver}")
        with tempfile.TemporaryDirectory() as name, scratch_database(server) as (database, _):
            url = database.set(drivername=driver)
            if url.get_backend_name() == "sqlite":
                url = URL.create(driver, database=f"{name}/public.db")
            ways = {}
            for way in [stock, *ours]:
                prepare(Path(name) / way, way, url)
                ways[way] = partial(timed, alembic(Path(name) / way, "upgrade", "head"))
            found = interleave(ways, rounds)
        case = f"upgrade head with nothing to do, {driver}"
        rows += [compare(found, case, way, stock, GOAL) for way in ours]
    return rows


def prepare(folder: Path, template: str, url: URL) -> None:
    """Render a template of ours or of Alembic, and bring the database to its only revision."""
    text = url.render_as_string(hide_password=False)
    if template == "multitenant":
        text = text.replace("/public.db", "/{tenant}.db")
    stock = template.partition("Alembic's ")[2]
    render(folder, stock or str(find(template).folder), sqlalchemy__url=text, tenants="public")
    write_revision(folder, ["r1"], 'op.create_table("t", sa.Column("id", sa.Integer))')
    # It also has Python compile the modules, which no later run does.
    alembic(folder, "upgrade", "head").run()
