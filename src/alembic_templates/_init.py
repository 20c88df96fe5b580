"""Make an environment as `alembic init` does, with nothing written into Alembic's own folder.

Alembic asks its Config where the templates are, and a subclass may give another answer, which is
the documented way. Ours answers with a scratch folder, in which a copy of the template has those of
its files that are wanted. The environment is made in there, too, and moved to its place as a whole,
so that a failure leaves nothing, and of two processes at once the second is refused.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from alembic_templates._catalog import DATABASES, NEEDED_BY, Template, files
from alembic_templates.errors import TemplatesError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which Alembic brings along

INI, TOML = Path("alembic.ini"), Path("pyproject.toml")

# Written by Alembic where the name of the environment's folder stands, and replaced afterwards.
_LOCATION = "{script_location}"


class _Config(Config):
    """The configuration of a project in a scratch folder, which has the templates, too."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(str(scratch / INI), toml_file=scratch / TOML)
        self.templates = scratch

    def get_template_directory(self) -> str:
        return str(self.templates)

    def _get_template_path(self) -> Path:
        return self.templates  # Alembic 1.16.0 asks this method, and not the documented one


def init(
    template: Template, folder: Path, databases: Collection[str], *, package: bool, pyproject: bool
) -> str:
    """Make an environment in a folder, and return what to set and to run next, in lines.

    Where `databases` are named, modules that other databases alone need are left out. `package`
    adds an __init__.py, and with `pyproject` the settings stand in pyproject.toml.

    The environment is made whole or not at all. Raises TemplatesError where the folder is not
    empty, where an environment there could not work, and for what the file system refuses.
    """
    try:
        _refuse(folder, package=package, pyproject=pyproject)
        with ExitStack() as undo:
            is_new = not folder.exists()
            if is_new:
                _make_parents(folder, undo)
            # Beside the folder, on its file system; in it, if it is there already.
            place = (folder.parent if is_new else folder).absolute()
            with tempfile.TemporaryDirectory(dir=place, prefix=".alembic-templates-") as scratch:
                copy = Path(scratch, template.name)
                _copy(template, copy, databases, pyproject=pyproject)
                made = _made(copy, folder, package=package)
                _move(made, folder, undo, is_new=is_new)
                is_kept = _write_settings(made.parent, undo, pyproject=pyproject)
            undo.pop_all()
    except (OSError, CommandError) as error:
        raise TemplatesError(
            f"No environment can be made in {folder} ({getattr(error, 'strerror', None) or error}):"
            " nothing was left behind; choose a folder that you may write to."
        ) from error
    return _next_steps(template.name, folder, databases, pyproject=pyproject, is_kept=is_kept)


def _refuse(folder: Path, *, package: bool, pyproject: bool) -> None:
    """Raise TemplatesError for a folder or a project in which no environment can be made."""
    # Alembic writes the name into its configuration as it is, where these have a meaning. TOML has
    # no control characters, UTF-8 no surrogates, and an ini file no blank at the end of a value.
    wrong = r'[%"\\\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]|(?P<end>\s\Z)'
    if found := re.search(wrong, folder.as_posix()):
        raise TemplatesError(
            f"The name {str(folder)!r} cannot stand in Alembic's configuration: choose a DIR "
            f"without {found[0]!r}{' at its end' if found['end'] else ''}."
        )
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise _is_there(folder)
    if package and folder.name == "alembic" and not (folder.parent / "__init__.py").exists():
        raise TemplatesError(
            "A package named alembic would hide Alembic itself: choose another DIR, such as "
            "migrations, or leave --package out."
        )
    if not pyproject:
        return
    if INI.exists():
        raise _is_hidden()
    try:
        tools = tomllib.loads(TOML.read_text(encoding="utf-8")).get("tool", {})
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise TemplatesError(f"{TOML} cannot be read ({error}): correct it first.") from error
    if isinstance(tools, dict) and "alembic" in tools:
        raise TemplatesError(
            f"{TOML} has a [tool.alembic] already, which stays as it is: remove it first, or leave "
            "--pyproject out."
        )


def _is_there(folder: Path) -> TemplatesError:
    return TemplatesError(
        f"{folder} is there already and is not an empty folder: choose another DIR."
    )


def _is_hidden() -> TemplatesError:
    return TemplatesError(
        f"{INI} is there already, and its settings come before those of {TOML}: rename it, or "
        "leave --pyproject out."
    )


def _make_parents(folder: Path, undo: ExitStack) -> None:
    """Make the folders above a folder, and let those that were made here be undone."""
    for parent in reversed(folder.absolute().parents):
        if not parent.exists():
            with suppress(FileExistsError):  # another process was faster
                parent.mkdir()
                undo.callback(_remove_empty, parent)


def _remove_empty(folder: Path) -> None:
    """Remove a folder, unless another process has put something into it."""
    with suppress(OSError):
        folder.rmdir()


def _copy(template: Template, copy: Path, databases: Collection[str], *, pyproject: bool) -> None:
    """Copy those files of a template that are wanted, with a mark for the environment's folder."""
    copy.mkdir()
    for path in files(template.folder):
        if not _is_unneeded(path.name, databases):
            shutil.copyfile(path, copy / path.name)
    ini = copy / f"{INI}.mako"
    text = ini.read_text(encoding="utf-8").replace("${script_location}", _LOCATION)
    ini.write_text(text, encoding="utf-8")
    if pyproject:
        _settings_to_toml(copy)


def _made(copy: Path, folder: Path, *, package: bool) -> Path:
    """Let Alembic make an environment beside a template; the settings name its later folder.

    Returns the environment's folder, beside which the settings are.
    """
    made = copy.with_name("environment")
    with redirect_stdout(io.StringIO()):  # it names each file
        command.init(_Config(copy.parent), str(made), copy.name, package)
    # An absolute folder replaces what stands before it.
    location = Path("%(here)s", folder).as_posix().encode()
    for path in (copy.parent / INI, copy.parent / TOML):
        if path.exists():
            path.write_bytes(path.read_bytes().replace(_LOCATION.encode(), location))
    return made


def _move(made: Path, folder: Path, undo: ExitStack, *, is_new: bool) -> None:
    """Move an environment to its folder; raise TemplatesError if another process was faster.

    One step moves all of it to a new folder. In a folder that is there already, which may be the
    current one, the first step is to make the folder of the revisions, which fails the second time.
    """
    try:
        if is_new:
            made.rename(folder)
            undo.callback(shutil.rmtree, folder)
            return
        versions = folder / "versions"
        versions.mkdir()
        undo.callback(shutil.rmtree, versions)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
            raise _is_there(folder) from error
        raise
    for path in [*(made / "versions").iterdir(), *made.iterdir()]:
        place = folder / path.relative_to(made)
        if place != versions:
            path.rename(place)
            undo.callback(place.unlink)


def _write_settings(scratch: Path, undo: ExitStack, *, pyproject: bool) -> bool:
    """Write alembic.ini and pyproject.toml; tell whether there was an alembic.ini, which stays."""
    is_kept = False
    try:
        with INI.open("xb") as file:
            undo.callback(INI.unlink)
            file.write((scratch / INI).read_bytes())
    except FileExistsError as error:
        if pyproject:
            raise _is_hidden() from error
        is_kept = True
    if pyproject:
        _append(TOML, (scratch / TOML).read_bytes(), undo)
    return is_kept


def _append(path: Path, section: bytes, undo: ExitStack) -> None:
    """Write a section behind what a file has, and let it be undone.

    Raises TemplatesError if the file would not be TOML then, such as one with `tool = {}`.
    """
    try:
        before = path.read_bytes()
        section = b"\n\n" + section
        tomllib.loads((before + section).decode())
        undo.callback(os.truncate, path, len(before))
    except FileNotFoundError:
        undo.callback(path.unlink, missing_ok=True)
    except ValueError as error:
        raise TemplatesError(
            f"{path} can take no section [tool.alembic] ({error}): write `tool` as sections, such "
            "as [tool.ruff], or leave --pyproject out."
        ) from error
    with path.open("ab") as file:
        file.write(section)


def _is_unneeded(name: str, databases: Collection[str]) -> bool:
    """Tell whether a file of a template is for databases alone that were not named."""
    users = NEEDED_BY.get(name)
    return bool(databases and users and users.isdisjoint(databases))


def _settings_to_toml(folder: Path) -> None:
    """Move the section [alembic] of a template's ini file to a pyproject.toml.mako beside it.

    The section stays with nothing in it, since programs ask Alembic's Config for the section.
    """
    ini = folder / "alembic.ini.mako"
    settings, mark, logging = ini.read_text(encoding="utf-8").partition("[loggers]")
    settings = settings.replace("[alembic]", "[tool.alembic]").replace("path_separator = os\n", "")
    lines = [_toml_line(line) for line in settings.splitlines()]
    (folder / "pyproject.toml.mako").write_text("\n".join([*lines, ""]), encoding="utf-8")
    note = f"# The settings are in {TOML}, section [tool.alembic].\n[alembic]\n\n"
    ini.write_text(note + mark + logging, encoding="utf-8")


def _next_steps(
    name: str, folder: Path, databases: Collection[str], *, pyproject: bool, is_kept: bool
) -> str:
    """Return the lines to set, as they are written in the file for them, and the next commands."""
    driver = DATABASES[[*databases, "postgresql"][0]][name == "asyncio"]
    file = "{tenant}.db" if name == "multitenant" else "app.db"
    url = f"{driver}:///{file}" if "sqlite" in driver else f"{driver}://me@localhost/mydb"
    settings = {"sqlalchemy.url": url, "target_metadata": "myapp.models:Base.metadata"}
    commands = ['alembic revision --autogenerate -m "create the tables"', "alembic upgrade head"]
    if name == "multitenant":
        settings["tenants"] = "acme globex"
        commands = ["alembic -x create=true upgrade head", *commands]
    own = "with your own values (DATABASE_URL may give the URL instead)"
    place = f"{TOML}, section [tool.alembic]" if pyproject else str(INI)
    said = f"Set in {place}, {own}:"
    if is_kept:
        section = _free_section(folder)
        location = Path("%(here)s", folder).as_posix()
        settings = {"script_location": location, "prepend_sys_path": "%(here)s", **settings}
        settings["path_separator"] = "os"
        commands = [each.replace("alembic ", f"alembic --name {section} ", 1) for each in commands]
        said = (
            f"{INI} was there already and stays as it was. Add a section to it, such as "
            f"[{section}], {own}:"
        )
    lines = [f"{key} = {value}" for key, value in settings.items()]
    if pyproject:
        lines = [_toml_line(line) for line in lines]
    lines = [f"{folder} is ready. {said}", *([f"[{section}]"] if is_kept else []), *lines]
    return "\n    ".join(lines) + "\n    ".join(["\nThen run:", *commands])


def _free_section(folder: Path) -> str:
    """Return a name that no section of alembic.ini has, made of the name of a folder."""
    name, text = re.sub(r"\W", "_", folder.absolute().name), INI.read_text("utf-8", "replace")
    while f"[{name}]" in text:
        name += "_2"
    return name


def _toml_line(line: str) -> str:
    """Return a setting of an ini file as TOML; another line, such as a comment, as it is."""
    found = re.fullmatch(r"([\w.]+) = ?(.*)", line)
    if not found:
        return line
    name = json.dumps(found[1]) if "." in found[1] else found[1]
    return f"{name} = {json.dumps([found[2]] if name == 'prepend_sys_path' else found[2])}"
