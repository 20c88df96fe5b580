{% set is_async = cookiecutter.environment == "asyncio" %}
{% set a = "async " if is_async %}
{% set w = "await " if is_async %}
{% set S = "AsyncSession" if is_async else "Session" %}
"""The models, in sessions that are rolled back after each test."""

{% if cookiecutter.database != "sqlite" %}
from datetime import datetime
{% endif %}
from decimal import Decimal

import pytest
from sqlalchemy import select
{% if is_async %}
from sqlalchemy.ext.asyncio import AsyncSession
{% else %}
from sqlalchemy.orm import Session
{% endif %}

from {{ cookiecutter.package_name }}.models import Customer, CustomerTotal, Invoice


@pytest.mark.parametrize("run", ["first", "again"])
{{ a }}def test_total_of_a_customer(session: {{ S }}, run: str) -> None:
    """The view sums a customer's invoices, and no test sees those of another."""
    customer = Customer(name="Ada")
    session.add(customer)
    {{ w }}session.flush()
    session.add_all(
        Invoice(customer_id=customer.id, amount=Decimal(amount))
        for amount in ("1.50", "2.25")
    )
    {{ w }}session.commit()
    totals = ({{ w }}session.scalars(select(CustomerTotal))).all()
    assert [total.total for total in totals] == [Decimal("3.75")]
{% if cookiecutter.database != "sqlite" %}


{{ a }}def test_update_of_an_invoice(session: {{ S }}) -> None:
    """The trigger sets the time of an update."""
    customer = Customer(name="Ada")
    session.add(customer)
    {{ w }}session.flush()
    long_ago = datetime.fromisoformat("2000-01-01T00:00:00{{ "+00:00" if cookiecutter.database == "postgresql" }}")
    invoice = Invoice(customer_id=customer.id, amount=Decimal(1), updated_at=long_ago)
    session.add(invoice)
    {{ w }}session.commit()
    invoice.amount = Decimal(2)
    {{ w }}session.commit()
    {{ w }}session.refresh(invoice)
    assert invoice.updated_at > long_ago
{% endif %}
