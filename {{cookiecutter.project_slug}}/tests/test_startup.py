{% set is_async = cookiecutter.environment == "asyncio" %}
{% set a = "async " if is_async %}
{% set w = "await " if is_async %}
"""The application's start on databases that are at head and that are not."""

import pytest
from alembic.util import CommandError

from {{ cookiecutter.package_name }}.database import make_engine
from {{ cookiecutter.package_name }}.startup import start


{{ a }}def test_start_refuses_a_database_that_is_not_at_head(empty_url: str) -> None:
    """The application does not start on an empty database, and does after an upgrade."""
    engine = make_engine(empty_url)
    with pytest.raises(CommandError):
        {{ w }}start(engine)
    {{ w }}start(engine, upgrade=True)
    {{ w }}start(engine)
    {{ w }}engine.dispose()
