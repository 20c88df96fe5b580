"""Pythons for the command `alembic-templates`: one with an Alembic to install into, and the tests'."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from compileall import compile_dir
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

import pytest
from processes import kept_environment, run_python

from alembic_templates import cli
from alembic_templates._catalog import catalog
from alembic_templates._install import Target


@dataclass(frozen=True)
class Sandbox:
    """A Python whose Alembic is its own copy, and a folder to work in."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter of the virtual environment."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def site(self) -> Path:
        """The folder where Alembic is installed."""
        return next((self.folder / "venv" / "lib").glob("python3*")) / "site-packages"

    @property
    def templates(self) -> Path:
        """The folder where that Alembic looks for templates."""
        return self.site / "alembic" / "templates"

    @property
    def env(self) -> dict[str, str]:
        """The environment variables for its programs."""
        kept = kept_environment("PYTHONPATH")
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "PATH": path, "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, *args: str | Path, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program; fail the test unless it ends with this exit code and no traceback."""
        done = subprocess.run(
            args,
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != code or "Traceback" in done.stderr:
            pytest.fail(f"{args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def alembic(self, *args: str) -> str:
        """Run the alembic command and return what it prints."""
        return self.run(self.python, "-m", "alembic", *args).stdout

    def command(self, *args: str, **env: str) -> str:
        """Run alembic-templates, which must succeed, and return what it prints."""
        script = self.python.with_name("alembic-templates")
        done = self.run(self.python, script, *args, code=0, **env)
        assert done.stderr == ""
        return done.stdout

    def refused(self, *args: str, code: int = 1, wrapper: str | None = None) -> str:
        """Run alembic-templates, which must fail with one sentence, and return the sentence."""
        prefix = () if wrapper is None else (sys.executable, "-c", wrapper)
        script = self.python.with_name("alembic-templates")
        done = self.run(*prefix, self.python, script, *args, code=code)
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith(".\n")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("error: ").removesuffix("\n")

    @property
    def target(self) -> Target:
        """What the command finds by asking that Python, for a test to set up and to look faster."""
        return Target(self.templates, frozenset())

    def state(self) -> str:
        """Return the state of `shared`."""
        return self.target.state(catalog()["shared"])

    def tree(self) -> dict[str, bytes | None]:
        """Return all that stands in site-packages: each file with its content, each folder."""
        return {
            str(path.relative_to(self.site)): path.read_bytes() if path.is_file() else None
            for path in self.site.rglob("*")
        }


def make_venv(folder: Path) -> Path:
    """Make an empty virtual environment and return its interpreter."""
    venv.EnvBuilder(symlinks=True).create(folder)
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def with_alembic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with a copy of Alembic, compiled, for the sandboxes to copy."""
    found = Sandbox(tmp_path_factory.mktemp("with_alembic"))
    make_venv(found.folder / "venv")
    for file in files("alembic") or ():
        source = Path(str(file.locate()))
        if file.parts[0] != ".." and source.is_file():
            (found.site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, found.site / file)
    compile_dir(found.site / "alembic", quiet=2)
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({path!r})\n" for path in sorted(own)]
    (found.site / "tests.pth").write_text("".join(lines), encoding="utf-8")
    return found.folder


@pytest.fixture
def sandbox(with_alembic: Path, tmp_path: Path) -> Sandbox:
    """A virtual environment with a copy of Alembic; it takes all else from the tests' own Python."""
    shutil.copytree(with_alembic / "venv", tmp_path / "venv", symlinks=True)
    found = Sandbox(tmp_path)
    for name, module in (("alembic", "alembic.config"), ("alembic-templates", cli.__name__)):
        script = found.python.with_name(name)
        script.write_text(
            f"#!{found.python}\nimport sys\nfrom {module} import main\nsys.exit(main())\n",
            encoding="utf-8",
        )
        script.chmod(0o755)
    return found


@dataclass(frozen=True)
class Program(Sandbox):
    """The command in the tests' own Python, for what looks at no Alembic."""

    def run(self, *args: str | Path, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `PYTHON SCRIPT ARGUMENT...` as a fork, with `python -m` for the script."""
        _, _, *more = args
        own = {**kept_environment(), "HOME": str(self.folder), **env}
        done = run_python(["-m", "alembic_templates", *more], self.folder, own)
        if done.returncode != code or "Traceback" in done.stderr:
            pytest.fail(f"{args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done
