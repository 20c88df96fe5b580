"""What plain `tox` leaves out: never a test, and the rest of each matrix is enough."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import MATRIX, ROOT, SUPPORTED, kind_of
from selection import ELSEWHERE, IN_TURN, KEPT, PAIRS, REPEATED

# Prints the file, the test, the id, the values and whether plain tox leaves it out, of each cell.
COLLECT = """
import json, pytest, sys

class Printer:
    def pytest_collection_finish(self, session):
        for item in session.items:
            cell = getattr(item, "callspec", None)
            values = {key: repr(value) for key, value in cell.params.items()} if cell else {}
            left = item.get_closest_marker("full") is not None
            name = getattr(item, "originalname", item.name)
            print("CELL", json.dumps([item.path.name, name, cell and cell.id, values, left]))

sys.exit(pytest.main(["--collect-only", "-qq", "tests"], plugins=[Printer()]))
"""


class Cell(NamedTuple):
    """A test with one set of values."""

    file: str
    test: str
    id: str | None
    values: dict[str, str]
    left: bool


@cache
def matrices() -> dict[str, list[Cell]]:
    """Return the cells of each test, by its file and name."""
    command = [sys.executable, "-c", COLLECT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = defaultdict(list)
    for line in done.stdout.splitlines():
        if line.startswith("CELL "):
            cell = Cell(*json.loads(line.removeprefix("CELL ")))
            found[f"{cell.file}::{cell.test}"].append(cell)
    return found


def met(cells: list[Cell], strength: int) -> set[tuple[tuple[str, str], ...]]:
    """Return each combination of so many values that a cell has."""
    return {
        values
        for cell in cells
        for values in combinations(sorted(cell.values.items()), min(strength, len(cell.values)))
    }


@pytest.mark.xdist_group("matrices")
def test_no_test_is_left_out() -> None:
    """Each test has a cell in plain `tox`; what the tables name exists, and leaves something out."""
    gone = [name for name, cells in matrices().items() if all(cell.left for cell in cells)]
    assert {name if name in ELSEWHERE else name.partition("::")[0] for name in gone} == {*ELSEWHERE}
    assert {cell.file for cells in matrices().values() for cell in cells} >= {*PAIRS, *IN_TURN}
    for name, ids in KEPT.items():
        assert {cell.id for cell in matrices()[name] if not cell.left} == ids
        assert any(cell.left for cell in matrices()[name])


@pytest.mark.xdist_group("matrices")
def test_each_value_of_a_matrix_stays_in_plain_tox() -> None:
    """What is left out has no value, or pair of values, that plain `tox` has not."""
    missing = []
    for name, cells in matrices().items():
        few = [cell for cell in cells if not any(each in (cell.id or "") for each in REPEATED)]
        if name not in {*KEPT, *ELSEWHERE} and few and few[0].file not in {*ELSEWHERE, *IN_TURN}:
            strength = 2 if few[0].file in PAIRS else 1
            if met(few, strength) != met([cell for cell in few if not cell.left], strength):
                missing.append(name)
    assert missing == []


def test_each_template_and_each_driver_does_the_round_in_plain_tox() -> None:
    """Of the round of commands each template with each database stays, and each driver."""
    rounds = [cell.partition("-")[::2] for cell in KEPT["test_matrix.py::test_round"]]
    assert {(template, kind_of(driver)) for template, driver in rounds} == {
        (template, kind_of(driver)) for template, drivers in SUPPORTED.items() for driver in drivers
    }
    assert {driver for _, driver in rounds} == {each for some in MATRIX.values() for each in some}


def test_what_takes_long_to_make_is_made_by_one_process(
    type_cache: Path, request: pytest.FixtureRequest
) -> None:
    """With `--dist loadgroup`, which reads the group from the name, each test has one that shares."""
    assert type_cache.is_dir()
    in_groups = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@type_cache") == in_groups
