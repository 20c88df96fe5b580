## The template of new revisions. These lines with ## are not written into a revision.
## With option data_migrations = true, a revision has functions for the schema and for the
## data ("Conditional Migration Elements" in Alembic's cookbook): a deployment can change
## the schema first and the data later. A revision passes `ruff check` as it is written.
"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""
<%
    import sys
    from itertools import takewhile

    data = str(
        config.file_config.get(config.config_ini_section, "data_migrations", fallback=None)
        # An Alembic that is too old for env.py has no toml_alembic_config. It writes the
        # revision all the same, and env.py then says that it is too old.
        or getattr(config, "toml_alembic_config", {}).get("data_migrations")
    ).lower() == "true"
    body = f"{upgrades or ''}{downgrades or ''}"

    def unless_used(name):
        return "" if name in body else "  # noqa: F401"

    def is_own(line):  # imports of the application come last
        module = sys.modules.get(line.split()[1].partition(".")[0])
        return module and "-packages" not in str(getattr(module, "__file__", ""))

    def is_import(line):
        return line.startswith(("from ", "import "))

    # A tool may add more than imports, such as the text of views: it stays below them.
    added = (imports or "").splitlines()
    first = list(takewhile(lambda line: not line or is_import(line), added))
    lines = [
        f"import sqlalchemy as sa{unless_used('sa.')}",
        f"from alembic import op{'' if data else unless_used('op.')}",
        *filter(is_import, first),
    ]
    lines.sort(key=lambda line: (is_own(line), line.startswith("from"), line))
    own = sum(map(is_own, lines))
%>
from collections.abc import Sequence

% for number, line in enumerate(lines, own):
% if own and number == len(lines):

% endif
${line}
% endfor
% if added[len(first):]:

${"\n".join(added[len(first):])}
% endif

revision: str = ${repr(up_revision)}
down_revision: str | Sequence[str] | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}

% if data:

def upgrade() -> None:
    """Change the schema, then the data if `-x data=true` asks for it."""
    schema_upgrades()
    if op.get_context().opts["data"]:
        data_upgrades()


def downgrade() -> None:
    """Take the data back if `-x data=true` asks for it, then the schema."""
    if op.get_context().opts["data"]:
        data_downgrades()
    schema_downgrades()

% endif

def ${"schema_upgrades" if data else "upgrade"}() -> None:
    """Upgrade the schema."""
% if upgrades:
    ${upgrades}
% endif


def ${"schema_downgrades" if data else "downgrade"}() -> None:
    """Downgrade the schema."""
% if downgrades:
    ${downgrades}
% endif
% if data:


def data_upgrades() -> None:
    """Upgrade the data."""


def data_downgrades() -> None:
    """Downgrade the data."""
% endif
