"""Prove a template on the user's own database and driver."""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
import time
import uuid
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, NullPool, create_engine, inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from alembic_templates._catalog import Template
from alembic_templates._signals import terminable, undisturbed
from alembic_templates.errors import TemplatesError

T = TypeVar("T")

MODELS = """\
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table

metadata = MetaData()
author = Table(
    "author",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(50), nullable=False, index=True),
)
book = Table(
    "book",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("author_id", ForeignKey("author.id", name="fk_book_author"), nullable=False),
    Column("title", String(100)),
)
"""
_TABLES = {"author", "book"}


def try_template(template: Template, *, url: str | None, keep: Path | None) -> None:
    """Render a template, migrate with it on the database of `url`, and print each step.

    It works in a schema of its own on PostgreSQL, in a database of its own on MySQL and MariaDB and
    in a file of its own on SQLite (two of them for a fleet of two tenants), and removes them at
    the end, also when it is interrupted. `keep` names a new folder for the environment, which is
    scratch otherwise. Raises TemplatesError for the first step that fails.
    """
    default = "sqlite+aiosqlite://" if template.name == "asyncio" else "sqlite://"
    unique = f"alembic_templates_try_{uuid.uuid4().hex[:12]}"
    fleet = [f"{unique}_{number}" for number in (1, 2)] if template.name == "multitenant" else []
    with (
        warnings.catch_warnings(),
        terminable(),
        _scratch(keep) as folder,
        _own_places(_parsed(default if url is None else url), folder, fleet or [unique]) as places,
    ):
        warnings.simplefilter("ignore")  # some drivers pass on each note of the server
        _Trial(template, folder, places, fleet).run()


class _Trial:
    """One environment, and the steps that prove it on one database, or on each tenant's of a fleet."""

    def __init__(
        self, template: Template, folder: Path, places: list[URL], fleet: list[str]
    ) -> None:
        self.template = template
        self.folder = folder
        self.places = places
        self.fleet = fleet
        self.migrations = folder / "migrations"

    @property
    def url(self) -> URL:
        """The URL of the database, or of the fleet: that of files has {tenant} in it."""
        url = self.places[0]
        if self.fleet and url.get_backend_name() == "sqlite":
            return url.set(database=str(self.folder / "{tenant}.db"))
        return url

    def tables(self) -> set[str]:
        """Return the tables, those that each tenant has where they are a fleet."""
        return set.intersection(*(_on(place, _tables) for place in self.places))

    def run(self) -> None:
        began = time.monotonic()
        steps: list[tuple[str, Callable[[], str | None]]] = [
            ("render the template", self.render),
            ("autogenerate a revision", self.autogenerate),
            ("upgrade", self.upgrade),
            ("check", self.check),
            ("a series in a caller's transaction", self.series),
            ("downgrade", self.downgrade),
        ]
        print(f"{self.template.name} on {self.places[0].drivername}")
        for name, step in steps:
            start = time.monotonic()
            print(f"  {name:36}", end="", flush=True)
            try:
                outcome = step() or "ok"
            except (CommandError, SQLAlchemyError, TemplatesError, OSError) as error:
                print("FAILED")
                raise TemplatesError(f"Step {name!r} failed: {_first_line(error)}") from error
            print(f"{outcome}  {time.monotonic() - start:.2f} s")
        print(f"{len(steps)} steps passed in {time.monotonic() - began:.2f} s")

    def config(self, connection: Connection | None = None) -> Config:
        config = Config(self.folder / "alembic.ini", cmd_opts=Namespace(quiet=True, x=None))
        if connection is not None:
            config.attributes["connection"] = connection
            config.attributes["tenant"] = self.fleet[:1] or None
        # The URL goes by way of the Config: a password must not stay in a kept folder.
        text = self.url.render_as_string(hide_password=False)
        config.set_main_option("tenants", " ".join(self.fleet))
        config.set_main_option("sqlalchemy.url", text.replace("%", "%%"))
        config.set_main_option("target_metadata", "models:metadata")
        return config

    def render(self) -> None:
        with redirect_stdout(io.StringIO()):
            command.init(self.config(), str(self.migrations), template=str(self.template.folder))
        (self.folder / "models.py").write_text(MODELS, encoding="utf-8")

    def autogenerate(self) -> None:
        command.revision(self.config(), "create author and book", autogenerate=True)
        _expect(len(list((self.migrations / "versions").glob("*.py"))) == 1, "one revision file")

    def upgrade(self) -> None:
        command.upgrade(self.config(), "head")
        _expect(self.tables() >= _TABLES, f"the tables {sorted(_TABLES)}")

    def check(self) -> None:
        command.check(self.config())

    def series(self) -> str | None:
        def commands(connection: Connection) -> None:
            command.downgrade(self.config(connection), "base")
            _expect(not _tables(connection) & _TABLES, "no tables after the downgrade")
            command.upgrade(self.config(connection), "head")
            command.check(self.config(connection))
            command.downgrade(self.config(connection), "base")

        place = self.places[0]
        if place.get_backend_name() not in {"sqlite", "postgresql"}:
            # Each DDL statement commits, so a rollback has nothing to undo.
            _on(place, commands)
            command.upgrade(self.config(), "head")
            return "ok, without a rollback"
        _on(place, commands, rollback=True)
        _expect(self.tables() >= _TABLES, "the tables after the rollback")
        command.check(self.config())
        return "ok, rolled back, nothing stayed"

    def downgrade(self) -> None:
        command.downgrade(self.config(), "base")
        left = [_on(place, _tables) & _TABLES for place in self.places]
        _expect(not any(left), "no tables after the downgrade")


def _expect(true: bool, what: str) -> None:
    if not true:
        raise TemplatesError(f"The database does not show what is expected: {what}.")


def _tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (SQLAlchemyError, ValueError):
        raise TemplatesError(
            "The --url cannot be parsed: expected dialect+driver://user:password@host/database."
        ) from None


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    """Give a new folder, which goes in the end unless its path was given."""
    if keep is None:
        scratch = tempfile.TemporaryDirectory(prefix="alembic-templates-")
        try:
            yield Path(scratch.name)
        finally:
            with undisturbed():
                scratch.cleanup()
        return
    try:
        is_new = not keep.exists()
        if not is_new and (not keep.is_dir() or any(keep.iterdir())):
            raise TemplatesError(f"{keep} is not an empty folder: name one that does not exist.")
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TemplatesError(
            f"{keep} cannot be made ({error.strerror}): name a folder that can."
        ) from error
    try:
        yield keep.resolve()
    finally:
        if is_new and not any(keep.iterdir()):
            keep.rmdir()  # nothing was rendered


@contextmanager
def _own_places(url: URL, folder: Path, names: list[str]) -> Iterator[list[URL]]:
    """Make places of these names where the URL leads, give URLs that lead there, and remove them."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        files = [folder / f"{name}.db" for name in names]
        for file in files:
            file.touch()
        yield [url.set(database=str(file)) for file in files]
        return
    if backend == "postgresql":
        made, removed = "CREATE SCHEMA", "DROP SCHEMA IF EXISTS {} CASCADE"
        places = [_with_search_path(url, name) for name in names]
    elif backend in {"mysql", "mariadb"}:
        made, removed = "CREATE DATABASE", "DROP DATABASE IF EXISTS {}"
        places = [url.set(database=name) for name in names]
    else:
        raise TemplatesError(
            f"Nothing can be tried on {backend}: expected SQLite, PostgreSQL, MySQL or MariaDB."
        )

    def make(connection: Connection) -> None:
        # Once sent, the statement may be carried out whatever becomes of the connection.
        with undisturbed():
            for name in names:
                connection.exec_driver_sql(f"{made} {name}")
            connection.commit()

    def remove() -> str | None:
        statements = [removed.format(name) for name in names]
        try:
            with undisturbed():
                _on(url, lambda connection: [*map(connection.exec_driver_sql, statements)])
        except Exception as error:  # noqa: BLE001 - whatever it is, the user has to know
            return (
                f"{', '.join(names)} could not be removed ({_first_line(error)}): run "
                f"{'; '.join(statements)} yourself."
            )
        return None

    try:
        _on(url, make)
    except Exception as error:
        raise TemplatesError(
            f"Cannot work on database {url.database!r} on {url.host or 'this host'} with "
            f"{url.drivername} ({_first_line(error)}): check the URL, its driver, and that its "
            f"user may {made}."
        ) from error
    except BaseException:
        remove()
        raise
    try:
        yield places
    except BaseException:
        left = remove()
        if left:
            print(f"error: {left}", file=sys.stderr)
        raise
    left = remove()
    if left:
        raise TemplatesError(left)


def _with_search_path(url: URL, schema: str) -> URL:
    """Return a URL whose connections see one schema alone, in the words of its driver."""
    if url.get_driver_name() == "asyncpg":
        return url.update_query_dict({"dsn": f"postgresql://?search_path={schema}"})
    given = url.query.get("options", ())
    options = [*([given] if isinstance(given, str) else given), f"-csearch_path={schema}"]
    return url.update_query_dict({"options": " ".join(options)})


def _on(url: URL, work: Callable[[Connection], T], *, rollback: bool = False) -> T:
    """Do some work in a transaction on a connection of its own, and commit it or roll it back."""

    def in_transaction(connection: Connection) -> T:
        with connection.begin() as transaction:
            done = work(connection)
            if rollback:
                transaction.rollback()
        return done

    if not url.get_dialect().is_async:
        with create_engine(url, poolclass=NullPool).connect() as connection:
            return in_transaction(connection)

    from sqlalchemy.ext.asyncio import create_async_engine

    async def run() -> T:
        async with create_async_engine(url, poolclass=NullPool).connect() as connection:
            return await connection.run_sync(in_transaction)

    return asyncio.run(run())
