from sqlalchemy import Connection, text


def create_schema(connection: Connection) -> None:
    """Create the schema of the version table, unless the caller has begun a transaction."""
    if not connection.in_transaction():
        with connection.begin():
            connection.execute(text("CREATE SCHEMA IF NOT EXISTS core"))
