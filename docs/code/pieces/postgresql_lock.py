import time

from alembic.util import CommandError
from sqlalchemy import text


def run_migrations_online() -> None:
    section = config.get_section(config.config_ini_section, {})
    engine = engine_from_config(section, prefix="sqlalchemy.", poolclass=pool.NullPool)
    # The lock is on a connection of its own, which is in no transaction: whoever waits in one
    # would stop CREATE INDEX CONCURRENTLY in the process that has the lock.
    outside = engine.execution_options(isolation_level="AUTOCOMMIT")
    with outside.connect() as lock, engine.connect() as connection:
        end = time.monotonic() + 60  # seconds
        while not lock.scalar(text("SELECT pg_try_advisory_lock(72616)")):
            if time.monotonic() > end:
                raise CommandError("Another process migrates this database.")
            time.sleep(0.1)
        context.configure(connection=connection, target_metadata=target_metadata)
        with context.begin_transaction():
            context.run_migrations()
