"""Names of tenants that a careless statement would not survive: each gets its own, and nobody else's."""

from __future__ import annotations

import random

import pytest
from conftest import DRIVERS, Database, Project
from test_fleet import Fleet, databases, fleet, schemas

__all__ = ["databases", "fleet", "schemas"]  # fixtures, which are asked for by their names

# What a revision writes: where it has run.
OWN = {"postgresql": "current_schema()", "mariadb": "DATABASE()"}
# Names that a collation, a regular expression or an eye takes for the same.
ALIKE = ["acme", "acme\n", "acme ", "acme\t", "acme\r", "Acme", "ACME", "acmé", "acme\u0301", "acmE\n",
         "a cme", "a\ncme", "a\tcme", "a    cme", "acme\u200b", "acme\u00a0", "аcme", "ß", "ss", "ſs",
         "Å", "\u212b", "A\u030a", "å", "ﬁ", "fi", "İ", "i̇", "ı", "K", "k", "acme.", ".acme", "a.b",
         "acme\\", "acme\\\\", "acme\\n", "acme%", "acme%%", "acme%25", "🦄", "🦄\n"]  # fmt: skip
PIECES = ['"', '""', "'", "''", "`", "\\", "\\'", "%", "%%", "%s", "%(name)s", ":", ":x", "::", ";", "\n",
          "\r\n", "\t", " ", "  ", "--", "-- ", "/*", "*/", "#", "$$", "$1", "?", "{0}", "{tenant}", "${x}", "@",
          "@@x", ",", ".", "(", ")", "[x]", "\x01", "\x08", "\x1a", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff",
          "\ufffe", "\u202e", "é", "e\u0301", "ſ", "漢", "Ω", "🦄", "👩\u200d👧", "select", "USER", "null", "public", "table",
          "drop schema x", "schema_of_the_tenant_0b8e1d", "alembic_version", "A", "z", "9"]  # fmt: skip


def taken(kind: str, name: str) -> bool:
    """Tell whether a server takes a name as it is."""
    if kind == "postgresql":
        return len(name.encode()) <= 63
    folder = "".join(each if each.isalnum() and each.isascii() else "@0000" for each in name)
    whole = len(name) <= 64 and len(folder) <= 255
    return whole and max(name) <= "\uffff" and name[-1] not in " \t\n\v\f\r"


def hostile(found: Fleet, count: int) -> list[str]:
    """Return this many names that the server takes, the same in each run."""
    chance = random.Random(11)
    names = dict.fromkeys(found.names(*ALIKE))
    while sum(taken(found.database.kind, name) for name in names) < count:
        some = chance.choices(PIECES, k=chance.randint(1, 6))
        names.update(dict.fromkeys(found.names("".join(some))))
    return [name for name in names if taken(found.database.kind, name)]


def own_rows(found: Fleet, names: list[str]) -> dict[str, list[str]]:
    """Return what stands in the tables of each tenant, which are quoted here."""
    quote = '"' if found.database.kind == "postgresql" else "`"
    rows: dict[str, list[str]] = {name: [] for name in names}
    with found.database.engine().connect() as connection:
        for start in range(0, len(names), 200):
            some = names[start : start + 200]
            query = " UNION ALL ".join(
                f"SELECT {number}, {column} FROM {quote}{name.replace(quote, quote * 2)}{quote}.{table}"
                for number, name in enumerate(some)
                for table, column in (("own", "name"), ("alembic_version", "version_num"))
            )
            options = {"no_parameters": True}
            for number, value in connection.exec_driver_sql(query, execution_options=options):
                rows[some[number]].append(value)
            connection.rollback()
    return rows


@pytest.mark.parametrize("count", [200, 1000])
def test_hundreds_of_hostile_names(fleet: Fleet, count: int) -> None:
    """Of hundreds of tenants each has its own row and version, and there is no other schema."""
    kind = fleet.database.kind
    (fleet.project.folder / "migrations" / "versions" / "b2.py").unlink()
    fleet.project.revision(
        "a1",
        "op.create_table('own', sa.Column('name', sa.String(100)))\n"
        f"op.execute('INSERT INTO own SELECT {OWN[kind]}')",
        "op.drop_table('own')",
    )
    names = hostile(fleet, count)
    if kind == "mariadb":  # so many databases with files of InnoDB take minutes
        engine = {"init_command": "SET default_storage_engine = MEMORY"}
        url = fleet.database.url.update_query_dict(engine)
        fleet.project.set(
            sqlalchemy__url=url.render_as_string(hide_password=False).replace("%", "%%")
        )
    fleet.list(*names)
    summary = fleet.upgrade("create=true", "jobs=2")
    assert summary == f"{len(names)} upgraded, 0 current, 0 failed"
    assert own_rows(fleet, names) == {name: [name, "a1"] for name in names}
    assert fleet.catalog() == {name: {"own", "alembic_version"} for name in names}
    assert fleet.upgrade() == f"0 upgraded, {len(names)} current, 0 failed"


@pytest.mark.parametrize("way", ["jobs=2", "replay=true", "program"])
def test_names_that_look_alike(fleet: Fleet, way: str) -> None:
    """Names that differ by case, white space or Unicode form alone are upgraded each by itself."""
    names = [name for name in fleet.names(*ALIKE) if taken(fleet.database.kind, name)]
    (fleet.project.folder / "migrations" / "versions" / "b2.py").unlink()
    own = OWN[fleet.database.kind]
    fleet.project.revision("a1", f"op.execute('CREATE TABLE own AS SELECT {own} AS name')")
    fleet.create(*names)
    done: list[str] = []
    for some in (names[::2], names[1::2]):
        if way == "program":
            with fleet.database.engine().connect() as connection:
                fleet.series(connection, *some).upgrade()
        else:
            fleet.list(*some)
            assert fleet.upgrade(way) == f"{len(some)} upgraded, 0 current, 0 failed"
        done += some
        tables = {"own", "alembic_version"}
        assert fleet.catalog() == {name: tables if name in done else set() for name in names}
    assert own_rows(fleet, names) == {name: [name, "a1"] for name in names}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_row_for_each_of_two_that_differ_by_a_newline(schemas: Fleet, jobs: str) -> None:
    """The version of `acme` and a newline is not written to `acme`, with which it shares no lock."""
    schemas.list("acme", "acme\n")
    schemas.create("acme", "acme\n")
    schemas.project.set(jobs=jobs)
    schemas.alembic("-x", "tenant=acme\n", "upgrade", "head")
    assert schemas.catalog()["acme"] == set()
    assert schemas.versions("acme\n") == {"acme\n": "b2"}
    with schemas.database.engine().connect() as connection, connection.begin():
        schemas.series(connection, "acme\n").stamp("a1")  # the lock is kept until the commit
        assert schemas.upgrade("tenant=acme", "lock_timeout=0") == "1 upgraded, 0 current, 0 failed"
    assert schemas.versions("acme", "acme\n") == {"acme": "b2", "acme\n": "a1"}


REFUSED = {
    " ": "it ends with white space, with which the server takes none",
    "\n": "it ends with white space, with which the server takes none",
    "🦄": "it has '🦄', and the server takes no character above U+FFFF in a name",
}


@pytest.mark.parametrize("end", REFUSED)
@pytest.mark.parametrize("by", ["schema", "url"])
def test_name_outside_of_mariadbs_characters(databases: Fleet, end: str, by: str) -> None:
    """What MariaDB takes in no name is refused by name, before any tenant is created."""
    names = databases.names("acme", f"acme{end}")
    databases.list(*names)
    if by == "url":
        url = databases.database.url.set(database="{tenant}")
        databases.project.set(
            sqlalchemy__url=url.render_as_string(hide_password=False).replace("%", "%%"),
            tenants_url=databases.database.text.replace("%", "%%"),
        )
    for args in (["upgrade", "head"], ["current"], ["upgrade", "head", "--sql"]):
        done = databases.alembic("-x", "create=true", *args, ok=False)
        said = f"FAILED: The name {names[1]!r} cannot be a tenant's: {REFUSED[end]}.\n"
        assert done.stdout.endswith(said)
    assert databases.catalog() == {}


def test_tab_in_a_script(fleet: Fleet) -> None:
    """A script, in which Alembic would write a tab as spaces, is refused for a name that has one."""
    names = fleet.names("a\tb", "a    b")
    fleet.list(*names)
    done = fleet.alembic("upgrade", "head", "--sql", ok=False)
    assert f"FAILED: The name {names[0]!r} cannot stand in a script" in done.stdout
    assert "CREATE TABLE" not in done.stdout
    fleet.alembic("-x", f"tenant={names[1]}", "upgrade", "head", "--sql")


@pytest.mark.parametrize("driver", DRIVERS["sqlite"])
def test_file_beside_which_there_is_no_room(
    fleet_project: Project, sqlite: Database, driver: str
) -> None:
    """A name that leaves no room for that of the lock file is refused; the longest other one works."""
    fleet_project.set(sqlalchemy__url=sqlite.url_for(driver, "multitenant"))
    fleet_project.revision("a1", "with op.get_context().autocommit_block():\n    pass")
    folder = fleet_project.folder.parent
    before = set(folder.iterdir())
    longest = "n" * (255 - len(".db-alembic_version.lock"))
    fleet_project.set(tenants=f"ant {longest}x")
    done = fleet_project.alembic("-x", "create=true", "upgrade", "head", ok=False)
    lock = f"{longest}x.db-alembic_version.lock"
    assert done.stdout == (
        f"FAILED: The name {longest + 'x'!r} cannot be a tenant's: the file {lock!r} would have a "
        "name of more than 255 bytes.\n"
    )
    assert set(folder.iterdir()) == before
    fleet_project.set(tenants=longest)
    done = fleet_project.alembic("-x", "create=true", "upgrade", "head")
    assert done.stdout == "1 upgraded, 0 current, 0 failed\n"
    assert set(folder.iterdir()) - before == {folder / f"{longest}.db"}
