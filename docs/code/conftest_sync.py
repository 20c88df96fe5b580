"""A database that the migrations have built, and a session whose test leaves nothing behind."""

import os
from collections.abc import Iterator

import pytest
from migrations.commands import Migrations
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The database of TEST_DATABASE_URL, migrated once for all tests."""
    engine = create_engine(os.environ["TEST_DATABASE_URL"])
    with engine.begin() as connection:
        Migrations(connection).upgrade()
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session in a transaction that is rolled back; its commits are savepoints."""
    with engine.connect() as connection, connection.begin() as transaction:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
