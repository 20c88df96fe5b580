{% if cookiecutter.environment == "multitenant" %}
"""create the tenants

Revision ID: 2b90c6e1f4a8
Revises:
Create Date: 2026-11-01 12:00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "2b90c6e1f4a8"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Upgrade the schema."""
    op.create_table(
        "tenant",
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tenant")),
    )


def downgrade() -> None:
    """Downgrade the schema."""
    op.drop_table("tenant")
{% endif %}
