"""An application with a sync driver that upgrades its database before it serves."""

import logging
import os

from migrations.commands import Migrations
from sqlalchemy import create_engine

# Without a handler, not even the warnings of Alembic are seen.
logging.basicConfig(level=logging.WARNING)
logging.getLogger("alembic").setLevel(logging.INFO)

engine = create_engine(os.environ["DATABASE_URL"])
with engine.begin() as connection:
    Migrations(connection).upgrade()
print("Serving.")
