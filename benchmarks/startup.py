"""What does an upgrade with nothing to do cost? Whole processes, beside the templates of Alembic.

They take turns in one run. `multitenant` has one tenant: a schema on PostgreSQL, a file on SQLite.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from sqlalchemy import URL

from alembic_templates._catalog import find
from benchmarks.measure import Row, alembic, interleave, progress, scratch_database, timed
from benchmarks.projects import render, write_revision

# For each driver, Alembic's template and ours that can take its place.
CASES = {
    "sqlite": ("generic", ["sync", "shared", "multitenant"]),
    "sqlite+aiosqlite": ("async", ["asyncio", "shared"]),
    "postgresql+psycopg": ("generic", ["sync", "shared", "multitenant"]),
    "postgresql+asyncpg": ("async", ["asyncio", "shared"]),
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
            for template in [stock, *ours]:
                prepare(Path(name) / template, template, url)
                process = alembic(Path(name) / template, "upgrade", "head")
                ways[template] = partial(timed, process)
            seconds = interleave(ways, rounds)
        case = f"upgrade head with nothing to do, {driver}"
        for template in ours:
            row = Row(case, template, f"Alembic's {stock}", seconds[template], seconds[stock])
            rows.append(row.with_goal(GOAL))
    return rows


def prepare(folder: Path, template: str, url: URL) -> None:
    """Render a template of ours or of Alembic, and bring the database to its only revision."""
    text = url.render_as_string(hide_password=False)
    if template == "multitenant":
        text = text.replace("/public.db", "/{tenant}.db")
    source = template if template in {"generic", "async"} else str(find(template).folder)
    render(folder, source, sqlalchemy__url=text, tenants="public")
    write_revision(folder, ["r1"], 'op.create_table("t", sa.Column("id", sa.Integer))')
    # It also has Python compile the modules, which no later run does.
    alembic(folder, "upgrade", "head").run()
