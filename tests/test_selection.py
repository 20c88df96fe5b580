"""What plain `tox` leaves out: never a test, and the rest of each matrix is enough."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

from conftest import ROOT
from selection import ELSEWHERE, KEPT, SAMPLED


@cache
def collected(expression: str) -> set[str]:
    """Return the ids of the tests that an expression of markers selects."""
    files = {f"tests/{name.partition('::')[0]}" for name in (*SAMPLED, *KEPT, *ELSEWHERE)}
    args = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", expression]
    done = subprocess.run(
        [*args, *sorted(files)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line}


def test_every_matrix_keeps_cells_and_leaves_some_out() -> None:
    """Each test in the tables exists, and some of it is in plain `tox` and some in `full`."""
    plain, full = ({name.partition("[")[0] for name in collected(m)} for m in ("not full", "full"))
    assert {*SAMPLED, *KEPT} <= plain & full
    assert set(ELSEWHERE) == {name.partition("::")[0] for name in full - plain}


def test_each_value_of_a_matrix_stays_in_plain_tox() -> None:
    """The cells that are left out have no value, or pair of values, that the others have not."""
    name = "test_autogenerate_rules.py::test_views_are_left_alone"
    plain, full = collected("not full"), collected("full")
    ids = [cell.partition("[")[2].rstrip("]").split("-") for cell in plain if name in cell]
    pairs = {(i, j, cell[i], cell[j]) for cell in ids for i in range(3) for j in range(i)}
    left = [cell.partition("[")[2].rstrip("]").split("-") for cell in full if name in cell]
    assert left
    assert {(i, j, cell[i], cell[j]) for cell in left for i in range(3) for j in range(i)} <= pairs
