"""The distributions: what they hold, and that the templates are found however they are installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import MODELS, ROOT, run, tree

pytestmark = pytest.mark.packaging

SCAFFOLD = "{{cookiecutter.project_slug}}"


@dataclass(frozen=True)
class Distributions:
    """A copy of the checkout, and what was built from it."""

    checkout: Path
    wheel: Path
    sdist: Path

    def scaffold_files(self) -> set[str]:
        """Return the files of the scaffold by their paths, without what Python has compiled."""
        places = [self.checkout / "hooks", self.checkout / SCAFFOLD]
        paths = [path for place in places for path in place.rglob("*") if path.is_file()]
        names = {path.relative_to(self.checkout) for path in paths}
        return {
            "cookiecutter.json",
            *(name.as_posix() for name in names if "__pycache__" not in name.parts),
        }

    def template_files(self) -> set[str]:
        """Return the files of the templates as `NAME/FILE`, without what Python has compiled."""
        folder = self.checkout / "templates"
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {path.as_posix() for path in paths if "__pycache__" not in path.parts}

    def to_install(self, kind: str) -> list[str | Path]:
        """Return what pip installs: the wheel, the sdist, or the checkout as it is."""
        return {
            "wheel": [self.wheel],
            "sdist": [self.sdist],
            "editable": ["-e", self.checkout],
        }[kind]


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and an empty folder to work in."""

    folder: Path
    python: Path

    def run(self, *args: str | Path) -> str:
        """Run a program, which must succeed, without the checkout on Python's path."""
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        # As at a user's, Python compiles what it imports.
        return run(self.folder, *args, PATH=path, PYTHONDONTWRITEBYTECODE="")

    def pip_install(self, *args: str | Path) -> None:
        """Install something with pip."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check"]
        run(self.folder, *pip, "install", "-q", *args, HOME=os.environ["HOME"])

    def templates(self) -> str:
        """Return the templates' folder, as the one function that knows gives it."""
        code = "from alembic_templates._catalog import templates_folder as f; print(f())"
        return self.run(self.python, "-c", code).strip()


def copy_checkout(folder: Path) -> None:
    """Copy what git knows or would add, and compile templates and hooks, as an import of them does."""
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in listed.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / SCAFFOLD / "tests" / "__pycache__").mkdir()
    (folder / SCAFFOLD / "tests" / "__pycache__" / "conftest.pyc").write_bytes(b"compiled")
    run(folder, sys.executable, "-m", "compileall", "-q", folder / "templates", folder / "hooks")
    assert list(folder.glob("templates/*/__pycache__/env.*.pyc"))


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The wheel and the sdist, built once a run, whichever process comes first."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    checkout, built = root / "checkout", root / "built"
    with (root / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            shutil.rmtree(checkout, ignore_errors=True)
            copy_checkout(checkout)
            unfinished = root / "unfinished"
            build = [sys.executable, "-m", "build", "--outdir", unfinished, checkout]
            run(root, *build, HOME=os.environ["HOME"])
            unfinished.rename(built)
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    return Distributions(checkout, wheel, sdist)


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """A virtual environment with nothing in it."""
    venv.EnvBuilder(symlinks=True).create(tmp_path / "venv")
    (tmp_path / "work").mkdir()
    return Environment(tmp_path / "work", tmp_path / "venv" / "bin" / "python")


@pytest.fixture
def with_alembic(bare: Environment) -> Environment:
    """A virtual environment that takes Alembic and SQLAlchemy from the tests' own Python.

    What is installed into it comes first on its path.
    """
    site = next((bare.python.parents[1] / "lib").glob("python3*")) / "site-packages"
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "zz_tests.pth").write_text("\n".join(sorted(own)) + "\n", encoding="utf-8")
    return bare


def test_wheel_holds_every_template_file_once_and_nothing_compiled(
    distributions: Distributions,
) -> None:
    """The wheel has the package and each file of each template, as the checkout has them."""
    place = "alembic_templates/templates/"
    with zipfile.ZipFile(distributions.wheel) as wheel:
        names = wheel.namelist()
        found = {name.removeprefix(place): wheel.read(name) for name in names if place in name}
    folder = distributions.checkout / "templates"
    assert found == {name: (folder / name).read_bytes() for name in distributions.template_files()}
    assert len(names) == len(set(names))
    assert "alembic_templates/cli.py" in names
    assert "alembic_templates/py.typed" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"alembic_templates"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_wheel_holds_every_file_of_the_scaffold_beside_the_templates(
    distributions: Distributions,
) -> None:
    """The wheel has what cookiecutter takes, files with a dot and their permissions too."""
    place = "alembic_templates/"
    with zipfile.ZipFile(distributions.wheel) as wheel:
        found = {
            info.filename.removeprefix(place): (wheel.read(info), info.external_attr >> 16 & 0o111)
            for info in wheel.infolist()
            if info.filename.startswith((f"{place}cookiecutter.json", f"{place}hooks/"))
            or SCAFFOLD in info.filename
        }
    files = {name: distributions.checkout / name for name in distributions.scaffold_files()}
    assert found == {
        name: (path.read_bytes(), path.stat().st_mode & 0o111) for name, path in files.items()
    }


def test_sdist_holds_what_its_wheel_and_its_tests_need(distributions: Distributions) -> None:
    """The sdist has the templates, the scaffold, the package and the tests, and nothing compiled."""
    with tarfile.open(distributions.sdist) as sdist:
        listed = [member.name.partition("/")[2] for member in sdist if member.isfile()]
    names = set(listed)
    assert len(listed) == len(names)
    scaffold = {
        name for name in names if name.startswith(("cookiecutter.json", "hooks/", SCAFFOLD))
    }
    assert scaffold == distributions.scaffold_files()
    templates = {name for name in names if name.startswith("templates/")}
    assert templates == {f"templates/{name}" for name in distributions.template_files()}
    assert names >= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "tox.ini",
        "scripts/count_lines.py",
        "scripts/lines.json",
        "docs/conf.py",
        "docs/cookbook.md",
        "src/alembic_templates/cli.py",
        "tests/conftest.py",
        "tests/test_packaging.py",
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_documentation_builds_from_the_sdist(distributions: Distributions, tmp_path: Path) -> None:
    """The sdist has all that the pages include, and builds them without a warning."""
    with tarfile.open(distributions.sdist) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", "docs", "html"]
    run(source, *build)
    assert (source / "html" / "cookbook.html").is_file()


@pytest.mark.parametrize(
    ("kind", "inside"),
    [
        pytest.param("wheel", True, id="wheel"),
        pytest.param("sdist", True, id="sdist"),
        pytest.param("editable", False, id="editable"),
    ],
)
def test_templates_are_found_however_they_are_installed(
    distributions: Distributions, with_alembic: Environment, kind: str, inside: bool
) -> None:
    """The one function finds the templates of the copy that is installed, and `list` shows all."""
    # Else pip takes the copy that the tests' own Python may have for this one.
    with_alembic.pip_install("--no-deps", "--ignore-installed", *distributions.to_install(kind))
    code = "import alembic_templates; print(alembic_templates.__file__)"
    package = Path(with_alembic.run(with_alembic.python, "-c", code).strip()).parent
    site = with_alembic.python.parents[1] / "lib"
    assert package.is_relative_to(site if inside else distributions.checkout / "src")
    folder = package / "templates" if inside else distributions.checkout / "templates"
    assert with_alembic.templates() == str(folder)
    listed = with_alembic.run("alembic-templates", "list").splitlines()
    names = {name.partition("/")[0] for name in distributions.template_files()}
    assert {line.split()[0] for line in listed} == names


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_new_makes_the_same_project_however_it_is_installed(
    distributions: Distributions, with_alembic: Environment, kind: str
) -> None:
    """`new` makes what cookiecutter makes of the checkout, without what pip has compiled."""
    with_alembic.pip_install("--no-deps", "--ignore-installed", *distributions.to_install(kind))
    if kind != "editable":
        package = Path(with_alembic.templates()).parent
        assert list((package / SCAFFOLD).rglob("__pycache__"))
    with_alembic.run("alembic-templates", "new", "--no-input")
    expected = with_alembic.folder.parent / "expected"
    command = [sys.executable, "-m", "cookiecutter", ROOT, "--no-input", "-o", expected]
    # Else the hooks that cookiecutter renders stay among the temporary files.
    run(with_alembic.folder.parent, *command, TMPDIR=str(with_alembic.folder.parent))
    assert tree(with_alembic.folder) == tree(expected)
    assert (expected / "my-project" / ".github" / "workflows" / "tests.yml").is_file()


def test_new_says_what_to_install(distributions: Distributions, bare: Environment) -> None:
    """Without the extra, `new` is one sentence that names it."""
    bare.pip_install("--no-deps", distributions.wheel)
    done = subprocess.run(
        [bare.python.with_name("alembic-templates"), "new", "--no-input"],
        cwd=bare.folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: cookiecutter is not installed, which makes the project: run pip install "
        "'alembic-templates[project]'.\n"
    )
    assert list(bare.folder.iterdir()) == []


def test_whole_round_from_a_wheel_with_nothing_else(
    distributions: Distributions, bare: Environment
) -> None:
    """From the wheel alone: install, init, autogenerate, upgrade, uninstall; and all by `path`."""
    bare.pip_install(distributions.wheel)
    bare.run("alembic-templates", "install", "shared")
    synopsis = (distributions.checkout / "templates/shared/README").read_text().splitlines()[0]
    assert f"shared - {synopsis}\n" in bare.run("alembic", "list_templates")
    round_from_init(distributions, bare, "shared")
    bare.run("alembic-templates", "uninstall")
    assert "shared - " not in bare.run("alembic", "list_templates")
    (bare.folder / "by_path").mkdir()
    by_path = Environment(bare.folder / "by_path", bare.python)
    round_from_init(distributions, by_path, "$(alembic-templates path shared)")


def round_from_init(distributions: Distributions, bare: Environment, template: str) -> None:
    """Render a template in an empty folder, set two options, autogenerate and upgrade."""
    bare.run("sh", "-ec", f'alembic init -t "{template}" migrations')
    rendered = {path.name for path in (bare.folder / "migrations").iterdir()}
    files = {name.partition("/")[2] for name in distributions.template_files() if "shared/" in name}
    assert rendered == files - {"alembic.ini.mako"} | {"versions"}
    ini = (bare.folder / "alembic.ini").read_text(encoding="utf-8")
    for option, value in {
        "sqlalchemy.url": "sqlite:///test.db",
        "target_metadata": "models:metadata",
    }.items():
        assert f"\n{option} =\n" in ini
        ini = ini.replace(f"\n{option} =\n", f"\n{option} = {value}\n")
    (bare.folder / "alembic.ini").write_text(ini, encoding="utf-8")
    (bare.folder / "models.py").write_text(MODELS, encoding="utf-8")
    bare.run("alembic", "revision", "--autogenerate", "-m", "first")
    bare.run("alembic", "upgrade", "head")
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    code = f"import sqlite3; print(sorted(sqlite3.connect('test.db').execute({query!r})))"
    tables = [("alembic_version",), ("author",), ("book",)]
    assert bare.run(bare.python, "-c", code) == f"{tables}\n"
