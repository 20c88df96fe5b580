"""How many statements a tenant costs beside those of its revisions, by the server's own log."""

from __future__ import annotations

import pytest
import test_fleet_restart
from conftest import Project
from test_fleet_restart import Server

server = test_fleet_restart.server

# BEGIN, the reset of the session, the lock, the version, the release of the lock, and COMMIT.
BESIDE = 6


def statements(server: Server) -> int:
    """Return how many statements the server has logged so far."""
    log = (server.folder / "log").read_text(encoding="utf-8")
    return log.count("LOG:  statement: ") + log.count("LOG:  execute ")


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, BESIDE + 2),  # a revision sends its own statement, and its version
        ({"replay": "true"}, BESIDE + 1),  # both in one message
        # COMMIT, BEGIN, and the check of the lock; then BEGIN and COMMIT of the release
        ({"ddl_lock_timeout": "5"}, BESIDE + 2 + 5),
        ({"transaction_per_migration": "true"}, BESIDE + 2 + 2),  # BEGIN and COMMIT of the release
    ],
    ids=["plain", "replay", "ddl_lock_timeout", "transaction_per_migration"],
)
def test_statements_of_a_tenant(
    server: Server, fleet_project: Project, options: dict[str, str], count: int
) -> None:
    """A run on five tenants sends exactly so many statements more than one on three."""
    database = server.database()
    tenants = [f"t{number}" for number in range(8)]
    database.run(*(f"CREATE SCHEMA {tenant}" for tenant in tenants))
    fleet_project.set(sqlalchemy__url=database.text, tenants=" ".join(tenants), **options)
    fleet_project.revision("a1", "op.create_table('own', sa.Column('id', sa.Integer))")
    fleet_project.alembic("upgrade", "head")
    fleet_project.revision("b2", "op.add_column('own', sa.Column('more', sa.Integer))", down="a1")
    database.run("ALTER DATABASE postgres SET log_statement = 'all'")
    found = []
    for some in (tenants[:3], tenants[3:]):
        before = statements(server)
        fleet_project.alembic("-x", f"tenant={','.join(some)}", "upgrade", "head")
        found.append(statements(server) - before)
    assert found[1] - found[0] == 2 * count
    versions = [
        database.rows(f"SELECT version_num FROM {each}.alembic_version") for each in tenants
    ]
    assert versions == [[("b2",)]] * 8
