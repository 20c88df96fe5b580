"""Install templates where `alembic init -t` finds them, and remove what was installed.

A template is installed by a copy of its folder into Alembic's own folder of templates. A manifest
in the copy has the hash of each file, which tells ours from those of others, and modified ones from
those that another version of this package has installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import requires
from pathlib import Path

from alembic_templates._catalog import Template, catalog, files, find, hashes, templates_folder
from alembic_templates.errors import TemplatesError

if sys.platform != "win32":
    import fcntl

# Inside a template, since Alembic takes whatever stands beside the templates for one; and a folder,
# since `alembic init` copies files alone.
MANIFEST = Path(".alembic-templates", "manifest.json")

# Asked in a process of that Python, which need not have this package, without an import of Alembic,
# which takes half a second. A module of the same name, found first, has no such folder.
_QUERY = """
import json
import sys
from importlib.metadata import files, version
from importlib.util import find_spec
from pathlib import Path
versions = {name: version(name) for name in ("alembic", "sqlalchemy")}
shipped = {f.parts[2] for f in files("alembic") or () if f.parts[:2] == ("alembic", "templates")}
folder = Path(find_spec("alembic").origin).absolute().with_name("templates")
if not folder.is_dir():
    sys.exit(f"{folder} does not exist")
print(json.dumps({
    "folder": str(folder),
    "shipped": sorted(shipped),
    "python": sys.executable,
    "prefix": sys.prefix,
    "versions": versions,
}))
"""

# Beside the folder of the templates: on its file system, where Alembic does not look.
_STAGING = ".alembic-templates-"


@dataclass(frozen=True)
class Target:
    """The `templates` folder of an Alembic, the names of those that it ships, and its Python."""

    folder: Path
    shipped: Collection[str]
    python: str = ""
    prefix: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def installed(self) -> list[str]:
        """Return the names of the templates that this package has installed."""
        return sorted(path.parents[1].name for path in self.folder.glob(f"*/{MANIFEST}"))

    def changed_files(self, name: str) -> list[str]:
        """Return the names of the files, and of the folders added, not as they were installed."""
        try:
            content = json.loads((self.folder / name / MANIFEST).read_text(encoding="utf-8"))
            before = dict(content["files"])
        except (ValueError, KeyError, TypeError):
            before = {}  # the manifest is not as it was written, and no file can be told to be
        folder = self.folder / name
        ours = {"__pycache__", MANIFEST.parts[0]}
        added = {path.name for path in folder.iterdir() if path.is_dir()} - ours
        now = hashes(folder) | dict.fromkeys(added, "")
        return sorted(key for key in before | now if before.get(key) != now.get(key))

    def state(self, template: Template) -> str:
        """Return how a template stands here: installed, modified, outdated or not installed."""
        folder = self.folder / template.name
        if not folder.exists():
            return "not installed"
        if not (folder / MANIFEST).exists():
            return "not installed, another template has the name"
        if self.changed_files(template.name):
            return "modified"
        return "installed" if hashes(folder) == hashes(template.folder) else "outdated"


def needed() -> dict[str, str]:
    """Return the oldest versions that the templates work with, which are what this package needs."""
    found = [re.fullmatch(r"(\w+)>=([\d.]+)", each) for each in requires("alembic-templates") or ()]
    return {match[1]: match[2] for match in found if match}


def target_of(python: str) -> Target:
    """Return the `templates` folder of the Alembic that a Python imports.

    `python` is a path or the name of a command. Raises TemplatesError where that is no Python, or
    one that does not run or has no Alembic.
    """
    try:
        done = subprocess.run(
            # An absolute path, since the project's own folder, which may hold migrations in a
            # folder named alembic, is not the one to run in.
            [os.path.abspath(shutil.which(python) or python), "-c", _QUERY],
            cwd=templates_folder(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            check=True,
        )
        answer = json.loads(done.stdout)
        return Target(**{**answer, "folder": Path(answer["folder"])})
    # The last three: another program, whose output is no JSON, or JSON of another shape.
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError, TypeError) as error:
        raise TemplatesError(
            f"{python} cannot be used ({_reason(error)}): expected a Python that has Alembic "
            f"{needed()['alembic']} or later, such as .venv/bin/python."
        ) from error


def _reason(error: Exception) -> str:
    """Return in a few words why a program has not answered as a Python with an Alembic does.

    It is the last line that the program has printed, which is that of an import that failed, or
    what the system says of a program that cannot run.
    """
    if isinstance(error, subprocess.CalledProcessError):
        return str((error.stderr.strip().splitlines() or ["no error was printed"])[-1])
    return getattr(error, "strerror", None) or "its answer is not a Python's"


def install(name: str, target: Target, force: bool) -> str:
    """Install or update a template, and return what was done, in words before the folder's name.

    The new copy is made elsewhere and takes its place by a rename, so that a template is whole or
    not there at all, also after a kill. What is up to date is left as it is.

    Raises TemplatesError where a folder of that name was not installed by this package, or was
    modified since, unless `force` is given; and always where Alembic ships the name, or is too old.
    """
    template = find(name)
    _refuse_old(target)
    if name in target.shipped:
        raise TemplatesError(
            f"Alembic ships a template {name!r} of its own, which is never replaced: use "
            f"alembic-templates init {name} migrations."
        )
    folder = target.folder / name
    with _alone(target):
        state = target.state(template)
        if state == "installed":
            return "is up to date in"
        if state not in {"not installed", "outdated"} and not force:
            _refuse(name, target, "replace")
        with _staging(target) as staging:
            new = Path(staging, "new")
            (new / MANIFEST).parent.mkdir(parents=True)
            for path in files(template.folder):
                shutil.copyfile(path, new / path.name)
            manifest = json.dumps({"files": hashes(new)}, indent=2)
            (new / MANIFEST).write_text(f"{manifest}\n", encoding="utf-8")
            if folder.exists():
                folder.rename(Path(staging, "old"))
            new.rename(folder)
    return "installed in" if state == "not installed" else "replaced in"


def uninstall(name: str, target: Target, force: bool) -> str:
    """Remove a template that this package has installed, and return what was done, as install().

    Raises TemplatesError where it was modified since, unless `force` is given, and always where
    another template has the name.
    """
    with _alone(target):
        there = name in target.installed()
        if not there and not (target.folder / name).exists():
            return "is not installed in"
        if not there or (target.changed_files(name) and not force):
            _refuse(name, target, "remove")
        with _staging(target) as staging:
            (target.folder / name).rename(Path(staging, name))
    return "removed from"


def states(target: Target) -> dict[str, str]:
    """Return how each template stands, by its name; see `Target.state`."""
    with _alone(target):
        return {name: target.state(template) for name, template in catalog().items()}


def _refuse_old(target: Target) -> None:
    """Raise TemplatesError where Alembic or SQLAlchemy is older than the templates need.

    An environment would refuse as well, in the first line of its output: too late for somebody who
    has a project around it by then.
    """
    for name, oldest in needed().items():
        found = target.versions.get(name, oldest)
        if _numbers(found) < _numbers(oldest):
            raise TemplatesError(
                f"The templates need {name} {oldest} or later, and {target.python} has {found}: "
                "upgrade it first."
            )


def _numbers(version: str) -> list[int]:
    """Return the numbers of a version, in the order in which they are compared."""
    return [int(number) for number in re.findall(r"\d+", version)]


def _refuse(name: str, target: Target, action: str) -> None:
    """Raise TemplatesError for a folder that is not this package's to replace or remove."""
    folder = target.folder / name
    if name not in target.installed():
        todo = "rename it, or give --force" if action == "replace" else "remove it by hand"
        raise TemplatesError(f"{folder} was not installed by alembic-templates: {todo}.")
    changed = ", ".join(target.changed_files(name))
    raise TemplatesError(
        f"{folder} was modified since it was installed ({changed}): give --force to {action} it."
    )


@contextmanager
def _alone(target: Target) -> Iterator[None]:
    """Keep other commands out of these templates, and remove what killed ones have left.

    Two of them would read a template while the other writes it, and take each other's folders for
    such leftovers.

    Raises TemplatesError where the file system refuses what is done meanwhile.
    """
    package = target.folder.parent
    descriptor = None
    try:
        if sys.platform != "win32":  # Windows has no lock on folders, so its leftovers stay
            descriptor = os.open(package, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with the process, also if that is killed
            for left in package.glob(f"{_STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    except OSError as error:
        raise TemplatesError(
            f"{target.folder} cannot be changed ({error.strerror}): use a template without "
            "installing it, by alembic-templates init NAME migrations."
        ) from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _staging(target: Target) -> tempfile.TemporaryDirectory[str]:
    """Return a new folder on the file system of the templates, which goes with all it then has."""
    return tempfile.TemporaryDirectory(
        prefix=_STAGING, dir=target.folder.parent, ignore_cleanup_errors=True
    )
