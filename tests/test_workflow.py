"""The workflow that the public's pull requests run, which cannot run here, is read and checked."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml
from conftest import ROOT

TEXT = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
WORKFLOW: dict[str, Any] = yaml.safe_load(TEXT)
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_gate_waits_for_every_other_job() -> None:
    """One job says whether all is well, also where another was cancelled or skipped."""
    gate = WORKFLOW["jobs"]["gate"]
    others = set(WORKFLOW["jobs"]) - {"gate"}
    assert set(gate["needs"]) == others
    assert gate["if"] == "always()"
    (step,) = gate["steps"]
    expected = " ".join(["success"] * len(others))
    assert step["run"] == f"test '${{{{ join(needs.*.result, ' ') }}}}' = '{expected}'"


def test_workflow_may_read_and_no_more() -> None:
    """No job can write, and the token is not left beside the checkout."""
    assert WORKFLOW["permissions"] == {"contents": "read"}
    wider = [job for job in WORKFLOW["jobs"].values() if job.get("permissions")]
    assert wider == []
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_actions_are_pinned_by_commit() -> None:
    """Each action is named by a full commit, with its version in a comment."""
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in STEPS if "uses" in step)
    for line in TEXT.splitlines():
        if "@" in line and "uses" in line:
            assert re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)


def test_every_python_is_tried() -> None:
    """The Pythons are those that the contributing page names, oldest to newest."""
    tried = WORKFLOW["jobs"]["pythons"]["strategy"]["matrix"]["python"]
    names = ",".join(f"py{version.replace('.', '')}" for version in tried)
    assert f"tox -e {names} " in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_environments_of_tox_exist() -> None:
    """Each factor that a job gives tox stands in tox.ini."""
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    matrix = WORKFLOW["jobs"]["pythons"]["strategy"]["matrix"]
    factors = {each["versions"].removeprefix("py-") for each in matrix["include"]}
    assert {factor for factor in factors if f"    {factor}: " not in tox} == set()


@pytest.mark.parametrize("script", [step["run"] for step in STEPS if "run" in step])
def test_shell_steps_are_shell(script: str) -> None:
    """Each step can be read by bash, and names test files that exist."""
    filled = re.sub(r"\$\{\{.+?\}\}", "filled", script)
    done = subprocess.run(["bash", "-n", "-c", filled], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    named = re.findall(r"\btests/\S+\.py", script)
    assert [name for name in named if not (ROOT / name).is_file()] == []
