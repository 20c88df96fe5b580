{% if cookiecutter.environment == "multitenant" %}
"""The migrations of what all tenants share."""

import pytest
from alembic.config import Config
from pytest_alembic.tests import (  # noqa: F401
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)

from {{ cookiecutter.package_name }}.startup import make_config


@pytest.fixture
def alembic_config() -> Config:
    """The configuration of the shared tables' migrations."""
    return make_config("shared")
{% endif %}
