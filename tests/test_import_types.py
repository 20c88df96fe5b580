"""Rule import_types: a revision runs as it was written, whatever types the models have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from alembic import command
from alembic.config import Config
from conftest import ROOT, Database, Project, postgresql_database, skip
from sqlalchemy import Column, Integer, MetaData, NullPool, Table, create_engine, make_url
from sqlalchemy.exc import OperationalError

# An application's own types: in a package, in one whose name a revision has for something else, and
# types that no repr() makes again.
TYPES = {
    "myapp/__init__.py": "",
    "myapp/types.py": """
        import enum
        from sqlalchemy import ARRAY, Enum, Integer, LargeBinary, Numeric, String
        from sqlalchemy.types import TypeDecorator, UserDefinedType

        class Color(enum.Enum):
            red = 1
            blue = 2

        class Money(TypeDecorator):
            impl = Numeric
            cache_ok = True

            def __init__(self, currency):
                super().__init__(10, 2)
                self.currency = currency

        class Name(TypeDecorator):
            impl = String
            cache_ok = True

        class Paint(TypeDecorator):
            impl = Enum
            cache_ok = True

        class Numbers(TypeDecorator):
            impl = ARRAY
            cache_ok = True

        class Outer:
            class Flag(TypeDecorator):
                impl = Integer
                cache_ok = True

        class Label(UserDefinedType):
            cache_ok = True

            def __init__(self, pattern):
                self.pattern = pattern

            def get_col_spec(self, **_):
                return "varchar(20)"

        class Forgets(Label):
            def __init__(self, text):
                super().__init__(text + "x")

        class Blob(TypeDecorator):
            impl = LargeBinary
            cache_ok = True

            def __init__(self):
                super().__init__()

            def load_dialect_impl(self, dialect):
                from sqlalchemy.dialects import postgresql
                if dialect.name == "postgresql":
                    return dialect.type_descriptor(postgresql.OID())
                return self.impl_instance
    """,
    "myapp/postgresql.py": """
        from sqlalchemy.dialects.postgresql import ARRAY, JSONB

        class Document(JSONB):
            pass

        class Words(ARRAY):
            pass
    """,
    "op/__init__.py": "",
    "op/types.py": """
        from sqlalchemy.types import String, TypeDecorator

        class Code(TypeDecorator):
            impl = String
            cache_ok = True
    """,
    "revision.py": "from op.types import Code as Base\n\nclass Code(Base):\n    cache_ok = True\n",
}

# Columns with their imports.
COLUMNS = {
    "own": (
        "from myapp.types import Name, Color, Money, Paint, Outer\nimport op.types, revision",
        """
        Column("name", Name(30)),
        Column("money", Money("EUR")),
        Column("paint", Paint(Color, native_enum=False, length=9)),
        Column("flag", Outer.Flag()),
        Column("code", op.types.Code(9)),
        Column("other", revision.Code(9)),
        Column("same", Name(30).with_variant(Text(), "oracle")),
        Column("variant", Text().with_variant(Name(30), "postgresql").with_variant(Name(31), "mysql")),
        Column("twice", Name(30).with_variant(Money("EUR"), "postgresql")),
        Column("lower", Name(30), Computed("lower(name)")),
        """,
    ),
    "unknown": ("from myapp.types import Forgets", 'Column("a", Forgets("x")),'),
    "arrays": (
        "from myapp.types import *\nfrom sqlalchemy import ARRAY\nfrom sqlalchemy.dialects import postgresql",
        r"""
        Column("names", ARRAY(Name(30))),
        Column("money", postgresql.ARRAY(Money("EUR"))),
        Column("labels", ARRAY(Label(r"[a-z]+\d(x|y)"), dimensions=2)),
        Column("paints", ARRAY(Paint(Color, native_enum=False))),
        Column("numbers", Numbers(Integer)),
        Column("lists", Text().with_variant(postgresql.ARRAY(Name(3)), "postgresql")),
        Column("plain", ARRAY(Integer)),
        """,
    ),
    "subclasses": (
        "from myapp.postgresql import *\nfrom myapp.types import Name\nfrom sqlalchemy import ARRAY, String",
        """
        Column("a", Document()),
        Column("b", Document(astext_type=String(5))),
        Column("c", Document(none_as_null=True, astext_type=Name(5))),
        Column("d", Document(astext_type=Text())),
        Column("f", ARRAY(Document())),
        Column("g", Words(String(5))),
        Column("h", Text().with_variant(Document(), "postgresql")),
        """,
    ),
    "elsewhere": (
        "from myapp.postgresql import Document",
        'Column("a", Text().with_variant(Document(), "postgresql")),',
    ),
    "sqlmodel": (
        "from sqlmodel import AutoString\nfrom sqlalchemy import ARRAY",
        """
        Column("a", AutoString()),
        Column("b", AutoString(length=5)),
        Column("c", ARRAY(AutoString()).with_variant(AutoString(), "sqlite")),
        Column("d", AutoString(), Computed("lower(b)")),
        """,
    ),
    "pgvector": (
        "from pgvector.sqlalchemy import *\nfrom sqlalchemy import ARRAY, JSON",
        """
        Column("a", Vector(3)),
        Column("b", Vector()),
        Column("c", HALFVEC(3)),
        Column("d", BIT(3)),
        Column("e", SPARSEVEC(3)),
        Column("f", ARRAY(Vector(3))),
        Column("g", JSON().with_variant(Vector(3), "postgresql")),
        Column("h", Vector(3), Computed("a + a", persisted=True)),
        """,
    ),
    "sqlalchemy-utils": (
        "from sqlalchemy_utils import *\nfrom sqlalchemy import ARRAY",
        """
        Column("b", ChoiceType([("a", "A")])),
        Column("b2", ChoiceType([(1, "A")], impl=Integer())),
        Column("d", EmailType()),
        Column("e", IPAddressType()),
        Column("f", JSONType()),
        Column("i", ScalarListType()),
        Column("j", TimezoneType(backend="zoneinfo")),
        Column("l", URLType()),
        Column("m", UUIDType()),
        Column("n", ARRAY(ChoiceType([("a", "A")]))),
        Column("o", EmailType().with_variant(ChoiceType([("a", "A")]), "postgresql")),
        Column("p", EmailType(), Computed("lower(d)")),
        """,
    ),
    "geoalchemy2": (
        "from geoalchemy2 import Geometry\nfrom sqlalchemy import JSON",
        """
        Column("a", Geometry("POINT", spatial_index=False)),
        Column("b", JSON().with_variant(Geometry("POINT", spatial_index=False), "mysql")),
        """,
    ),
    "postgis": (
        "from geoalchemy2 import *\nfrom sqlalchemy import ARRAY, JSON",
        """
        Column("a", Geometry("POINT", srid=4326)),
        Column("b", Geography("POLYGON", srid=4326)),
        Column("c", Geometry()),
        Column("d", Geometry("POINTZ", dimension=3, nullable=False, spatial_index=False)),
        Column("f", ARRAY(Geometry("POINT", spatial_index=False))),
        Column("g", JSON().with_variant(Geometry("POINT", spatial_index=False), "postgresql")),
        Column("h", Geometry("POINT", 4326), Computed("st_centroid(a)", persisted=True)),
        """,
    ),
    "postgis with an index": (
        "from geoalchemy2 import Geometry\nfrom sqlalchemy import Index",
        """
        Column("a", Geometry("POINT", spatial_index=False)),
        Index("thing_a", "a", postgresql_using="gist"),
        """,
    ),
}


@pytest.fixture
def postgis() -> Iterator[Database]:
    """An empty PostgreSQL database with PostGIS, which a server of the PyPI wheel cannot have."""
    given = os.environ.get("TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
    server = make_url(given).set(drivername="postgresql+psycopg")
    query = "SELECT name FROM pg_available_extensions WHERE name = 'postgis'"
    try:
        found = Database("postgresql", server).rows(query)
    except OperationalError as error:
        skip(
            f"No PostgreSQL with PostGIS ({error}): start one on 127.0.0.1:5432, or set "
            "TEST_POSTGRESQL_URL."
        )
        raise
    if not found:
        skip(f"{server} has no PostGIS: install it, on Debian postgresql-VERSION-postgis-3.")
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    for database in postgresql_database(engine):
        database.run("CREATE EXTENSION postgis")
        yield database


def write(project: Project, what: str) -> None:
    """Write the types, and a model with these columns."""
    for name, code in TYPES.items():
        path = project.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(code))
    imports, columns = COLUMNS[what]
    (project.folder / "models.py").write_text(
        f"{imports}\nfrom sqlalchemy import Column, Computed, Integer, MetaData, Table, Text\n"
        "metadata = MetaData()\n"
        f'Table("thing", metadata, Column("id", Integer, primary_key=True), {columns.strip()})\n'
    )


def generate(project: Project, config: Config, rev: str) -> str:
    """Write an autogenerated revision, of which ruff has nothing to say, and return its code."""
    script = command.revision(config, rev, autogenerate=True, rev_id=rev)
    path = Path(script.path)  # type: ignore[union-attr]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", path],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return path.read_text()


def columns(database: Database) -> list[tuple[object, ...]]:
    """Return the names and the types of the columns, as the database tells them."""
    if database.kind == "sqlite":
        return database.rows("SELECT name, type FROM pragma_table_info('thing') ORDER BY name")
    kind = "column_type" if database.kind == "mariadb" else "udt_name"
    return database.rows(
        f"SELECT column_name, {kind} FROM information_schema.columns "
        "WHERE table_name = 'thing' ORDER BY column_name"
    )


@pytest.mark.filterwarnings("ignore:Computed default on")
@pytest.mark.parametrize(
    ("what", "kind"),
    [
        *(("own", kind) for kind in ("sqlite", "postgresql", "mariadb")),
        ("arrays", "postgresql"),
        ("subclasses", "postgresql"),
        ("elsewhere", "sqlite"),
        ("pgvector", "postgresql"),
        *(("sqlmodel", kind) for kind in ("sqlite", "postgresql")),
        ("sqlalchemy-utils", "postgresql"),
        ("geoalchemy2", "mariadb"),
        ("postgis", "postgis"),
    ],
)
def test_a_revision_runs_as_it_was_written(
    what: str, kind: str, project: Project, request: pytest.FixtureRequest
) -> None:
    """Without an edit, upgrade, check and downgrade succeed, and nothing is imported in vain."""
    database: Database = request.getfixturevalue(kind)
    if what == "pgvector":
        database.run("CREATE EXTENSION vector")
    write(project, what)
    if what == "postgis":
        env = project.folder / "migrations" / "env.py"
        hooks = (ROOT / "docs" / "code" / "geoalchemy2_hooks.py").read_text()
        before, mark, after = env.read_text().partition("def configure(")
        env.write_text(f"{before}{hooks}\n\n{mark}{after}")
    not_ours = database.tables()  # such as spatial_ref_sys of PostGIS
    # geoalchemy2 tells MariaDB from MySQL by the URL.
    drivername = "mariadb+pymysql" if what == "geoalchemy2" else database.url.drivername
    url = database.url_for(drivername)
    config = project.config(url)
    generate(project, config, "a1")
    command.upgrade(config, "head")
    command.check(config)
    before = columns(database)
    command.downgrade(config, "base")
    assert database.tables() == {"alembic_version", *not_ours}
    command.upgrade(config, "head")
    assert columns(database) == before

    # The downgrade of a table that goes has the types that the database shows.
    other = MetaData()
    Table("other", other, Column("id", Integer, primary_key=True))
    fewer = project.config(url, target_metadata=other)
    generate(project, fewer, "a2")
    command.upgrade(fewer, "head")
    assert database.tables() == {"alembic_version", "other", *not_ours}
    command.downgrade(fewer, "a1")
    assert len(columns(database)) == len(before)


def test_a_rule_keeps_the_tables_of_postgis(project: Project, postgis: Database) -> None:
    """Without the hooks of GeoAlchemy2, keep_unknown_tables and declared indexes are enough."""
    write(project, "postgis with an index")
    project.set(autogenerate_rules="skip_empty skip_views import_types keep_unknown_tables")
    config = project.config(postgis.text)
    generate(project, config, "a1")
    command.upgrade(config, "head")
    command.check(config)
    assert postgis.tables() == {"alembic_version", "spatial_ref_sys", "thing"}
    assert postgis.rows("SELECT indexname FROM pg_indexes WHERE indexname = 'thing_a'")


def upgrade_of(project: Project, database: Database, what: str) -> str:
    """Return what a new revision with these columns imports, and does in its upgrade."""
    write(project, what)
    code = generate(project, project.config(database.text), "a1")
    return code.partition("import Sequence\n\n")[2].partition("def downgrade")[0]


def test_what_is_written(project: Project, postgresql: Database) -> None:
    """Types have their full name, imports are sorted, and what is SQLAlchemy's is Alembic's."""
    code = upgrade_of(project, postgresql, "own")
    assert code.partition("revision: str")[0] == (
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        "import myapp.types\nimport op.types as op_types_module\n"
        "import revision as revision_module\n\n"
    )
    for line in (
        "sa.Column('id', sa.Integer(), nullable=False)",
        "sa.Column('name', myapp.types.Name(length=30), nullable=True)",
        "sa.Column('money', sa.Numeric(precision=10, scale=2), nullable=True)",
        "sa.Column('flag', myapp.types.Outer.Flag(), nullable=True)",
        "sa.Column('code', op_types_module.Code(length=9), nullable=True)",
        "sa.Column('other', revision_module.Code(length=9), nullable=True)",
        "myapp.types.Name(length=30).with_variant(sa.Text(), 'oracle')",
        ".with_variant(myapp.types.Name(length=31), 'mysql')",
        ".with_variant(myapp.types.Name(length=30), 'postgresql')",
        "myapp.types.Name(length=30).with_variant(sa.Numeric(precision=10, scale=2), 'postgresql')",
    ):
        assert line in code


def test_without_the_rule_nothing_is_imported(project: Project, sqlite: Database) -> None:
    """An owner who names the rules gets those that are named, and Alembic's code."""
    write(project, "sqlmodel")
    config = project.config(sqlite.text)
    config.set_main_option("autogenerate_rules", "skip_empty")
    script = command.revision(config, "x", autogenerate=True)
    code = Path(script.path).read_text()  # type: ignore[union-attr]
    assert "sqlmodel.sql.sqltypes.AutoString(length=5)" in code
    assert "import sqlmodel" not in code


def test_a_type_of_other_databases_is_compared_without_those(
    project: Project, postgresql: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A type of ours for which this database has another is made again, and nothing is said."""
    code = upgrade_of(project, postgresql, "own")
    variant = "sa.Numeric(precision=10, scale=2), 'postgresql'"
    assert f"sa.Column('twice', myapp.types.Name(length=30).with_variant({variant})" in code
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == []


def test_a_type_of_the_programs_own_file_is_written(project: Project, sqlite: Database) -> None:
    """Nobody can import it from there, which is said, and the revision is written."""
    (project.folder / "main.py").write_text(
        dedent(
            f"""
            import sqlalchemy as sa
            from alembic import command
            from alembic.config import Config

            class Point(sa.types.UserDefinedType):
                cache_ok = True
                def get_col_spec(self, **_):
                    return "POINT"

            metadata = sa.MetaData()
            sa.Table("t", metadata, sa.Column("p", Point()))
            config = Config("alembic.ini", attributes={{"target_metadata": metadata}})
            config.set_main_option("sqlalchemy.url", "{sqlite.text}")
            command.revision(config, autogenerate=True, rev_id="a1")
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=project.folder,
        env=project.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (project.folder / "migrations" / "versions").glob("*.py")
    assert "sa.Column('p', __main__.Point()" in path.read_text()


def test_what_cannot_be_made_again_is_said(
    project: Project, sqlite: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A type that its repr() does not make, and that stands for no other, is named in a warning."""
    code = upgrade_of(project, sqlite, "unknown")
    assert "sa.Column('a', myapp.types.Forgets(None), nullable=True)" in code
    assert "import myapp.types\n" in code
    (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warning == (
        "The code myapp.types.Forgets(None) in the new revision does not make the type again, since "
        "its repr() lacks arguments: correct it."
    )
