"""Projects with an Alembic environment and revisions, for the benchmarks to run."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from textwrap import indent

from alembic import command
from alembic.config import Config


def render(folder: Path, template: str, **options: str) -> None:
    """Render a template, one of Alembic's or a folder, and set options in its alembic.ini.

    `sqlalchemy__url` stands for `sqlalchemy.url`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        command.init(Config(folder / "alembic.ini"), str(folder / "migrations"), template=template)
    ini = folder / "alembic.ini"
    text = ini.read_text(encoding="utf-8")
    for key, value in options.items():
        name = key.replace("__", ".")
        text = re.sub(rf"(?m)^{re.escape(name)} *=.*\n", "", text)
        line = f"[alembic]\n{name} = {value.replace('%', '%%')}\n"
        text = text.replace("[alembic]\n", line, 1)
    ini.write_text(text, encoding="utf-8")


def write_revision(folder: Path, names: list[str], upgrade: str) -> None:
    """Write the revision that is the last of the names, with the body of its upgrade()."""
    before = names[-2] if len(names) > 1 else None
    (folder / "migrations" / "versions" / f"{names[-1]}.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        f'revision = "{names[-1]}"\ndown_revision = {before!r}\n\n\n'
        f"def upgrade():\n{indent(upgrade.strip(), '    ')}\n\ndef downgrade():\n    pass\n",
        encoding="utf-8",
    )
