"""An environment that meets an Alembic or a SQLAlchemy that is too old for it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import SUPPORTED, run
from conftest import render as rendered_by

pytestmark = pytest.mark.packaging

# What is installed, and what the sentence calls it.
OLD = {
    "alembic": ("alembic==1.13.3 sqlalchemy==2.0.43", "Alembic 1.13.3 and SQLAlchemy 2.0.43"),
    "sqlalchemy": ("alembic==1.16.5 sqlalchemy==1.4.54", "Alembic 1.16.5 and SQLAlchemy 1.4.54"),
    "both": ("alembic==1.9.4 sqlalchemy==1.4.54", "Alembic 1.9.4 and SQLAlchemy 1.4.54"),
}


@pytest.fixture(scope="session", params=OLD)
def old(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A Python with versions that are too old, and the words for them."""
    requirements, found = OLD[request.param]
    folder = tmp_path_factory.mktemp("old")
    venv.EnvBuilder(symlinks=True).create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(folder, *pip, "install", "-q", *requirements.split(), HOME=os.environ["HOME"])
    return python, found


@pytest.mark.parametrize("template", SUPPORTED)
def test_versions_that_are_too_old_are_named_first(
    old: tuple[Path, str], tmp_path: Path, template: str
) -> None:
    """Each command's first line is one sentence with the versions found and those needed."""
    python, found = old
    project = rendered_by(template, tmp_path / "project")
    project.set(sqlalchemy__url="sqlite:///{tenant}.db", tenants="one", target_metadata=None)
    sentence = f"Found {found}: upgrade to Alembic 1.16 and SQLAlchemy 2.0, or newer."
    for args in ("upgrade head", "upgrade head --sql", "current", "revision --autogenerate -m x"):
        done = subprocess.run(
            [python, "-m", "alembic", *args.split()],
            cwd=project.folder,
            env=project.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 255
        assert done.stdout.strip() == f"FAILED: {sentence}"
        assert done.stderr == ""
