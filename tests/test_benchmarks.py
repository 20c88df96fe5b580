"""The benchmarks, in a run too small to judge by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import alembic
import pytest
from conftest import ROOT
from sqlalchemy import URL

# Those of the rows that each benchmark has whatever is installed, by what they are compared with.
AGAINST = {
    "startup": {"Alembic's generic", "Alembic's async"},
    "commands": {"alembic.command", "processes"},
    "fleet": {"the same SQL by psql", "alembic --help"},
}


def test_quick_run_writes_ratios_the_machine_and_a_plot(
    postgresql_server: URL, tmp_path: Path
) -> None:
    """One command runs every benchmark and writes each's rows, the machine and the plot."""
    server = postgresql_server.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--folder", tmp_path / "results"],
        cwd=ROOT,
        env={**os.environ, "TEST_POSTGRESQL_URL": server},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    results = json.loads((tmp_path / "results/results.json").read_text(encoding="utf-8"))
    assert results["quick"] is True
    assert set(results["machine"]) >= {"CPU", "CPUs", "OS", "Python", "SQLite", "PostgreSQL"}
    assert results["machine"]["alembic"] == alembic.__version__
    assert f"CPU: {results['machine']['CPU']}\n" in done.stdout
    assert set(results["benchmarks"]) == set(AGAINST)
    for name, rows in results["benchmarks"].items():
        assert {row["against"] for row in rows} >= AGAINST[name]
        for row in rows:
            assert 0 < row["min"] <= row["median"] <= row["max"]
            assert row["way"] in done.stdout
    plot = ElementTree.parse(tmp_path / "results/results.svg")
    texts = {element.text for element in plot.iter() if element.tag.endswith("text")}
    assert texts >= {*AGAINST, "sync / Alembic's generic", "Migrations / alembic.command"}
