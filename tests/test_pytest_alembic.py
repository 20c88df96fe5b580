"""pytest-alembic, with which people test migrations, passes against every template."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import DRIVERS, Database, as_fleet, kind_of, render
from processes import run_python

BUILT_IN = {
    "single_head_revision",
    "upgrade",
    "model_definitions_match_ddl",
    "up_down_consistency",
}
EXPERIMENTAL = {
    "sqlite": {"all_models_register_on_metadata", "downgrade_leaves_no_trace"},
    # The other one gives the URL to the ini parser as it is, and a socket's path has a % in it.
    "postgresql": {"downgrade_leaves_no_trace"},
    # The other one rolls DDL back to a savepoint, which MariaDB does not.
    "mariadb": {"all_models_register_on_metadata"},
}

CONFTEST = """
import pytest
from sqlalchemy import MetaData, NullPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine


@pytest.fixture
def alembic_engine():
    with create_engine({sync_url!r}, poolclass=NullPool).begin() as connection:
        tables = MetaData()
        tables.reflect(connection)
        tables.drop_all(connection)
    return {make}({url!r}{pool})
"""

PAIRS = [
    pytest.param(template, driver, id=f"{template}-{driver}")
    for template in ("sync", "asyncio", "shared", "multitenant")
    for drivers in DRIVERS.values()
    for driver in drivers
    # `sync` refuses an async engine, and the sync engine of an async driver does not exist.
    if template != "sync" or driver == drivers[0]
]


@pytest.mark.parametrize(("template", "driver"), PAIRS)
def test_built_in_and_experimental_tests_pass(
    template: str, driver: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """All tests of pytest-alembic pass, with an engine of each driver."""
    kind = kind_of(driver)
    database: Database = request.getfixturevalue(kind)
    project = render(template, tmp_path / "project")
    sync_driver = DRIVERS[kind][1] if template == "asyncio" else database.url.drivername
    sync_url = database.url_for(sync_driver, template)
    if template == "multitenant":
        as_fleet(project, database)
    project.alembic("-x", f"url={sync_url}", "revision", "--autogenerate", "-m", "one")
    project.revision(
        "second",
        "op.add_column('author', sa.Column('born', sa.Integer))",
        "with op.batch_alter_table('author') as author:\n    author.drop_column('born')",
        down=next(project.folder.glob("migrations/versions/*.py")).name.partition("_")[0],
    )
    models = project.folder / "models.py"
    models.write_text(
        models.read_text().replace("index=True),", 'index=True),\n    Column("born", Integer),', 1)
    )
    is_async = driver not in {drivers[0] for drivers in DRIVERS.values()}
    (project.folder / "tests").mkdir()
    (project.folder / "tests" / "conftest.py").write_text(
        CONFTEST.format(
            sync_url=database.text,
            make="create_async_engine" if is_async else "create_engine",
            url=database.url_for(driver),
            pool="" if is_async else ", poolclass=NullPool",
        )
    )
    (project.folder / "pytest.ini").write_text(
        "[pytest]\npytest_alembic_include_experimental =\n"
        + "".join(f"    {name}\n" for name in EXPERIMENTAL[kind])
    )
    command = ["-m", "pytest", "--test-alembic", "-v", "-p", "no:cacheprovider"]
    done = run_python(command, project.folder, project.env)
    passed = {
        line.partition("::test_")[2].partition(" ")[0]
        for line in done.stdout.splitlines()
        if " PASSED" in line
    }
    assert passed == BUILT_IN | EXPERIMENTAL[kind], done.stdout + done.stderr
    assert done.returncode == 0
