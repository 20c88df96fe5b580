"""Find and read the templates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from alembic_templates.errors import TemplatesError


@dataclass(frozen=True)
class Template:
    """A template: its name, which `alembic init -t` takes, and its folder."""

    name: str
    folder: Path

    @property
    def synopsis(self) -> str:
        """The first line of its README, as `alembic list_templates` shows it."""
        return (self.folder / "README").read_text(encoding="utf-8").partition("\n")[0]


def templates_folder() -> Path:
    """Return the folder of the templates: inside an installed package, else of the checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parents[1] / "templates"


def scaffold_folder() -> Path:
    """Return the folder that cookiecutter takes, where cookiecutter.json stands beside the templates."""
    return templates_folder().parent


def catalog() -> dict[str, Template]:
    """Return every template by its name, in the order of the names."""
    folders = sorted(path for path in templates_folder().iterdir() if (path / "README").is_file())
    return {path.name: Template(path.name, path) for path in folders}


def find(name: str) -> Template:
    """Return the template of a name.

    Raises TemplatesError, with the known names, where there is none.
    """
    templates = catalog()
    if name not in templates:
        raise TemplatesError(f"There is no template {name!r}: expected {', '.join(templates)}.")
    return templates[name]


def files(folder: Path) -> list[Path]:
    """Return the files of a template's folder, which `alembic init` copies; it copies no folders."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a template's folder, by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder)}
