"""Prove a template on the user's own database and driver.

A trial renders an environment and runs Alembic's own commands in it, so that what is proved is what
a project will do. Only places of its own are worked in: a schema on PostgreSQL, a database on MySQL
and MariaDB, a file on SQLite.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tempfile
import time
import uuid
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, NullPool, create_engine, inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from alembic_templates._catalog import Template
from alembic_templates._signals import terminable, undisturbed
from alembic_templates.errors import TemplatesError

# A column with an index and a foreign key, which autogenerate has to write in the right order.
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

    It works in a place of its own (in two for a fleet of two tenants), which it removes at the end,
    also when it is interrupted. `keep` names a new folder for the environment, which is scratch
    otherwise. Raises TemplatesError for the first step that fails, for a URL that leads nowhere and
    for a folder that is there already.
    """
    if keep is not None and keep.exists():
        raise TemplatesError(f"{keep} exists already: name a folder that does not.")
    default = "sqlite+aiosqlite://" if template.name == "asyncio" else "sqlite://"
    parsed = _parsed(default if url is None else url)
    unique = f"alembic_templates_try_{uuid.uuid4().hex[:12]}"
    fleet = [f"{unique}_{number}" for number in (1, 2)] if template.name == "multitenant" else []
    names = fleet or [unique]
    with (
        warnings.catch_warnings(),
        terminable(),
        tempfile.TemporaryDirectory(prefix="alembic-templates-") as scratch,
        _own_places(parsed, names),
    ):
        warnings.simplefilter("ignore")  # some drivers pass on each note of the server
        folder = Path(scratch) if keep is None else keep.resolve()
        places = [_place(parsed, name, folder) for name in names]
        _Trial(template, folder, places, fleet).run()


@dataclass(frozen=True)
class _Trial:
    """One environment, and the steps that prove it on one database, or on each tenant's of a fleet.

    A step is a method, named by what it runs. It raises where the template fails, and may return
    what is to be said in place of "ok".
    """

    template: Template
    folder: Path
    places: list[URL]
    fleet: list[str]

    def run(self) -> None:
        """Run and print the steps; raise TemplatesError for the first that fails."""
        began = time.monotonic()
        steps: dict[str, Callable[[], str | None]] = {
            "render the template": self.render,
            "autogenerate a revision": self.autogenerate,
            "upgrade": self.upgrade,
            "check": self.check,
            "a series in a caller's transaction": self.series,
            "downgrade": self.downgrade,
        }
        print(f"{self.template.name} on {self.places[0].drivername}")
        for name, step in steps.items():
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
        """Return the configuration for a command, on a connection of the caller's if one is given.

        Such a command works on the first tenant of a fleet alone, whose place the connection is in.
        """
        config = Config(self.folder / "alembic.ini", cmd_opts=Namespace(quiet=True, x=None))
        url = self.places[0]
        if self.fleet and url.get_backend_name() == "sqlite":
            url = url.set(database=str(self.folder / "{tenant}.db"))
        if connection is not None:
            config.attributes["connection"] = connection
            config.attributes["tenant"] = self.fleet[:1] or None
        # The URL goes by way of the Config: a password must not stay in a kept folder.
        text = url.render_as_string(hide_password=False)
        config.set_main_option("tenants", " ".join(self.fleet))
        config.set_main_option("sqlalchemy.url", text.replace("%", "%%"))
        config.set_main_option("target_metadata", "models:metadata")
        return config

    def expect(self, tables: set[str]) -> None:
        """Raise TemplatesError unless each place has these of the models' tables."""
        for place in self.places:
            _on(place, lambda connection: _expect(connection, tables))

    def render(self) -> None:
        """Do what `alembic init` does, and write the models.

        A look at each place makes its file on SQLite: a fleet takes a tenant without one for
        unknown.
        """
        target = str(self.folder / "migrations")
        with redirect_stdout(io.StringIO()):  # it names each file
            command.init(self.config(), target, template=str(self.template.folder))
        (self.folder / "models.py").write_text(MODELS, encoding="utf-8")
        self.expect(set())

    def autogenerate(self) -> None:
        """Write a revision from the models."""
        command.revision(self.config(), "create author and book", autogenerate=True)

    def upgrade(self) -> None:
        """Make the tables, in each tenant's place."""
        command.upgrade(self.config(), "head")
        self.expect(_TABLES)

    def check(self) -> None:
        """Find no difference between the models and the database."""
        command.check(self.config())

    def series(self) -> str:
        """Run several commands in one transaction, as an application may, and roll it back."""
        place = self.places[0]
        undone = place.get_backend_name() in {"sqlite", "postgresql"}

        def commands(connection: Connection) -> None:
            command.downgrade(self.config(connection), "base")
            _expect(connection, set())
            command.upgrade(self.config(connection), "head")
            command.check(self.config(connection))
            command.downgrade(self.config(connection), "base")
            if undone:
                connection.rollback()

        _on(place, commands)
        if not undone:  # since each DDL statement commits there
            command.upgrade(self.config(), "head")
        self.expect(_TABLES)
        self.check()
        return "ok, rolled back, nothing stayed" if undone else "ok, without a rollback"

    def downgrade(self) -> None:
        """Remove the tables again, from each tenant's place."""
        config = self.config()
        config.attributes["tenant"] = self.fleet or None  # all of them, which has to be said
        command.downgrade(config, "base")
        self.expect(set())


def _expect(connection: Connection, tables: set[str]) -> None:
    """Raise TemplatesError unless a connection shows these of the models' tables, and no others."""
    found = _TABLES.intersection(inspect(connection).get_table_names())
    if found != tables:
        raise TemplatesError(
            f"The database has the tables {sorted(found)}, and {sorted(tables)} are expected."
        )


def _parsed(url: str) -> URL:
    """Return a URL; raise TemplatesError, which does not show it, where it cannot be read.

    An @ behind the one that ends the password says that a part of it may stand in the host, in the
    database or in the query. The path of a SQLite file may have one.
    """
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise TemplatesError(
            "The --url cannot be parsed: expected dialect+driver://user:password@host/database."
        ) from None
    is_file = parsed.get_backend_name() == "sqlite" and not (parsed.host or parsed.username)
    # The user and the password as SQLAlchemy tells them from the rest.
    rest = re.sub(r"^[^:/]*(:[^@]*)?@", "", url.partition("://")[2])
    if "@" in rest and not is_file:
        raise TemplatesError(
            "The --url has an @ too many, so that it cannot be told where its password ends: write "
            "the characters @ : / % of a user or password as %40, %3A, %2F and %25."
        )
    return parsed


def _first_line(error: BaseException) -> str:
    """Return what the driver says of an error, without the statement that SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


@contextmanager
def _own_places(url: URL, names: list[str]) -> Iterator[None]:
    """Make places of these names on the server of a URL, and remove them in the end.

    They are removed after an error and an interrupt, too; one that comes while they are made finds
    them made or not. On SQLite there is nothing to make. Raises TemplatesError where they cannot be
    made, or cannot be removed.
    """
    backend = url.get_backend_name()
    if backend == "sqlite":
        yield
        return
    if backend not in {"postgresql", "mysql", "mariadb"}:
        raise TemplatesError(
            f"Nothing can be tried on {backend}: expected SQLite, PostgreSQL, MySQL or MariaDB."
        )
    kind, more = ("SCHEMA", " CASCADE") if backend == "postgresql" else ("DATABASE", "")

    def make(connection: Connection) -> None:
        # Once sent, the statement may be carried out whatever becomes of the connection.
        with undisturbed():
            for name in names:
                connection.exec_driver_sql(f"CREATE {kind} {name}")
            connection.commit()

    with ExitStack() as stack:
        removal = [f"DROP {kind} IF EXISTS {name}{more}" for name in names]
        stack.push(lambda _kind, error, _trace: _remove(url, removal, error))
        try:
            _on(url, make)
        except Exception as error:
            stack.pop_all()  # nothing was made
            raise TemplatesError(
                f"Cannot work on database {url.database!r} on {url.host or 'this host'} with "
                f"{url.drivername} ({_first_line(error)}): check the URL, its driver, and that its "
                f"user may CREATE {kind}."
            ) from error
        yield


def _remove(url: URL, statements: list[str], error: BaseException | None) -> None:
    """Send the statements at the end of a trial, which an error may have ended.

    If they fail, the user has to know them: they stand in the TemplatesError that this raises, or
    on standard error where it would hide the error that came first.
    """
    try:
        with undisturbed():
            _on(url, lambda connection: [*map(connection.exec_driver_sql, statements)])
    except Exception as failure:
        left = TemplatesError(
            f"Removal failed ({_first_line(failure)}): run {'; '.join(statements)} yourself."
        )
        if error is None:
            raise left from failure
        print(f"error: {left}", file=sys.stderr)


def _place(url: URL, name: str, folder: Path) -> URL:
    """Return the URL of a place, with connections that see nothing else, in its driver's words.

    On SQLite it is a file in the folder.
    """
    if url.get_backend_name() == "sqlite":
        return url.set(database=str(folder / f"{name}.db"))
    if url.get_backend_name() != "postgresql":
        return url.set(database=name)
    if url.get_driver_name() == "asyncpg":
        return url.update_query_dict({"dsn": f"postgresql://?search_path={name}"})
    options = [*url.normalized_query.get("options", ()), f"-csearch_path={name}"]
    return url.update_query_dict({"options": " ".join(options)})


def _on(url: URL, work: Callable[[Connection], object]) -> None:
    """Do some work in a transaction on a connection of its own, and commit it.

    The driver may be an async one; the work gets a sync connection in any case, which is what
    Alembic takes. It may commit or roll back itself, as its last action.
    """
    if not url.get_dialect().is_async:
        with create_engine(url, poolclass=NullPool).begin() as connection:
            work(connection)
        return

    from sqlalchemy.ext.asyncio import create_async_engine  # which needs greenlet

    async def run() -> None:
        async with create_async_engine(url, poolclass=NullPool).begin() as connection:
            await connection.run_sync(work)

    asyncio.run(run())
