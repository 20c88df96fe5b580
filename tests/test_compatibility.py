"""The script behind the page on compatibility."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from sqlalchemy import make_url


def test_page_tells_what_passed_and_what_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of one real cell names its Python where it passed, and the reason where not."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import compatibility

    python = ".".join(platform.python_version_tuple()[:2])
    urls = {"sqlite": make_url("sqlite://"), "mariadb": make_url("mysql://127.0.0.1:1/")}
    trials = [("sync", "sqlite"), ("sync", "mysql+pymysql")]
    failed = compatibility.try_all(Path(sys.executable), urls, trials)
    assert set(failed) == {"sync mysql+pymysql"}
    versions = {"python": platform.python_version(), "sqlite": "3.40.1", "pymysql": "1.1.0"}
    cell = compatibility.Cell(python, "1.16.0", "2.0.30", "", failed, versions)
    lost = {"postgresql": "no server"}
    report = compatibility.Report("Linux", {"mariadb": "10.11.1"}, lost, trials, [cell])
    page = compatibility.page(report).splitlines()
    assert "PostgreSQL was not tried, it could not be reached: no server." in page
    assert page.count(f"| 1.16.0 | {python} |") == 1
    assert page.count(f"| 1.16.0 | not {python} |") == 1
    assert "| sqlite | of Python | sync | 1 of 1 |" in page
    assert "| mysql+pymysql | 1.1.0 | sync | 0 of 1 |" in page
    reason = failed["sync mysql+pymysql"]
    assert "sync on mysql+pymysql" in page[-1]
    assert page[-1].endswith(reason)
