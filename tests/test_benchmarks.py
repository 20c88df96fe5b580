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
from test_fleet_statements import BESIDE

MACHINE = {"CPU", "CPUs", "OS", "Python", "SQLite", "PostgreSQL", "alembic", "sqlalchemy"}
# What the rows of each benchmark are compared with.
AGAINST = {
    "startup": {"Alembic's generic", "Alembic's async"},
    "commands": {"alembic.command", "processes"},
    "fleet": {"the same SQL by psql", "alembic --help"},
}


def test_quick_run_writes_ratios_the_machine_and_statements(
    postgresql_server: URL, tmp_path: Path
) -> None:
    """One command runs every benchmark and writes the machine, and the rows of each.

    A fleet's rows have the statements of a tenant, which no machine changes: beside those of its
    revision psql sends SET, BEGIN and COMMIT.
    """
    server = postgresql_server.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--folder", tmp_path / "results"],
        cwd=ROOT,
        env={**os.environ, "TEST_POSTGRESQL_URL": server},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    results = json.loads((tmp_path / "results/results.json").read_text(encoding="utf-8"))
    assert results["quick"] is True
    assert set(results["machine"]) == MACHINE
    assert results["machine"]["alembic"] == alembic.__version__
    assert f"CPU: {results['machine']['CPU']}\n" in done.stdout
    assert set(results["benchmarks"]) == set(AGAINST)
    for name, rows in results["benchmarks"].items():
        assert {row["against"] for row in rows} == AGAINST[name]
        for row in rows:
            assert 0 < row["min"] <= row["median"] <= row["max"]
            assert row["way"] in done.stdout
    counts = [
        (row["statements"], row["against_statements"])
        for row in results["benchmarks"]["fleet"]
        if row["way"] == "multitenant"
    ]
    assert counts == [(BESIDE, 3)] * 2
    plot = ElementTree.parse(tmp_path / "results/results.svg")
    texts = {element.text for element in plot.iter() if element.tag.endswith("text")}
    assert texts >= {"sync / Alembic's generic", "Migrations / alembic.command"}
