from alembic.util import CommandError
from sqlalchemy import text


def run_migrations_online() -> None:
    tenant = context.get_x_argument(as_dictionary=True).get("tenant")
    if not tenant:
        raise CommandError("Name the tenant: alembic -x tenant=NAME upgrade head")
    section = config.get_section(config.config_ini_section, {})
    engine = engine_from_config(section, prefix="sqlalchemy.", poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(
            text("SELECT set_config('search_path', quote_ident(:tenant), false)"),
            {"tenant": tenant},
        )
        # Else Alembic takes the transaction that has begun for yours, and does not commit it.
        connection.commit()
        # Without this, autogenerate looks at the tables of the schema public.
        connection.dialect.default_schema_name = tenant
        context.configure(connection=connection, target_metadata=target_metadata)
        with context.begin_transaction():
            context.run_migrations()
