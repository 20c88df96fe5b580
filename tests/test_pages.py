"""The files of docs/code that need more than a page's own commands: servers, other frameworks."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Database, Project, render, run

CODE = ROOT / "docs" / "code"


@pytest.fixture
def with_book(tmp_path: Path) -> Project:
    """An environment whose models are those of the documentation's first page."""
    project = render("shared", tmp_path / "project")
    shutil.copy2(CODE / "models.py", project.folder)
    project.set(target_metadata="models:Base.metadata")
    return project


def test_fastapi_application_migrates_before_it_serves(
    with_book: Project, postgresql: Database
) -> None:
    """The page's whole application answers from a table that it has made, and its log says so."""
    url = postgresql.url_for("postgresql+asyncpg")
    with_book.alembic("-x", f"url={url}", "revision", "--autogenerate", "-m", "first")
    shutil.copy2(CODE / "fastapi_app.py", with_book.folder / "app.py")
    done = with_book.python(
        """
        from app import app
        from fastapi.testclient import TestClient

        with TestClient(app) as client:
            answer = client.get("/books")
        assert (answer.status_code, answer.json()) == (200, []), answer
        """,
        DATABASE_URL=url,
    )
    assert "INFO:alembic.runtime.migration:Running upgrade" in done.stderr
    assert postgresql.tables() == {"book", "alembic_version"}


def test_project_of_flask_migrate_moves_as_its_page_says(
    tmp_path: Path, postgresql: Database
) -> None:
    """The database of Flask-Migrate stays at its version, and agrees with the models."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy2(CODE / "flask_app.py", folder / "app.py")
    shutil.copy2(CODE / "flask_before.py", folder / "before.py")
    env = {"DATABASE_URL": postgresql.text}
    flask = (sys.executable, "-m", "flask", "--app", "before", "db")
    run(folder, *flask, "init", **env)
    run(folder, *flask, "migrate", "-m", "create the tables", **env)
    run(folder, *flask, "upgrade", **env)
    assert postgresql.tables() == {"book", "alembic_version"}
    version = postgresql.versions()

    (folder / "migrations").rename(folder / "migrations_before")
    project = render("shared", folder)
    (folder / "models.py").unlink()
    for path in (folder / "migrations_before" / "versions").glob("*.py"):
        shutil.copy2(path, folder / "migrations" / "versions")
    project.set(target_metadata="app:db.metadata")
    assert project.alembic("current", **env).stdout.split() == [*version, "(head)"]
    project.alembic("check", **env)
    assert postgresql.versions() == version


def test_schema_of_the_version_table_is_created(with_book: Project, postgresql: Database) -> None:
    """With the function of the page, the first run on a new database makes the schema."""
    env = with_book.folder / "migrations" / "env.py"
    source, start = env.read_text(), "def run_migrations("
    added = (CODE / "create_schema.py").read_text() + "\n\n"
    call = "    # Send no statement before the lock"
    assert source.count(start) == source.count(call) == 1
    source = source.replace(start, f"{added}{start}").replace(
        call, f"    create_schema(connection)\n{call}"
    )
    with_book.set(sqlalchemy__url=postgresql.text.replace("%", "%%"), version_table_schema="core")
    with_book.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    refused = with_book.alembic("upgrade", "head", ok=False).stderr
    assert "the database has no such schema" in refused
    env.write_text(source)
    with_book.alembic("upgrade", "head")
    assert postgresql.tables() == {"one"}
    assert postgresql.versions("core.alembic_version") == {"a1"}


def test_kubernetes_files_run_this_environment_once_in_a_pod() -> None:
    """A Job and an init container run an upgrade with the secret's URL, and may not be repeated."""
    job = yaml.safe_load((CODE / "kubernetes" / "job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    (migrate,) = job["spec"]["template"]["spec"]["containers"]
    assert migrate["command"] == ["alembic", "upgrade", "head"]

    deployment = yaml.safe_load((CODE / "kubernetes" / "deployment.yaml").read_text())
    spec = deployment["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    (first,) = spec["template"]["spec"]["initContainers"]
    assert first["command"] == ["alembic", "-x", "lock_timeout=600", "upgrade", "head"]
    (container,) = spec["template"]["spec"]["containers"]
    assert first["envFrom"] == container["envFrom"] == migrate["envFrom"]

    probes = yaml.safe_load((CODE / "kubernetes" / "probes.yaml").read_text())
    startup = probes["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert {"livenessProbe", "readinessProbe"} <= set(probes)


def test_release_line_of_heroku_names_a_url_that_sqlalchemy_knows(
    with_book: Project, postgresql: Database
) -> None:
    """In a shell, the line of the Procfile migrates the database of a `postgres://` URL."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    line = re.search(r"^release: (.+)$", page, re.MULTILINE)
    assert line
    with_book.revision("a1", "op.create_table('one', sa.Column('id', sa.Integer))")
    url = postgresql.text.replace("postgresql+psycopg://", "postgres://")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    run(with_book.folder, "bash", "-c", line[1], DATABASE_URL=url, PATH=path)
    assert postgresql.tables() == {"one", "alembic_version"}


@pytest.mark.parametrize("words", ["Flask", "Heroku", "pipx", "Windows", "uvx", "postgres://"])
def test_search_finds_what_newcomers_look_for(words: str) -> None:
    """A page has the word, which the site's search then finds."""
    pages = [*(ROOT / "docs").glob("*.md")]
    assert [page for page in pages if words in page.read_text(encoding="utf-8")]


def test_models_of_the_first_page_are_those_of_the_readme() -> None:
    """The README has the documentation's models, without the empty lines."""
    lines = [line for line in (CODE / "models.py").read_text().splitlines() if line]
    assert "\n".join(lines) in (ROOT / "README.md").read_text(encoding="utf-8")
