"""Draw the README's picture of a terminal, docs/_static/terminal.svg, from commands that are run.

`python scripts/picture.py` writes it again after a change of what the commands print. Only the
times that they print differ from run to run. Without this script the picture would be drawn by
hand, and would soon show what no command prints any more.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "_static" / "terminal.svg"
COLUMNS = 88
TENANTS = ["acme", "globex", "initech", "umbrella"]

# Without the fonts that rich would load from another host; braces of CSS are doubled.
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
 aria-label="alembic-templates try shared, and an upgrade of a fleet in which one tenant fails">
<style>
.{unique_id}-matrix {{
  font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""

REVISION = '''\
"""{message}."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {down}


def upgrade() -> None:
    {statement}
'''


def main(path: Path = PICTURE) -> None:
    """Run the commands in a folder of their own, and write the picture."""
    console = Console(record=True, file=io.StringIO(), width=COLUMNS, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        for line in session(Path(folder)):
            console.print(coloured(line))
    svg = console.export_svg(title="alembic-templates", code_format=SVG, unique_id="terminal")
    # Spaces at the ends of lines are nothing to see, and editors take them away.
    lines = [line.rstrip() for line in svg.splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def session(folder: Path) -> list[str]:
    """Run what the picture shows; return the lines of the terminal."""
    lines = shown(folder, "alembic-templates try shared")
    set_up(folder)
    lines += ["", "# Four tenants. initech has two books of one title, and titles become unique."]
    lines += shown(folder, "alembic upgrade head")
    with closing(connect(folder / "initech.db")) as database:
        database.execute("DELETE FROM book WHERE id = 2")
        database.commit()
    lines += ["", "# When the second book is gone, the same command does what is left."]
    return [*lines, *shown(folder, "alembic upgrade head"), ""]


def set_up(folder: Path) -> None:
    """Make a fleet of SQLite files at its first revision, and let one tenant fail the second."""
    template = run(folder, "alembic_templates", "path", "multitenant").strip()
    run(folder, "alembic", "init", "-t", template, "migrations")
    ini = (folder / "alembic.ini").read_text(encoding="utf-8")
    for option, value in {
        "sqlalchemy.url": "sqlite:///{tenant}.db",
        "tenants": " ".join(TENANTS),
    }.items():
        ini = ini.replace(f"\n{option} =\n", f"\n{option} = {value}\n")
    (folder / "alembic.ini").write_text(ini, encoding="utf-8")
    columns = 'sa.Column("id", sa.Integer, primary_key=True), sa.Column("title", sa.String)'
    revision(folder, "1", "create books", f'op.create_table("book", {columns})')
    run(folder, "alembic", "-x", "create=true", "upgrade", "head")
    with closing(connect(folder / "initech.db")) as database:
        database.execute("INSERT INTO book (title) VALUES ('Emma'), ('Emma')")
        database.commit()
    index = 'op.create_index("book_title", "book", ["title"], unique=True)'
    revision(folder, "2", "titles are unique", index)


def revision(folder: Path, name: str, message: str, statement: str) -> None:
    """Write a revision file behind the one before it."""
    down = None if name == "1" else str(int(name) - 1)
    text = REVISION.format(
        message=message.capitalize(), revision=name, down=repr(down), statement=statement
    )
    (folder / "migrations" / "versions" / f"{name}.py").write_text(text, encoding="utf-8")


def shown(folder: Path, command: str) -> list[str]:
    """Run a command as a person types it; return the prompt and what it prints."""
    program, *arguments = command.split()
    output = run(folder, program.replace("-", "_"), *arguments, ok=False)
    return [f"$ {command}", *output.splitlines()]


def run(folder: Path, module: str, *arguments: str, ok: bool = True) -> str:
    """Run a command; return what it prints to both streams, in order."""
    program = "alembic_templates.cli" if module == "alembic_templates" else module
    kept = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=folder,
        env={**kept, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=ok,
    )
    return done.stdout


def coloured(line: str) -> Text:
    """Return a line with colours for what the eye looks for first."""
    if line.startswith(("$", "#")):
        return Text(line, style="bold cyan" if line[0] == "$" else "bright_black")
    text = Text(line.removeprefix("INFO  [alembic.env] "))
    text.highlight_regex(r"\bok\b|.*(passed| 0 failed).*", "green")
    text.highlight_regex(r"^ERROR.*|[1-9]\d* failed", "bright_red")
    return text


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
