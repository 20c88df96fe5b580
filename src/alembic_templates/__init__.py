"""Migration environments for Alembic, and the command that installs them."""
