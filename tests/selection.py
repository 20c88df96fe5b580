"""Which tests plain `tox` leaves to `tox -e full`, and which ones one process of a run has to itself.

A test whose parameters do not depend on each other is a matrix, and nearly everything that can break
shows in one value or in a pair of values. Of the tests in SAMPLED the cells that have each pair
first (each value, where that is enough) stay in plain `tox`; the others get the marker `full`. So do
all but the named cells of the tests in KEPT, each of which builds, installs or checks a project. A
test loses all of its cells in ELSEWHERE alone, which promises nothing of an environment. The choice
follows from the order of the cells alone.

With `--dist loadgroup`, tests that share what takes long to make are run by the process that made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import pytest

# The tests of which a selection is enough, and how many values at a time are to meet.
SAMPLED = {
    "test_autogenerate_rules.py::test_nothing_changed_writes_nothing": 1,
    "test_autogenerate_rules.py::test_views_are_left_alone": 2,
    "test_autogenerate_rules.py::test_an_unknown_rule_is_refused": 1,
    "test_autogenerate_rules.py::test_columns_stand_in_order": 1,
    "test_connections.py::test_own_engine_leaves_nothing_open": 1,
    "test_faults.py::test_each_step_fails_in_turn": 2,
    "test_fleet_workers.py::test_second_signal_rolls_back": 1,
    "test_fleet_workers.py::test_signal_ends_the_run_after_the_tenants_in_flight": 1,
    "test_passwords.py::test_no_part_of_a_password_is_shown": 1,
    "test_pytest_alembic.py::test_built_in_and_experimental_tests_pass": 1,
    "test_try.py::test_try_passes_on_each_driver": 1,
    "test_try.py::test_interrupted_in_a_statement": 1,
    "test_try.py::test_interrupted_while_it_makes_or_removes_its_schema": 1,
    "test_try.py::test_interrupted_while_the_server_is_silent": 1,
}
# The tests of which a few cells are enough, and the ids of those.
KEPT = {
    "test_chooser.py::test_what_is_shown_works": {
        "asyncio-postgresql+asyncpg",
        "multitenant-postgresql+psycopg",
        "shared-mysql+pymysql",
        "sync-sqlite",
    },
    "test_command.py::test_old_alembic_is_refused_and_can_be_cleared": {"alembic", "sqlalchemy"},
    "test_command.py::test_killed_command_leaves_the_old_or_the_new_template": {"replacement"},
    "test_old_versions.py::test_versions_that_are_too_old_are_named_first": {
        "alembic-multitenant",
        "alembic-sync",
        "sqlalchemy-asyncio",
        "sqlalchemy-shared",
    },
    "test_packaging.py::test_new_makes_the_same_project_however_it_is_installed": {"wheel"},
    "test_scaffold.py::test_change_of_a_view_and_a_table": {"multitenant-mariadb"},
    "test_scaffold.py::test_project_passes_its_own_tests": {
        "asyncio-sqlite",
        "multitenant-mariadb",
        "shared-mariadb",
        "sync-postgresql",
    },
    "test_scaffold.py::test_project_passes_the_type_checker": {
        "asyncio-postgresql",
        "multitenant-postgresql",
        "shared-sqlite",
        "sync-mariadb",
    },
    "test_scaffold.py::test_readme_commands": {"multitenant-postgresql"},
    "test_scaffold.py::test_wheel_brings_its_migrations": {"asyncio-postgresql"},
}
# Each database keeps a sync and an async driver; cells of the others are in `full`, but for those of
# tests/test_matrix.py, which does the whole round with every driver.
REPEATED = ("psycopg_async", "aiomysql")
# Tests that are in `full` as a whole, and why plain `tox` does without them.
ELSEWHERE = {
    "test_benchmarks.py": "it measures for a minute, and promises nothing of an environment",
}

# Fixtures that take seconds to make and that several tests use.
SHARED = ("browser", "machine", "site", "old", "type_cache")


def arrange(items: list[pytest.Item]) -> None:
    """Let one process run what shares a fixture, and let it begin with that, since it takes longest."""
    for item in items:
        for name in SHARED:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("browser" if name == "machine" else name))
                break
    items.sort(key=lambda item: not any(item.iter_markers("xdist_group")))


def select(items: Iterable[pytest.Item]) -> None:
    """Mark the tests that plain `tox` leaves out."""
    matrices: dict[str, list[pytest.Function]] = {}
    for item in items:
        name = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        if name in ELSEWHERE or item.path.name in ELSEWHERE:
            item.add_marker(pytest.mark.full)
        elif name in {*SAMPLED, *KEPT} and isinstance(item, pytest.Function):
            matrices.setdefault(name, []).append(item)
        elif item.path.name != "test_matrix.py" and any(each in item.name for each in REPEATED):
            item.add_marker(pytest.mark.full)
    for name, cells in matrices.items():
        if name in SAMPLED:
            more = left_out(cells, SAMPLED[name])
        else:
            more = [cell for cell in cells if cell.callspec.id not in KEPT[name]]
        for cell in more if len(more) < len(cells) else []:
            cell.add_marker(pytest.mark.full)


def left_out(cells: list[pytest.Function], strength: int) -> list[pytest.Function]:
    """Return the cells without which each combination of so many values still has one.

    Cells are taken as they come, those with the most new combinations first.
    """
    values = [{key: repr(value) for key, value in cell.callspec.params.items()} for cell in cells]
    met = [set(combinations(sorted(each.items()), min(strength, len(each)))) for each in values]
    missing = set().union(*met)
    left = dict(enumerate(met))
    while missing:
        best = max(left, key=lambda index: len(left[index] & missing))
        missing -= left.pop(best)
    return [cells[index] for index in left]
