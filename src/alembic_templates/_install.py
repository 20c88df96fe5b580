"""Install templates where `alembic init -t` finds them, and remove what was installed."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from alembic_templates._catalog import Template, files, find, hashes, templates_folder
from alembic_templates.errors import TemplatesError

# Inside a template, since Alembic takes whatever stands beside the templates for one; and a folder,
# since `alembic init` copies files alone.
MANIFEST = Path(".alembic-templates", "manifest.json")

# Asked in a process of that Python, which need not have this package.
_QUERY = """
import json
from importlib.metadata import files
from alembic.config import Config
shipped = {f.parts[2] for f in files("alembic") or () if f.parts[:2] == ("alembic", "templates")}
print(json.dumps([Config().get_template_directory(), sorted(shipped)]))
"""

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # fcntl.h


@dataclass(frozen=True)
class Target:
    """The `templates` folder of an Alembic, and the names of those that it ships."""

    folder: Path
    shipped: frozenset[str]

    def installed(self) -> list[str]:
        """Return the names of the templates that this package has installed."""
        return sorted(path.parents[1].name for path in self.folder.glob(f"*/{MANIFEST}"))

    def changed_files(self, name: str) -> list[str]:
        """Return the names of the files, and of the folders added, not as they were installed."""
        before = self._manifest(name)
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

    def _manifest(self, name: str) -> dict[str, str]:
        try:
            content = json.loads((self.folder / name / MANIFEST).read_text(encoding="utf-8"))
            return dict(content["files"])
        except (ValueError, KeyError, TypeError):
            return {}  # not as it was written, and neither is any file then


def target_of(python: str) -> Target:
    """Return the `templates` folder of the Alembic that a Python imports.

    Raises TemplatesError where that is no Python, or one that does not run or has no Alembic.
    """
    executable = shutil.which(python)
    if executable is None:
        raise TemplatesError(
            f"{python!r} is no program: expected the path of a Python, such as .venv/bin/python."
        )
    try:
        done = subprocess.run(
            [os.path.abspath(executable), "-c", _QUERY],
            # The project's own folder may hold migrations in a folder named alembic.
            cwd=templates_folder(),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise TemplatesError(f"{python} does not run ({error.strerror}).") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no error was printed"])[-1]
        raise TemplatesError(
            f"{python} imports no Alembic ({reason}): install Alembic 1.16 or later for it."
        )
    try:
        folder, shipped = json.loads(done.stdout)
    except ValueError as error:
        raise TemplatesError(
            f"{python} is no Python: expected the path of one, such as .venv/bin/python."
        ) from error
    return Target(Path(folder), frozenset(shipped))


def install(name: str, target: Target, *, force: bool) -> str:
    """Install or update a template, and return its state before: `installed` means nothing to do.

    Raises TemplatesError where a folder of that name was not installed by this package, or was
    modified since, unless `force` is given; and always where Alembic ships the name.
    """
    template = find(name)
    if name in target.shipped:
        raise TemplatesError(
            f"Alembic ships a template {name!r} of its own, which is never replaced: use "
            f'alembic init -t "$(alembic-templates path {name})".'
        )
    state = target.state(template)
    if state == "installed":
        return state
    if state not in {"not installed", "outdated"} and not force:
        _refuse(name, target, "replace")
    with _staging(target) as staging:
        new = staging / name
        new.mkdir()
        for path in files(template.folder):
            shutil.copyfile(path, new / path.name)
        manifest = {"version": version("alembic-templates"), "files": hashes(new)}
        (new / MANIFEST).parent.mkdir()
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _put(new, target.folder / name, staging / "old")
    return state


def uninstall(name: str, target: Target, *, force: bool) -> bool:
    """Remove a template that this package has installed; return whether there was one.

    Raises TemplatesError where it was modified since, unless `force` is given.
    """
    if name not in target.installed():
        if (target.folder / name).exists():
            _refuse(name, target, "remove")
        return False
    if target.changed_files(name) and not force:
        _refuse(name, target, "remove")
    with _staging(target) as staging:
        (target.folder / name).rename(staging / name)
    return True


def _refuse(name: str, target: Target, action: str) -> None:
    folder = target.folder / name
    if name not in target.installed():
        todo = "rename it, or give --force" if action == "replace" else "remove it by hand"
        raise TemplatesError(f"{folder} was not installed by alembic-templates: {todo}.")
    changed = ", ".join(target.changed_files(name))
    raise TemplatesError(
        f"{folder} was modified since it was installed ({changed}): give --force to {action} it."
    )


@contextmanager
def _staging(target: Target) -> Iterator[Path]:
    """Give a folder on the file system of the templates, where a killed command leaves no half one."""
    staging = target.folder.parent / ".alembic-templates"
    try:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging)
    except OSError as error:
        raise TemplatesError(
            f"{target.folder} cannot be changed ({error.strerror}): use a template without "
            'installing it, by alembic init -t "$(alembic-templates path NAME)" migrations.'
        ) from error


def _put(new: Path, folder: Path, old: Path) -> None:
    """Put a new folder in the place of an old one at once, where the system can exchange two."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        folder.rename(old)
        new.rename(folder)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders with Linux's renameat2 (its manual, section 2), if it can be had."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    done = renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    return bool(done == 0)
