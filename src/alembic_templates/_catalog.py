"""Find and read the templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


# What the README says is repeated nowhere else, and what users must edit is theirs.
_NOT_FILES = {"__pycache__"}


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


def catalog() -> list[Template]:
    """Return every template, by name."""
    folders = [path for path in templates_folder().iterdir() if path.is_dir()]
    return [Template(path.name, path) for path in sorted(folders) if path.name not in _NOT_FILES]
