"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""
<%
    data = str(
        config.file_config.get(config.config_ini_section, "data_migrations", fallback=None)
        or config.toml_alembic_config.get("data_migrations")
    ).lower() == "true"
    body = f"{upgrades or ''}{downgrades or ''}"

    def unless_used(name):
        return "" if name in body else "  # noqa: F401"
%>
from collections.abc import Sequence

import sqlalchemy as sa${unless_used('sa.')}
% if data:
from alembic import context, op${unless_used('op.')}
% else:
from alembic import op${unless_used('op.')}
% endif
% if imports:
${imports}
% endif

revision: str = ${repr(up_revision)}
down_revision: str | Sequence[str] | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}

% if data:

def upgrade() -> None:
    """Change the schema, then the data where `-x data=true` asks for it."""
    schema_upgrades()
    if context.get_x_argument(as_dictionary=True).get("data") == "true":
        data_upgrades()


def downgrade() -> None:
    """Take the data back where `-x data=true` asks for it, then the schema."""
    if context.get_x_argument(as_dictionary=True).get("data") == "true":
        data_downgrades()
    schema_downgrades()


def schema_upgrades() -> None:
    """Upgrade the schema."""
% if upgrades:
    ${upgrades}
% endif


def schema_downgrades() -> None:
    """Downgrade the schema."""
% if downgrades:
    ${downgrades}
% endif


def data_upgrades() -> None:
    """Upgrade the data."""


def data_downgrades() -> None:
    """Downgrade the data."""
% else:

def upgrade() -> None:
    """Upgrade the schema."""
% if upgrades:
    ${upgrades}
% endif


def downgrade() -> None:
    """Downgrade the schema."""
% if downgrades:
    ${downgrades}
% endif
% endif
