"""Where the tables of a tenant are: a schema on PostgreSQL, a database elsewhere.

The models and the revisions name no schema. A table's name leads to the tenant on
PostgreSQL by search_path, which the migration lock sets, and on MySQL and MariaDB by
USE. (The first is "Rudimental Schema-Level Multi Tenancy for PostgreSQL Databases" in
Alembic's cookbook.) If a session stayed at one tenant, the next tenant's tables would
be created there. So each run enters its tenant first, and later checks that it is
there.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, Dialect, bindparam, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from .metadata import Models, tables_of
from .migration_lock import reads_only
from .settings import Settings
from .tenant_names import identifier
from .tenants import Tenant

# So many tenants are read by one query. A UNION ALL of thousands of tables takes the
# server minutes to plan, and needs a lock for each table (max_locks_per_transaction).
CHUNK = 200


def quoted(dialect: Dialect, *names: str) -> str:
    """Return names as quoted identifiers of SQL, whatever characters they contain.

    SQLAlchemy's own quote() leaves out the quotes if it sees no need for them.
    """
    quote = dialect.identifier_preparer.initial_quote
    return ".".join(f"{quote}{name.replace(quote, quote * 2)}{quote}" for name in names)


def send(connection: Connection, statement: str) -> Any:
    """Run a statement without parameters, and return its result.

    A tenant's name may contain a %, which a driver would otherwise take for one.
    """
    options = {"no_parameters": True}
    return connection.exec_driver_sql(statement, execution_options=options)


def find_schemas(
    connection: Connection, names: list[str], version_table: str
) -> list[Tenant]:
    """Return the tenants of these names; look for their schemas and version tables.

    A tenant without a version table is known to be at no revision. Raises CommandError
    for a name that the server takes for another one.
    """
    if connection.dialect.name != "postgresql":
        refuse_folded(connection, names)
    tables: dict[str, set[str | None]] = {}
    # Names are compared here, letter by letter: to MySQL, `acme` may equal `Acme`.
    for name, table in schemas_with_tables(connection, names, version_table):
        tables.setdefault(name, set()).add(table)
    found: list[Tenant] = []
    for name in names:
        tenant = Tenant(name, schema=identifier(name), is_missing=name not in tables)
        has_table = version_table in tables.get(name, ())
        heads = None if has_table or tenant.is_missing else ()
        if not tenant.is_missing:
            tenant = replace(tenant, has_table=has_table, heads=heads)
        found.append(tenant)
    return found


def schemas_with_tables(
    connection: Connection, names: list[str], version_table: str
) -> list[Any]:
    """Return rows of a schema's name and its version table's, None if it has none.

    A few schemas are asked for by name. For many, the server returns all that it has,
    since a list of thousands of parameters is slow, and too long for some drivers.
    """
    is_few = len(names) <= CHUNK
    in_names = "{} IN :names" if is_few else "true"
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT nspname, relname FROM pg_namespace n LEFT JOIN pg_class c "
            "ON c.relnamespace = n.oid AND c.relname = :version_table "
            "AND c.relkind IN ('r', 'p') WHERE " + in_names.format("nspname")
        )
    else:
        query = (
            "SELECT schema_name, NULL FROM information_schema.schemata "
            f"WHERE {in_names.format('schema_name')} "
            "UNION ALL SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_name = :version_table "
            f"AND {in_names.format('table_schema')}"
        )
    parameters: dict[str, Any] = {"version_table": version_table}
    statement = text(query)
    if is_few:
        statement = statement.bindparams(bindparam("names", expanding=True))
        parameters["names"] = names
    return list(connection.execute(statement, parameters))


def refuse_folded(connection: Connection, names: list[str]) -> None:
    """Raise CommandError for a name with capitals if MySQL stores names in lower case.

    Two tenants could then be one database (MySQL manual, "Identifier Case
    Sensitivity").
    """
    folded = [name for name in names if name != name.lower()]
    if folded and send(connection, "SELECT @@lower_case_table_names").scalar():
        raise CommandError(
            f"The name {folded[0]!r} cannot be a tenant's: the server takes it for "
            f"{folded[0].lower()!r} (lower_case_table_names)."
        )


def with_versions(
    connection: Connection,
    tenants: list[Tenant],
    version_table: str,
    *,
    in_callers: bool,
) -> list[Tenant]:
    """Return the tenants with the revisions that they are at, by a few queries for all.

    A version that cannot be read stays None: the tenant's own run will say why. In a
    transaction of the caller (`in_callers`) the error is raised, since the transaction
    may be broken.
    """
    names = [each.name for each in tenants if each.has_table]
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    found: dict[str, tuple[str, ...]] = {}
    while chunks:
        some = chunks.pop()
        try:
            found |= read_versions(connection, some, version_table)
        except DBAPIError:
            if in_callers:
                raise
            # A table was dropped, or may not be read: look for it in each half.
            half = len(some) // 2
            chunks += [part for part in (some[:half], some[half:]) if part and half]
        if not in_callers:
            connection.rollback()  # releases the locks of so many tables
    return [replace(each, heads=found.get(each.name, each.heads)) for each in tenants]


def read_versions(
    connection: Connection, names: list[str], version_table: str
) -> dict[str, tuple[str, ...]]:
    """Return the revisions of tenants that have a version table, by one query.

    The tenants are numbered in it, so that no name has to be written as a value.
    """
    query = " UNION ALL ".join(
        f"SELECT {number}, version_num "
        f"FROM {quoted(connection.dialect, name, version_table)}"
        for number, name in enumerate(names)
    )
    versions: dict[str, list[str]] = {name: [] for name in names}
    for number, version in send(connection, query):
        versions[names[number]].append(version)
    return {name: tuple(sorted(heads)) for name, heads in versions.items()}


def creation(dialect: Dialect, name: str) -> str:
    """Return the statement that creates a tenant's schema or database.

    Another run may have created it since it was found to be missing.
    """
    kind = "SCHEMA" if dialect.name == "postgresql" else "DATABASE"
    return f"CREATE {kind} IF NOT EXISTS {quoted(dialect, name)}"


def entrance(dialect: Dialect, name: str, *, creates: bool) -> list[str]:
    """Return the statements with which a script (`--sql`) enters a tenant's schema.

    `creates` says that the first of them creates the schema.
    """
    enter = "SET search_path TO" if dialect.name == "postgresql" else "USE"
    statements = [creation(dialect, name)] if creates else []
    return [*statements, f"{enter} {quoted(dialect, name)}"]


@contextmanager
def entered(
    connection: Connection,
    tenant: Tenant,
    migrations: MigrationContext,
    settings: Settings,
) -> Iterator[None]:
    """Let table names lead to a tenant, until the block ends.

    On MySQL and MariaDB, USE enters the tenant's database. If somebody goes on with the
    connection, its caller or a command that reads, USE returns to the database from
    before; if that fails, the session is ended. A missing database is created here,
    since USE would fail. A missing schema of PostgreSQL is created later, in the
    transaction of the migrations, so that a tenant whose first migration fails leaves
    nothing behind.
    """
    if tenant.schema is None:
        yield
        return
    puts_back = settings.connection is not None or reads_only(migrations, settings)
    with default_schema(connection, tenant.schema, is_shared=puts_back):
        if connection.dialect.name == "postgresql":
            with nothing_prepared(connection):
                yield
        else:
            with used_database(connection, tenant, puts_back=puts_back):
                yield


@contextmanager
def nothing_prepared(connection: Connection) -> Iterator[None]:
    """Let psycopg prepare no statement, until the block ends.

    The session serves many tenants. A prepared statement keeps the types of the schema
    in which it was prepared, such as an enum, and would fail in the next one.
    """
    driver: Any = connection.connection.driver_connection
    before = getattr(driver, "prepare_threshold", None)
    if before is None:
        yield
        return
    driver.prepare_threshold = None
    try:
        yield
    finally:
        driver.prepare_threshold = before


@contextmanager
def used_database(
    connection: Connection, tenant: Tenant, *, puts_back: bool
) -> Iterator[None]:
    """Enter a tenant's database, and with `puts_back` return to the one before.

    Statements of the application after the run would otherwise change a tenant's
    tables.
    """
    in_callers = connection.in_transaction()
    before = current_database(connection) if puts_back else None
    if tenant.is_missing:
        send(connection, creation(connection.dialect, tenant.name))
    try:
        use(connection, tenant.name, in_callers)
        yield
    except BaseException:
        with suppress(Exception):  # use() has ended the session; the first error counts
            use(connection, before, in_callers)
        raise
    with nullcontext() if in_callers else suppress(Exception):
        use(connection, before, in_callers)


def current_database(connection: Connection) -> str | None:
    """Return the database of a MySQL or MariaDB session, None if it has none."""
    name: str | None = send(connection, "SELECT DATABASE()").scalar()
    return name


def use(connection: Connection, database: str | None, in_callers: bool) -> None:
    """Enter a database, unless it is None; end the session if that fails, and raise."""
    if database is None or connection.invalidated:
        return
    try:
        send(connection, f"USE {quoted(connection.dialect, database)}")
        if not in_callers:
            connection.commit()
    except BaseException:
        connection.invalidate()
        if not in_callers:
            connection.rollback()
        raise


@contextmanager
def default_schema(
    connection: Connection, schema: str, *, is_shared: bool
) -> Iterator[None]:
    """Let this connection alone reflect the tenant's tables if no schema is named.

    SQLAlchemy keeps the default schema in the dialect, which belongs to the engine. If
    an application has other connections of the engine (`is_shared`), they would look
    into the tenant, too. So this connection gets a copy of the dialect, for which
    SQLAlchemy has to compile each statement again.
    """
    before = connection.engine, connection.dialect
    name = connection.dialect.default_schema_name
    if is_shared:
        connection.engine = connection.engine.execution_options()  # on the same pool
        connection.dialect = copy.copy(connection.dialect)
        connection.engine.dialect = connection.dialect
    connection.dialect.default_schema_name = schema
    try:
        yield
    finally:
        connection.dialect.default_schema_name = name
        connection.engine, connection.dialect = before


def create_what_is_missing(migrations: MigrationContext, tenant: Tenant) -> None:
    """Create a tenant's schema and version table if they are missing.

    Another run may have created them since; that is no error. It is known whether the
    version table exists, so Alembic is told, which would ask twice for each tenant.
    `_version`, `_has_version_table` and `_ensure_version_table` are private. If Alembic
    renamed the first, each test of a fleet of schemas would fail; if it renamed one of
    the others, a fleet would be slower.
    """
    connection = migrations.connection
    assert connection is not None
    if tenant.schema is None:
        return
    creates_schema = tenant.is_missing and connection.dialect.name == "postgresql"
    # Alembic does the rest itself if it only reads the table, or empties it.
    leaves_table = migrations.purge or migrations.opts.get("dont_mutate")
    creates_table = not (tenant.has_table or leaves_table)
    if creates_schema or creates_table:
        with nullcontext() if connection.in_transaction() else connection.begin():
            if creates_schema:
                send(connection, creation(connection.dialect, tenant.schema))
            if creates_table:
                create = CreateTable(migrations._version, if_not_exists=True)
                connection.execute(create)
    if creates_table or tenant.has_table:
        migrations._has_version_table = lambda: True  # type: ignore[method-assign]
    if creates_table:
        migrations._ensure_version_table = lambda purge=False: None  # type: ignore[method-assign]


def without_schemas(metadata: Models) -> Models:
    """Return the models' metadata; raise CommandError if a table names a schema.

    Such a table is the same for all tenants, and each of them would create it again.
    """
    for table in tables_of(metadata):
        if table.schema:
            raise CommandError(
                f"Table {table.name!r} of the models is in schema {table.schema!r}: "
                "expected tables without one, which each tenant has in its own; give "
                "the tables of a shared schema an environment of their own."
            )
    return metadata


def free_connections(connection: Connection) -> int:
    """Return how many connections the server has free, after this one is closed.

    Those that are reserved for administrators are not free. Others may open connections
    at the same time, so the number is only a guess.
    """
    if connection.dialect.name == "postgresql":
        # PostgreSQL before 16 has no reserved_connections.
        query = (
            "SELECT current_setting('max_connections')::int "
            "- current_setting('superuser_reserved_connections')::int "
            "- coalesce(current_setting('reserved_connections', true), '0')::int "
            "- sum(numbackends)::int + 1 FROM pg_stat_database"
        )
    else:
        is_mariadb = getattr(connection.dialect, "is_mariadb", False)
        schema = "information_schema" if is_mariadb else "performance_schema"
        query = (
            "SELECT @@max_connections - variable_value + 1 "
            f"FROM {schema}.global_status WHERE variable_name = 'Threads_connected'"
        )
    return int(send(connection, query).scalar() or 0)
