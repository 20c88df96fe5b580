"""Where the tables of a tenant stand: a schema on PostgreSQL, a database on MySQL and MariaDB.

Whoever asks for a table without naming a schema gets that of the tenant, by `search_path` or `USE`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Dialect, bindparam, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

# One UNION ALL of thousands takes the server minutes to plan, and a lock for each table of it.
CHUNK = 200

# What a revision has set on its session must not meet the next tenant of the same connection.
NEW_SESSION = "DO 'BEGIN RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; DISCARD TEMP; END'"


def quoted(dialect: Dialect, *names: str) -> str:
    """Return names as identifiers of an SQL statement, whatever characters they hold."""
    quote = dialect.identifier_preparer.initial_quote
    return ".".join(f"{quote}{name.replace(quote, quote * 2)}{quote}" for name in names)


def run(connection: Connection, statement: str) -> Any:
    """Run a statement as it is: a driver that gets parameters would take each % for one."""
    return connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def look(
    connection: Connection,
    names: list[str],
    version_table: str,
    *,
    versions: bool,
    callers: bool,
) -> dict[str, tuple[bool, bool, tuple[str, ...] | None]]:
    """Return what is known of the tenants that exist, as the fields of a task.

    They are False for `missing`, whether there is a version table, and its revisions, None where
    they are not asked for, or cannot be read.
    """
    has_table = existing(connection, names, version_table)
    with_table = [name for name in names if has_table.get(name)]
    read: dict[str, tuple[str, ...]] = {}
    if versions:
        read = read_versions(connection, with_table, version_table, callers=callers)
    return {name: (False, has, read.get(name) if has else ()) for name, has in has_table.items()}


def existing(connection: Connection, names: list[str], version_table: str) -> dict[str, bool]:
    """Return the schemas of these names that the server has, and whether each has a version table."""
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT nspname, c.oid IS NOT NULL FROM pg_namespace n LEFT JOIN pg_class c "
            "ON c.relnamespace = n.oid AND c.relname = :version_table AND c.relkind IN ('r', 'p') "
            "WHERE true"
        )
        column = "nspname"
    else:
        query = (
            "SELECT s.schema_name, t.table_name IS NOT NULL FROM information_schema.schemata s "
            "LEFT JOIN information_schema.tables t ON t.table_schema = s.schema_name "
            "AND t.table_name = :version_table WHERE true"
        )
        column = "s.schema_name"
    parameters: dict[str, Any] = {"version_table": version_table}
    statement = text(query)
    if len(names) <= CHUNK:
        statement = text(f"{query} AND {column} IN :names")
        statement = statement.bindparams(bindparam("names", expanding=True))
        parameters["names"] = names
    wanted = set(names)  # to the letter: MySQL takes other cases for the same
    return {
        name: bool(has_table)
        for name, has_table in connection.execute(statement, parameters)
        if name in wanted
    }


def read_versions(
    connection: Connection, names: list[str], version_table: str, *, callers: bool
) -> dict[str, tuple[str, ...]]:
    """Return the revisions of tenants that have a version table, a few hundred of them in a query.

    One that cannot be read is left out: its own run will say why. In a transaction of the caller it
    would end the transaction, and raises.
    """
    found: dict[str, tuple[str, ...]] = {}
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    while chunks:
        some = chunks.pop()
        query = " UNION ALL ".join(
            f"SELECT {number}, version_num FROM {quoted(connection.dialect, name, version_table)}"
            for number, name in enumerate(some)
        )
        versions: dict[str, tuple[str, ...]] = dict.fromkeys(some, ())
        try:
            for number, version in run(connection, query):
                versions[some[number]] += (version,)
        except DBAPIError:
            if callers:
                raise
            # A table is gone or may not be read: it is found among fewer and fewer.
            half = len(some) // 2
            chunks += [part for part in (some[:half], some[half:]) if part and half]
        else:
            found.update({name: tuple(sorted(heads)) for name, heads in versions.items()})
        if not callers:
            connection.rollback()  # gives the locks of so many tables back
    return found


def creation(dialect: Dialect, name: str) -> str:
    """Return the statement that creates a tenant's schema, unless another run has done it."""
    kind = "SCHEMA" if dialect.name == "postgresql" else "DATABASE"
    return f"CREATE {kind} IF NOT EXISTS {quoted(dialect, name)}"


def statements_to_enter(dialect: Dialect, name: str, *, creates: bool) -> list[str]:
    """Return what a script starts with, for the tables of its tenant to stand in the right schema."""
    enter = "SET search_path TO" if dialect.name == "postgresql" else "USE"
    return [
        *([creation(dialect, name)] if creates else []),
        f"{enter} {quoted(dialect, name)}",
    ]


@contextmanager
def entered(connection: Connection, task: Any, *, put_back: bool) -> Iterator[None]:
    """Let names without a schema mean those of a tenant; without a schema, change nothing.

    In a transaction of the caller nothing is committed. What the connection was set to is put back
    where the caller goes on with it; one of our own starts anew for each tenant. A missing database
    is created here, since USE would fail, a missing schema in the transaction of the migrations.
    """
    schema = task.schema
    if schema is None:
        yield
        return
    dialect = connection.dialect
    callers = connection.in_transaction()
    before = current(connection) if put_back else None
    if not put_back and dialect.name == "postgresql":
        run(connection, NEW_SESSION)
    if task.missing and dialect.name != "postgresql":
        run(connection, creation(dialect, schema))
    switch(connection, quoted(dialect, schema), local=callers)
    if not callers:
        connection.commit()
    # What SQLAlchemy reflects without a schema is that of the tenant.
    default_schema, dialect.default_schema_name = dialect.default_schema_name, schema
    try:
        yield
    except BaseException:
        # Where the database has failed, the caller's rollback does it; the error is what counts.
        with suppress(Exception):
            put(connection, before, callers)
        raise
    else:
        put(connection, before, callers)
    finally:
        dialect.default_schema_name = default_schema


def put(connection: Connection, back: str | None, callers: bool) -> None:
    """Set a connection back to what it was set to, unless that is None."""
    if back is not None:
        switch(connection, back, local=callers)
        if not callers:
            connection.commit()


def current(connection: Connection) -> str | None:
    """Return what the connection is set to, in the form that `switch` takes."""
    if connection.dialect.name == "postgresql":
        return str(run(connection, "SELECT current_setting('search_path')").scalar())
    database = run(connection, "SELECT DATABASE()").scalar()
    return None if database is None else quoted(connection.dialect, database)


def switch(connection: Connection, to: str, *, local: bool) -> None:
    """Set the search path, for the transaction where it is `local`, or the database."""
    if connection.dialect.name == "postgresql":
        # Not as a literal, which some servers read with backslashes (standard_conforming_strings).
        statement = text("SELECT set_config('search_path', :path, :local)")
        connection.execute(statement, {"path": to, "local": local})
    else:
        run(connection, f"USE {to}")


def complete(migrations: MigrationContext, task: Any) -> None:
    """Create what a tenant lacks, and spare Alembic the reflection of the version table.

    It would reflect it twice for each tenant. What another run has created by now is no error.
    """
    connection = migrations.connection
    if task.schema is None or connection is None:
        if task.script:
            migrations._ensure_version_table()  # what is replayed takes it for granted
        return
    creates_schema = task.missing and connection.dialect.name == "postgresql"
    # What Alembic does with the table is left to it where it only reads, or deletes what is in it.
    creates_table = not (task.has_table or migrations.purge or migrations.opts.get("dont_mutate"))
    if creates_schema or creates_table:
        with nullcontext() if connection.in_transaction() else connection.begin():
            if creates_schema:
                run(connection, creation(connection.dialect, task.schema))
            if creates_table:
                connection.execute(CreateTable(migrations._version, if_not_exists=True))
    if creates_table or task.has_table:
        migrations._has_version_table = lambda: True  # type: ignore[method-assign]
    if creates_table:
        migrations._ensure_version_table = lambda purge=False: None  # type: ignore[method-assign]


def without_table(version_table: str, include_name: Callable[..., bool]) -> Callable[..., bool]:
    """Return the hook of autogenerate that does not see the version table, besides what it is given.

    Alembic knows it by the schema in which it is addressed, and would drop it from the tenant's.
    """

    def hook(name: str | None, type_: str, parents: Any) -> bool:
        return (type_, name) != ("table", version_table) and include_name(name, type_, parents)

    return hook


def free_connections(connection: Connection) -> int:
    """Return how many connections the server can still open, if this one is closed."""
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT current_setting('max_connections')::int "
            "- current_setting('superuser_reserved_connections')::int "
            "- coalesce(current_setting('reserved_connections', true), '0')::int "  # from 16 on
            "- sum(numbackends)::int + 1 FROM pg_stat_database"
        )
    else:
        query = (
            "SELECT @@max_connections - variable_value + 1 "
            "FROM {}.global_status WHERE variable_name = 'Threads_connected'"
        ).format("information_schema" if is_mariadb(connection) else "performance_schema")
    return int(run(connection, query).scalar() or 0)


def is_mariadb(connection: Connection) -> bool:
    """Tell MariaDB from MySQL, which SQLAlchemy gives one dialect."""
    return bool(getattr(connection.dialect, "is_mariadb", False))
