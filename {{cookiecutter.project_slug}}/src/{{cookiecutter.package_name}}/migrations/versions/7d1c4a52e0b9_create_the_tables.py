{% set db = cookiecutter.database %}
"""create the tables

Revision ID: 7d1c4a52e0b9
Revises:
Create Date: 2026-11-01 12:00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from {{ cookiecutter.package_name }}.replaceable import ReplaceableObject

view_customer_total = ReplaceableObject(
    "customer_total",
    """
    SELECT customer_id, SUM(amount) AS total
    FROM invoice
    GROUP BY customer_id
    """,
)
{% if db == "postgresql" %}
stored_function_set_updated_at = ReplaceableObject(
    "set_updated_at()",
    """
    RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.updated_at := now();
        RETURN NEW;
    END
    $$
    """,
)
trigger_invoice_updated_at = ReplaceableObject(
    "invoice_updated_at",
    "BEFORE UPDATE ON invoice FOR EACH ROW EXECUTE FUNCTION set_updated_at()",
)
{% elif db == "mariadb" %}
trigger_invoice_updated_at = ReplaceableObject(
    "invoice_updated_at",
    "BEFORE UPDATE ON invoice FOR EACH ROW SET NEW.updated_at = CURRENT_TIMESTAMP",
)
{% endif %}

revision: str = "7d1c4a52e0b9"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Upgrade the schema."""
    op.create_table(
        "customer",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_customer")),
        sa.UniqueConstraint("name", name=op.f("uq_customer_name")),
    )
    op.create_table(
        "invoice",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("customer_id", sa.Integer(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=10, scale=2), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime({{ "timezone=True" if db != "mariadb" }}),
            server_default=sa.text("{{ 'now()' if db != 'sqlite' else '(CURRENT_TIMESTAMP)' }}"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"],
            ["customer.id"],
            name=op.f("fk_invoice_customer_id_customer"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoice")),
    )
    op.create_index(op.f("ix_invoice_customer_id"), "invoice", ["customer_id"])
{% if db == "postgresql" %}
    op.create_function(stored_function_set_updated_at)
{% endif %}
    op.create_view(view_customer_total)
{% if db != "sqlite" %}
    op.create_trigger(trigger_invoice_updated_at)
{% endif %}


def downgrade() -> None:
    """Downgrade the schema."""
{% if db != "sqlite" %}
    op.drop_trigger(trigger_invoice_updated_at)
{% endif %}
    op.drop_view(view_customer_total)
{% if db == "postgresql" %}
    op.drop_function(stored_function_set_updated_at)
{% endif %}
    op.drop_table("invoice")
    op.drop_table("customer")
