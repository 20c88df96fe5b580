"""Which tests plain `tox` leaves to `tox -e full`, and which ones one process of a run has to itself.

A test with several parameters is a matrix, and nearly everything that can break shows in one value of
one parameter. So plain `tox` keeps of each test the cells in which each value occurs, chosen so that
values occur about equally often; the others get the marker `full`. Where two values together are the
promise, each pair occurs: in the files of PAIRS. In those of IN_TURN each test keeps one database. Of
the tests in KEPT, whose cells take seconds each, the named ones stay. A test loses all of its cells in
ELSEWHERE alone, which promises nothing of an environment. The choice follows from the order of the
cells alone.

With `--dist loadgroup`, tests that share what takes long to make are run by the process that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations, count

import pytest

# The files in whose tests each pair of values occurs, and why.
PAIRS = {
    "test_connections.py": "what a caller's transaction and settings become, on each database",
    "test_lock.py": "who waits for whom, on each database",
    "test_pooler.py": "the guard of the session, in each template and mode of a pooler",
    "test_sqlite.py": "what is undone and kept, by each way to have transactions",
}
# The files of which a test stays with one database, the next test with the next, and why.
IN_TURN = {"test_replaceable.py": "it is a module of the scaffold, and its tests do much the same"}
DATABASES = {"sqlite", "postgresql", "mariadb"}
# The tests of which a few cells are enough, and the ids of those.
KEPT = {
    "test_chooser.py::test_what_is_shown_works": {
        "asyncio-postgresql+asyncpg",
        "multitenant-postgresql+psycopg",
    },
    "test_command.py::test_commands_at_once_leave_whole_templates": {"0"},
    "test_command.py::test_old_alembic_is_refused_and_can_be_cleared": {"alembic"},
    "test_command.py::test_killed_command_leaves_the_old_or_the_new_template": {"replacement"},
    "test_docs.py::test_what_a_page_says_to_run_works": {
        "docs/fleets.md",
        "docs/index.md",
        "docs/startup.md",
        "docs/templates/asyncio.md",
    },
    "test_fleet_names.py::test_hundreds_of_hostile_names": {"postgresql-200", "mariadb-200"},
    "test_lines.py::test_commands_of_contributing_select_tests": {
        ".venv/bin/pytest tests/test_lock.py -k sqlite"
    },
    # Each template with each database, by a sync driver if it has one, and each driver.
    "test_matrix.py::test_round": {
        "asyncio-mysql+aiomysql",
        "asyncio-postgresql+psycopg_async",
        "asyncio-sqlite+aiosqlite",
        "multitenant-mysql+pymysql",
        "multitenant-postgresql+asyncpg",
        "multitenant-postgresql+psycopg",
        "multitenant-sqlite",
        "shared-mysql+asyncmy",
        "shared-mysql+pymysql",
        "shared-postgresql+psycopg2",
        "shared-sqlite",
        "sync-mysql+mysqldb",
        "sync-mysql+pymysql",
        "sync-postgresql+psycopg",
        "sync-sqlite",
    },
    "test_old_versions.py::test_versions_that_are_too_old_are_named_first": {
        "alembic-multitenant",
        "sqlalchemy-asyncio",
    },
    "test_packaging.py::test_new_makes_the_same_project_however_it_is_installed": {"wheel"},
    "test_packaging.py::test_templates_are_found_however_they_are_installed": {"wheel"},
    "test_pooler.py::test_fleet_in_ten_runs": {"postgresql+psycopg"},
    "test_pytest_alembic.py::test_built_in_and_experimental_tests_pass": {
        "asyncio-postgresql+asyncpg",
        "multitenant-postgresql+psycopg",
    },
    "test_readme.py::test_first_steps_work_as_they_are_pasted": {"sqlite"},
    "test_scaffold.py::test_change_of_a_view_and_a_table": {"multitenant-mariadb"},
    "test_scaffold.py::test_project_passes_its_own_tests": {
        "asyncio-sqlite",
        "multitenant-mariadb",
    },
    "test_scaffold.py::test_project_passes_the_type_checker": {
        "asyncio-postgresql",
        "multitenant-postgresql",
    },
}
# Each database keeps a sync and an async driver; cells of the others are in `full`.
REPEATED = ("psycopg_async", "aiomysql")
# Tests that are in `full` as a whole, and why plain `tox` does without them.
ELSEWHERE = {
    "test_scaffold.py::test_readme_commands": (
        "it installs all that a project is developed with; other tests do the same with the tests' Python"
    ),
    "test_chooser.py::test_everything_with_nothing_but_what_is_shown": (
        "it downloads what test_readme.py does, and the commands that follow are tried by another test"
    ),
    "test_fleet_restart.py::test_restarts_at_random_moments": (
        "the other tests of the file restart the server at moments that are chosen"
    ),
    "test_scaffold.py::test_wheel_brings_its_migrations": (
        "it downloads what builds a project; test_packaging.py installs a wheel and works with it"
    ),
    "test_packaging.py::test_documentation_builds_from_the_sdist": (
        "it installs all that the documentation is built with; test_docs.py builds the same pages"
    ),
    "test_benchmarks.py": "it measures for a minute, and promises nothing of an environment",
}

# Fixtures that take seconds to make and that several tests use.
SHARED = ("browser", "machine", "site", "old", "type_cache", "counted")


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
    turn = count()
    for item in items:
        name = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        if name in ELSEWHERE or item.path.name in ELSEWHERE:
            item.add_marker(pytest.mark.full)
        elif hasattr(item, "callspec"):
            assert isinstance(item, pytest.Function)
            matrices.setdefault(name, []).append(item)
    for name, cells in matrices.items():
        if name in KEPT:
            more = [cell for cell in cells if cell.callspec.id not in KEPT[name]]
        else:
            few = [cell for cell in cells if not any(each in cell.name for each in REPEATED)]
            strength = 2 if cells[0].path.name in PAIRS else 1
            more = [cell for cell in cells if cell not in few] + left_out(few, strength)
            if cells[0].path.name in IN_TURN and {cell.callspec.id for cell in cells} <= DATABASES:
                kept = cells[next(turn) % len(cells)]
                more = [cell for cell in cells if cell is not kept]
        for cell in more if len(more) < len(cells) else []:
            cell.add_marker(pytest.mark.full)


def left_out(cells: list[pytest.Function], strength: int) -> list[pytest.Function]:
    """Return the cells without which each combination of so many values still has one.

    Cells with the most new combinations are taken first; of these, the one whose values have been
    taken least; of these, the first.
    """
    values = [{key: repr(value) for key, value in cell.callspec.params.items()} for cell in cells]
    met = [set(combinations(sorted(each.items()), min(strength, len(each)))) for each in values]
    missing = set().union(*met)
    left = dict(enumerate(met))
    taken: Counter[tuple[str, str]] = Counter()

    def worth(index: int) -> tuple[int, int]:
        return len(left[index] & missing), -sum(taken[each] for each in values[index].items())

    while missing:
        best = max(left, key=worth)
        missing -= left.pop(best)
        taken.update(values[best].items())
    return [cells[index] for index in left]
