"""The tables of the database, and its views{{ ", functions and triggers" if cookiecutter.database == "postgresql" else " and triggers" if cookiecutter.database == "mariadb" }}."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import DateTime, ForeignKey, MetaData, Numeric, String, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from {{ cookiecutter.package_name }}.replaceable import ReplaceableObject, register

# Without a convention the database names constraints, and no revision could drop them.
NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

{% if cookiecutter.environment == "multitenant" %}

class SharedBase(DeclarativeBase):
    """What all tenants share; `alembic --name shared` migrates it."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Tenant(SharedBase):
    """A tenant, whose tables stand in a {{ "schema" if cookiecutter.database == "postgresql" else "database" }} of this name."""

    __tablename__ = "tenant"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)

{% endif %}

class Base(DeclarativeBase):
    """What autogenerate compares with the database{{ " of each tenant" if cookiecutter.environment == "multitenant" }}."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Customer(Base):
    """A customer."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)


class Invoice(Base):
    """An invoice to a customer."""

    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), index=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(10, 2))
{% if cookiecutter.database == "mariadb" %}
    updated_at: Mapped[datetime] = mapped_column(DateTime, server_default=func.now())
{% else %}
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now()
    )
{% endif %}


class CustomerTotal(Base):
    """The sum of a customer's invoices, a row of the view below."""

    __tablename__ = "customer_total"
    # Autogenerate makes no table of it.
    __table_args__ = {"info": {"is_view": True}}

    customer_id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))


customer_total = ReplaceableObject(
    "customer_total",
    """
    SELECT customer_id, SUM(amount) AS total
    FROM invoice
    GROUP BY customer_id
    """,
)
{% if cookiecutter.database == "postgresql" %}

set_updated_at = ReplaceableObject(
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

invoice_updated_at = ReplaceableObject(
    "invoice_updated_at",
    "BEFORE UPDATE ON invoice FOR EACH ROW EXECUTE FUNCTION set_updated_at()",
)

register(
    Base.metadata,
    views=[customer_total],
    functions=[set_updated_at],
    triggers=[invoice_updated_at],
)
{% elif cookiecutter.database == "mariadb" %}

invoice_updated_at = ReplaceableObject(
    "invoice_updated_at",
    "BEFORE UPDATE ON invoice FOR EACH ROW SET NEW.updated_at = CURRENT_TIMESTAMP",
)

register(Base.metadata, views=[customer_total], triggers=[invoice_updated_at])
{% else %}

register(Base.metadata, views=[customer_total])
{% endif %}
