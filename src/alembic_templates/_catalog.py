"""Find and read the templates.

They stand at the top level of a checkout, where people read them, and inside of the package where
that is installed from a wheel. The functions here are the only ones that know.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from alembic_templates.errors import TemplatesError

# By the database: the dialect+driver of a URL, sync and async.
DATABASES = {
    "sqlite": ("sqlite", "sqlite+aiosqlite"),
    "postgresql": ("postgresql+psycopg", "postgresql+asyncpg"),
    "mysql": ("mysql+pymysql", "mysql+aiomysql"),
    "mariadb": ("mysql+pymysql", "mysql+aiomysql"),
}
# The modules that only some databases need, with these.
NEEDED_BY = {
    "sqlite_transactions.py": {"sqlite"},
    "postgresql_lock.py": {"postgresql"},
    "concurrent_indexes.py": {"postgresql"},
    "mysql_lock.py": {"mysql", "mariadb"},
    "ddl_retries.py": {"postgresql", "mysql", "mariadb"},
}


@dataclass(frozen=True)
class Template:
    """A template: its name, which `alembic init -t` takes, and its folder."""

    name: str
    folder: Path

    @property
    def synopsis(self) -> str:
        """The first line of its README, as `alembic list_templates` shows it."""
        return self._readme().partition("\n")[0]

    @property
    def optional(self) -> set[str]:
        """The names of the files that an owner may delete, which its README marks with (*)."""
        rows = re.findall(r"^(\w+\.py(?:, \w+\.py)*) .*\(\*\)$", self._readme(), re.MULTILINE)
        return {name for row in rows for name in row.split(", ")}

    def _readme(self) -> str:
        return (self.folder / "README").read_text(encoding="utf-8")


def templates_folder() -> Path:
    """Return the folder of the templates: inside an installed package, else of the checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parents[1] / "templates"


def scaffold_folder() -> Path:
    """Return the folder that cookiecutter takes, where cookiecutter.json stands beside the templates."""
    return templates_folder().parent


def catalog() -> dict[str, Template]:
    """Return every template by its name, in the order of the names.

    A folder without a README, such as one that an editor leaves there, is no template.
    """
    folders = sorted(path for path in templates_folder().iterdir() if (path / "README").is_file())
    return {path.name: Template(path.name, path) for path in folders}


def find(name: str) -> Template:
    """Return the template of a name.

    Raises TemplatesError, with the known names and the one that it resembles, where there is none.
    """
    templates = catalog()
    if name in templates:
        return templates[name]
    close = get_close_matches(name, templates, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    if name == "async":
        hint = " here, where the one for async drivers is asyncio (async is Alembic's own)"
    raise TemplatesError(f"There is no template {name!r}{hint}: expected {', '.join(templates)}.")


def files(folder: Path) -> list[Path]:
    """Return the files of a template's folder, which `alembic init` copies; it copies no folders."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a template's folder, by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder)}
