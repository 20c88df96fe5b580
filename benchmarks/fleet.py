"""Time the upgrade of a fleet of tenants, a schema each of a PostgreSQL database, six ways.

Run it with `tox -e bench`, or `python benchmarks/fleet.py --tenants 50 --ways abc` for less of it.
It needs psql, and a server on which the user of TEST_POSTGRESQL_URL is a superuser; it makes a
database of its own there and drops it. Way f needs django-tenants as well, and is left out without.

The ways take turns in one run. Times are wall seconds of whole processes, start-up included; the
tenants are brought back, the catalogs vacuumed and the result checked outside of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, NullPool, create_engine, make_url

from alembic_templates._catalog import find

SERVER = os.environ.get("TEST_POSTGRESQL_URL", "postgresql+psycopg://postgres@127.0.0.1/postgres")
# A process for each tenant takes too long for all of them: its time on these is scaled.
SAMPLE = 50
# Five of the revisions, and the table of the versions.
TABLES = 6
# What a revision inserts.
ROWS = 3
IDLE_RUNS = 3

# The body of each revision for Alembic, and the operations that do the same for Django.
REVISIONS = [
    (
        """
op.create_table(
    "customers",
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
)
op.create_index("ix_customers_name", "customers", ["name"])
""",
        """
migrations.CreateModel(
    "Customer",
    [
        ("id", models.BigAutoField(primary_key=True, serialize=False)),
        ("name", models.CharField(max_length=100)),
        ("created", models.DateTimeField()),
    ],
    options={"db_table": "customers"},
),
migrations.AddIndex("Customer", models.Index(fields=["name"], name="ix_customers_name")),
""",
    ),
    (
        """
op.create_table(
    "products",
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("sku", sa.String(40), nullable=False),
    sa.Column("title", sa.String(100), nullable=False),
    sa.Column("price", sa.Numeric(10, 2), nullable=False),
)
op.create_unique_constraint("uq_products_sku", "products", ["sku"])
""",
        """
migrations.CreateModel(
    "Product",
    [
        ("id", models.BigAutoField(primary_key=True, serialize=False)),
        ("sku", models.CharField(max_length=40)),
        ("title", models.CharField(max_length=100)),
        ("price", models.DecimalField(max_digits=10, decimal_places=2)),
    ],
    options={"db_table": "products"},
),
migrations.AddConstraint(
    "Product", models.UniqueConstraint(fields=["sku"], name="uq_products_sku")
),
""",
    ),
    (
        """
op.create_table(
    "orders",
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("customer_id", sa.BigInteger, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("placed", sa.DateTime(timezone=True), nullable=False),
)
op.create_index("ix_orders_customer_id", "orders", ["customer_id"])
op.create_index("ix_orders_placed", "orders", ["placed"])
""",
        """
migrations.CreateModel(
    "Order",
    [
        ("id", models.BigAutoField(primary_key=True, serialize=False)),
        ("customer", models.ForeignKey("shop.Customer", models.DO_NOTHING)),
        ("placed", models.DateTimeField()),
    ],
    options={"db_table": "orders"},
),
migrations.AddIndex("Order", models.Index(fields=["placed"], name="ix_orders_placed")),
""",
    ),
    (
        """
op.create_table(
    "order_lines",
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("order_id", sa.BigInteger, sa.ForeignKey("orders.id"), nullable=False),
    sa.Column("product_id", sa.BigInteger, sa.ForeignKey("products.id"), nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
)
op.create_index("ix_order_lines_order_id", "order_lines", ["order_id"])
op.create_index("ix_order_lines_product_id", "order_lines", ["product_id"])
""",
        """
migrations.CreateModel(
    "OrderLine",
    [
        ("id", models.BigAutoField(primary_key=True, serialize=False)),
        ("order", models.ForeignKey("shop.Order", models.DO_NOTHING)),
        ("product", models.ForeignKey("shop.Product", models.DO_NOTHING)),
        ("quantity", models.IntegerField()),
    ],
    options={"db_table": "order_lines"},
),
""",
    ),
    (
        """
op.execute(
    "INSERT INTO products (sku, title, price) "
    "VALUES ('a', 'Apple', 1.50), ('b', 'Bread', 3.20), ('c', 'Cheese', 7.90)"
)
""",
        """
migrations.RunSQL(
    "INSERT INTO products (sku, title, price) "
    "VALUES ('a', 'Apple', 1.50), ('b', 'Bread', 3.20), ('c', 'Cheese', 7.90)"
),
""",
    ),
    (
        """
op.add_column("customers", sa.Column("email", sa.String(200)))
op.add_column("customers", sa.Column("phone", sa.String(40)))
op.create_index("ix_customers_email", "customers", ["email"])
""",
        """
migrations.AddField("Customer", "email", models.CharField(max_length=200, null=True)),
migrations.AddField("Customer", "phone", models.CharField(max_length=40, null=True)),
migrations.AddIndex("Customer", models.Index(fields=["email"], name="ix_customers_email")),
""",
    ),
    (
        """
op.create_table(
    "payments",
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("order_id", sa.BigInteger, sa.ForeignKey("orders.id"), nullable=False),
    sa.Column("amount", sa.Numeric(10, 2), nullable=False),
    sa.Column("paid", sa.DateTime(timezone=True)),
)
op.create_index("ix_payments_order_id", "payments", ["order_id"])
""",
        """
migrations.CreateModel(
    "Payment",
    [
        ("id", models.BigAutoField(primary_key=True, serialize=False)),
        ("order", models.ForeignKey("shop.Order", models.DO_NOTHING)),
        ("amount", models.DecimalField(max_digits=10, decimal_places=2)),
        ("paid", models.DateTimeField(null=True)),
    ],
    options={"db_table": "payments"},
),
""",
    ),
    (
        """
op.alter_column(
    "customers", "name", type_=sa.String(200), existing_type=sa.String(100), existing_nullable=False
)
op.alter_column(
    "products",
    "price",
    type_=sa.Numeric(14, 4),
    existing_type=sa.Numeric(10, 2),
    existing_nullable=False,
)
""",
        """
migrations.AlterField("Customer", "name", models.CharField(max_length=200)),
migrations.AlterField("Product", "price", models.DecimalField(max_digits=14, decimal_places=4)),
""",
    ),
    (
        """
op.add_column("orders", sa.Column("status", sa.String(20)))
op.add_column("orders", sa.Column("note", sa.Text))
op.create_index("ix_orders_status", "orders", ["status"])
""",
        """
migrations.AddField("Order", "status", models.CharField(max_length=20, null=True)),
migrations.AddField("Order", "note", models.TextField(null=True)),
migrations.AddIndex("Order", models.Index(fields=["status"], name="ix_orders_status")),
""",
    ),
    (
        """
op.add_column("order_lines", sa.Column("discount", sa.Numeric(10, 2)))
op.alter_column(
    "order_lines",
    "quantity",
    type_=sa.BigInteger,
    existing_type=sa.Integer,
    existing_nullable=False,
)
op.create_index("ix_payments_paid", "payments", ["paid"])
""",
        """
migrations.AddField(
    "OrderLine", "discount", models.DecimalField(max_digits=10, decimal_places=2, null=True)
),
migrations.AlterField("OrderLine", "quantity", models.BigIntegerField()),
migrations.AddIndex("Payment", models.Index(fields=["paid"], name="ix_payments_paid")),
""",
    ),
]
LAST = len(REVISIONS)

# The env.py of Alembic's cookbook for a schema per tenant, in a loop where no tenant is given.
COOKBOOK = """\
from logging.config import fileConfig

from alembic import context
from sqlalchemy import engine_from_config, pool, text

config = context.config
fileConfig(config.config_file_name)


def run_migrations_online():
    connectable = engine_from_config(
        config.get_section(config.config_ini_section),
        prefix="sqlalchemy.",
        poolclass=pool.NullPool,
    )
    given = context.get_x_argument(as_dictionary=True).get("tenant")
    with connectable.connect() as connection:
        if given:
            tenants = [given]
        else:
            tenants = connection.scalars(text(config.get_main_option("tenants"))).all()
        for tenant in tenants:
            connection.execute(text(f'SET search_path TO "{tenant}"'))
            connection.commit()
            connection.dialect.default_schema_name = tenant
            context.configure(connection=connection, target_metadata=None)
            with context.begin_transaction():
                context.run_migrations()


run_migrations_online()
"""

DJANGO_SETTINGS = """\
import os

SECRET_KEY = "benchmark"
DATABASES = {{"default": {database!r}}}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
# The backend of django-tenants imports contenttypes; no table of it is made for the tenants.
SHARED_APPS = ["django_tenants", "django.contrib.contenttypes", "customers"]
TENANT_APPS = ["shop"]
INSTALLED_APPS = [*SHARED_APPS, *TENANT_APPS]
MIGRATION_MODULES = {{"contenttypes": None, "customers": None}}
TENANT_MODEL = "customers.Tenant"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TENANT_MULTIPROCESSING_MAX_PROCESSES = int(os.environ.get("FLEET_JOBS", "1"))
"""

DJANGO_TENANTS = """\
from django_tenants.models import TenantMixin


class Tenant(TenantMixin):
    class Meta:
        db_table = "tenants"
"""

DJANGO_MODELS = """\
from django.db import models


class Customer(models.Model):
    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=200)
    created = models.DateTimeField()
    email = models.CharField(max_length=200, null=True)
    phone = models.CharField(max_length=40, null=True)

    class Meta:
        db_table = "customers"
        indexes = [
            models.Index(fields=["name"], name="ix_customers_name"),
            models.Index(fields=["email"], name="ix_customers_email"),
        ]


class Product(models.Model):
    id = models.BigAutoField(primary_key=True)
    sku = models.CharField(max_length=40)
    title = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=14, decimal_places=4)

    class Meta:
        db_table = "products"
        constraints = [models.UniqueConstraint(fields=["sku"], name="uq_products_sku")]


class Order(models.Model):
    id = models.BigAutoField(primary_key=True)
    customer = models.ForeignKey(Customer, models.DO_NOTHING)
    placed = models.DateTimeField()
    status = models.CharField(max_length=20, null=True)
    note = models.TextField(null=True)

    class Meta:
        db_table = "orders"
        indexes = [
            models.Index(fields=["placed"], name="ix_orders_placed"),
            models.Index(fields=["status"], name="ix_orders_status"),
        ]


class OrderLine(models.Model):
    id = models.BigAutoField(primary_key=True)
    order = models.ForeignKey(Order, models.DO_NOTHING)
    product = models.ForeignKey(Product, models.DO_NOTHING)
    quantity = models.BigIntegerField()
    discount = models.DecimalField(max_digits=10, decimal_places=2, null=True)

    class Meta:
        db_table = "order_lines"


class Payment(models.Model):
    id = models.BigAutoField(primary_key=True)
    order = models.ForeignKey(Order, models.DO_NOTHING)
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    paid = models.DateTimeField(null=True)

    class Meta:
        db_table = "payments"
        indexes = [models.Index(fields=["paid"], name="ix_payments_paid")]
"""

DJANGO_MANAGE = """\
import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
"""

# Writes the SQL of the first migrations, by which tenants are brought to them.
DJANGO_SQL = """\
import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

connection.set_schema("t00001")
with connection.schema_editor(collect_sql=True) as editor:
    editor.create_model(MigrationRecorder.Migration)
print("\\n".join(editor.collected_sql))
for number in range(1, int(sys.argv[1]) + 1):
    name = f"{number:04}_r{number:02}"
    call_command("sqlmigrate", "shop", name)
    print(f"INSERT INTO django_migrations (app, name, applied) VALUES ('shop', '{name}', now());")
"""


@dataclass(frozen=True)
class Process:
    """A process to run: its arguments, its folder and what it gets in its environment."""

    arguments: list[str]
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)


@dataclass
class Fleet:
    """The tenants of the scratch database, and the projects that upgrade them."""

    folder: Path
    url: URL
    engine: Engine
    tenants: list[str]
    # The tool that made the tables, and the number of its revisions that all tenants have.
    state: tuple[str, int] | None = None
    sql: dict[tuple[str, int, int], str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """A way to upgrade the fleet: the processes to run for a workload, as many at once as jobs."""

    title: str
    processes: Callable[[Fleet, int, int], list[Process]]
    tool: str = "alembic"
    takes_jobs: bool = True
    sample: int | None = None


def run(process: Process) -> str:
    """Run a process to its end, and return its standard output."""
    done = subprocess.run(
        process.arguments,
        cwd=process.folder,
        env={**os.environ, **process.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        output = (done.stdout + done.stderr)[-4000:]
        raise SystemExit(f"{' '.join(process.arguments)} has failed:\n{output}")
    return done.stdout


def timed(processes: list[Process], at_once: int) -> float:
    """Run processes, some at once, and return the wall seconds that they took."""
    with ThreadPoolExecutor(at_once) as pool:
        start = time.perf_counter()
        list(pool.map(run, processes))
        return time.perf_counter() - start


def indented(text: str, spaces: int) -> str:
    """Indent the lines of a text."""
    return "".join(f"{' ' * spaces}{line}\n" for line in text.strip().splitlines())


def python_file(path: Path, text: str) -> None:
    """Write a Python file, and its folder as a package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(text)


def set_options(ini: Path, **options: str) -> None:
    """Set options of the section [alembic]."""
    text = ini.read_text()
    for name, value in options.items():
        text = re.sub(rf"(?m)^{re.escape(name)} *=.*\n", "", text)
        line = f"[alembic]\n{name} = {value.replace('%', '%%')}\n"
        text = text.replace("[alembic]\n", line, 1)
    ini.write_text(text)


def render_alembic(folder: Path, url: URL, template: str) -> None:
    """Render an environment of a template, with the revisions."""
    with contextlib.redirect_stdout(io.StringIO()):
        command.init(Config(folder / "alembic.ini"), str(folder / "migrations"), template=template)
    set_options(
        folder / "alembic.ini",
        **{"sqlalchemy.url": url.render_as_string(hide_password=False)},
        tenants="SELECT nspname FROM pg_namespace WHERE nspname LIKE 't0%' ORDER BY nspname",
    )
    for number, (body, _) in enumerate(REVISIONS, start=1):
        (folder / f"migrations/versions/r{number:02}.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n\n"
            f'revision = "r{number:02}"\n'
            f"down_revision = {f'r{number - 1:02}' if number > 1 else None!r}\n\n\n"
            f"def upgrade():\n{indented(body, 4)}"
        )


def render_django(folder: Path, url: URL) -> None:
    """Render a Django project, with the migrations that are equal to the revisions."""
    host = url.query.get("host", url.host or "")
    database = {
        "ENGINE": "django_tenants.postgresql_backend",
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": str(url.password or ""),
        "HOST": host,
        "PORT": url.port or "",
    }
    folder.mkdir()
    (folder / "settings.py").write_text(DJANGO_SETTINGS.format(database=database))
    (folder / "manage.py").write_text(DJANGO_MANAGE)
    (folder / "sql.py").write_text(DJANGO_SQL)
    python_file(folder / "customers/models.py", DJANGO_TENANTS)
    python_file(folder / "shop/models.py", DJANGO_MODELS)
    for number, (_, operations) in enumerate(REVISIONS, start=1):
        before = [("shop", f"{number - 1:04}_r{number - 1:02}")] if number > 1 else []
        python_file(
            folder / f"shop/migrations/{number:04}_r{number:02}.py",
            "from django.db import migrations, models\n\n\n"
            "class Migration(migrations.Migration):\n"
            f"    dependencies = {before}\n"
            f"    operations = [\n{indented(operations, 8)}    ]\n",
        )


def alembic(fleet: Fleet, project: str, *arguments: str) -> Process:
    """Return the process of an Alembic command in a project."""
    return Process([sys.executable, "-m", "alembic", *arguments], fleet.folder / project)


def render_sql(fleet: Fleet, tool: str, first: int, last: int) -> str:
    """Return the SQL for one tenant that goes from a number of revisions to another, of a tool."""
    key = (tool, first, last)
    if key not in fleet.sql:
        if tool == "django":
            process = Process([sys.executable, "sql.py", str(last)], fleet.folder / "django")
        else:
            target = f"r{first:02}:r{last:02}" if first else f"r{last:02}"
            process = alembic(fleet, "stock", "upgrade", target, "--sql")
        fleet.sql[key] = run(process)
    return fleet.sql[key]


def replay(fleet: Fleet, sql: str, jobs: int) -> list[Process]:
    """Return the processes of psql that run some SQL for every tenant, which are divided evenly."""
    uri = fleet.url.set(drivername="postgresql").render_as_string(hide_password=False)
    processes = []
    for number in range(min(jobs, len(fleet.tenants))):
        script = fleet.folder / f"replay{number}.sql"
        script.write_text(
            "".join(
                f'SET search_path TO "{tenant}";\n{sql}\n' for tenant in fleet.tenants[number::jobs]
            )
        )
        arguments = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(script), uri]
        processes.append(Process(arguments, fleet.folder))
    return processes


def by_psql(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Replay the SQL of the upgrade by psql."""
    return replay(fleet, render_sql(fleet, "alembic", done, LAST), jobs)


def by_template(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by the template `multitenant`."""
    return [alembic(fleet, "multitenant", "-x", f"jobs={jobs}", "upgrade", "head")]


def by_template_replay(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by the template `multitenant`, which replays the SQL of one tenant."""
    options = ["-x", f"jobs={jobs}", "-x", "replay=true"]
    return [alembic(fleet, "multitenant", *options, "upgrade", "head")]


def by_loop(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by one process of the cookbook's environment."""
    return [alembic(fleet, "cookbook", "upgrade", "head")]


def by_processes(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by a process of the cookbook's environment for each of some tenants."""
    return [
        alembic(fleet, "cookbook", "-x", f"tenant={tenant}", "upgrade", "head")
        for tenant in fleet.tenants[:SAMPLE]
    ]


def by_django(fleet: Fleet, done: int, jobs: int) -> list[Process]:
    """Upgrade by the multiprocessing executor of django-tenants."""
    arguments = ["manage.py", "migrate_schemas", "--tenant", "--executor=multiprocessing"]
    environ = {"FLEET_JOBS": str(jobs)}
    return [Process([sys.executable, *arguments], fleet.folder / "django", environ)]


WAYS = {
    "a": Way("psql, the SQL of one tenant", by_psql),
    "b": Way("multitenant", by_template),
    "c": Way("multitenant, replay=true", by_template_replay),
    "d": Way("the cookbook's env.py in a loop", by_loop, takes_jobs=False),
    "e": Way("a process for each tenant", by_processes, sample=SAMPLE),
    "f": Way("django-tenants, multiprocessing", by_django, tool="django"),
}

# The title of each, and the number of revisions that the tenants have before.
WORKLOADS = {
    "empty": ("all tenants from empty", 0),
    "last": ("the last revision only", LAST - 1),
    "nothing": ("nothing to do", LAST),
}

# What is hoped for of the ratio of two ways: at most (<) or at least (>) a number of times.
GOALS: dict[str, dict[str, tuple[str, float]]] = {
    "empty": {
        "b/a": ("<", 2),
        "c/a": ("<", 1.25),
        "e/b": (">", 15),
        "e/c": (">", 30),
        "f/b": (">", 4),
        "f/c": (">", 7),
    },
    "last": {"b/a": ("<", 3)},
}
RATIOS = ("b/a", "c/a", "e/b", "e/c", "f/b", "f/c")
IDLE_GOAL = 2

# The tables, the relations and the types of the columns of each tenant.
SHAPES = """
SELECT nspname,
    count(DISTINCT c.oid) FILTER (WHERE relkind = 'r'),
    count(DISTINCT c.oid),
    md5(string_agg(concat_ws(' ', relname, attname, format_type(atttypid, atttypmod), attnotnull),
        ',' ORDER BY relname, attnum))
FROM pg_namespace n
JOIN pg_class c ON relnamespace = n.oid
JOIN pg_attribute ON attrelid = c.oid AND attnum > 0
WHERE starts_with(nspname, 't0')
GROUP BY nspname
"""

# The seconds of each round, by the workload, the way and the number of jobs.
Times = dict[tuple[str, str, int], list[float]]


def execute(engine: Engine, statements: list[str], chunk: int) -> None:
    """Run statements, a chunk of them in each transaction."""
    for first in range(0, len(statements), chunk):
        with engine.begin() as connection:
            for statement in statements[first : first + chunk]:
                connection.exec_driver_sql(statement)


def names(count: int) -> list[str]:
    """Return the names of that many tenants."""
    return [f"t{number:05}" for number in range(1, count + 1)]


def drop_tenants(fleet: Fleet) -> None:
    """Drop the schemas of the tenants that there are."""
    with fleet.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 't0')"
        ).scalars()
        statements = [f'DROP SCHEMA "{tenant}" CASCADE' for tenant in found]
    execute(fleet.engine, statements, 50)
    fleet.state = None


def settle(fleet: Fleet) -> None:
    """Vacuum the catalogs and write everything out, so that a run does not pay for one before."""
    with fleet.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        catalogs = connection.exec_driver_sql(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared"
        ).scalars()
        connection.exec_driver_sql(f"VACUUM (ANALYZE) {', '.join(catalogs)}")
        connection.exec_driver_sql("CHECKPOINT")


def bring_back(fleet: Fleet, tool: str, done: int) -> None:
    """Bring every tenant to a number of revisions of a tool, unless all are there."""
    if fleet.state != (tool, done):
        drop_tenants(fleet)
        execute(fleet.engine, [f'CREATE SCHEMA "{tenant}"' for tenant in fleet.tenants], 50)
        if done:
            jobs = os.cpu_count() or 1
            timed(replay(fleet, render_sql(fleet, tool, 0, done), jobs), jobs)
        fleet.state = (tool, done)
    settle(fleet)


def check(fleet: Fleet, tool: str, tenants: list[str]) -> None:
    """Raise SystemExit unless the tenants have all revisions, their rows and the same tables."""
    last, table = f"r{LAST:02}", "alembic_version"
    newest = "max(version_num)"
    if tool == "django":
        last, table = f"{LAST:04}_r{LAST:02}", "django_migrations"
        newest = "max(name)"
    with fleet.engine.connect() as connection:
        for tenant in tenants:
            found = connection.exec_driver_sql(
                f'SELECT {newest}, (SELECT count(*) FROM "{tenant}".products) '
                f'FROM "{tenant}".{table}'
            ).one()
            if tuple(found) != (last, ROWS):
                raise SystemExit(f"Tenant {tenant} is at {found}: expected {(last, ROWS)}.")
        shapes = {name: tuple(shape) for name, *shape in connection.exec_driver_sql(SHAPES)}
    # All tenants of all ways are to be like the first.
    shape = fleet.shapes.setdefault(tool, shapes[tenants[0]])
    odd = [tenant for tenant in tenants if shapes[tenant] != shape]
    if odd or shape[0] != TABLES:
        raise SystemExit(f"Tenants {odd[:5]} differ: {[shapes[t] for t in odd[:5]]}, not {shape}.")


def measure(fleet: Fleet, way: Way, done: int, jobs: int) -> float:
    """Return the seconds that a way takes for the whole fleet."""
    bring_back(fleet, way.tool, done)
    processes = way.processes(fleet, done, jobs)
    seconds = timed(processes, jobs)
    tenants = fleet.tenants[: way.sample]
    whole = len(tenants) == len(fleet.tenants) or done == LAST
    check(fleet, way.tool, fleet.tenants if whole else tenants)
    fleet.state = (way.tool, LAST) if whole else None
    return seconds * len(fleet.tenants) / len(tenants)


def measure_all(fleet: Fleet, given: argparse.Namespace) -> Times:
    """Return the times of all ways, which take turns."""
    times: Times = {}
    # The first run in a new database is the fastest of all, whatever way it is.
    measure(fleet, WAYS["a"], 0, os.cpu_count() or 1)
    for number, workload, jobs in product(range(given.rounds), given.workloads, given.jobs):
        for letter in given.ways:
            way = WAYS[letter]
            if not way.takes_jobs and jobs != given.jobs[0]:
                continue
            title, done = WORKLOADS[workload]
            seconds = measure(fleet, way, done, jobs)
            times.setdefault((workload, letter, jobs), []).append(seconds)
            progress = f"round {number + 1}, {title}, jobs {jobs}, way {letter}: {seconds:.2f} s"
            print(progress, file=sys.stderr, flush=True)
    return times


def measure_idle(fleet: Fleet, count: int) -> tuple[float, float]:
    """Return the seconds of `alembic --help`, and of an upgrade of tenants that are at head."""
    drop_tenants(fleet)
    statements = [
        f'CREATE SCHEMA "{tenant}"; CREATE TABLE "{tenant}".alembic_version (version_num '
        "varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY); "
        f"INSERT INTO \"{tenant}\".alembic_version VALUES ('r{LAST:02}')"
        for tenant in names(count)
    ]
    execute(fleet.engine, statements, 200)
    settle(fleet)
    asked = [alembic(fleet, "multitenant", "--help")]
    idle = by_template(fleet, LAST, 1)
    runs = [(timed(asked, 1), timed(idle, 1)) for _ in range(IDLE_RUNS)]
    return statistics.median(a for a, _ in runs), statistics.median(b for _, b in runs)


def report(times: Times, given: argparse.Namespace) -> None:
    """Print a table and the ratios for each workload."""
    for workload in given.workloads:
        medians = {
            letter: {
                jobs: statistics.median(found)
                for (name, way, jobs), found in times.items()
                if (name, way) == (workload, letter)
            }
            for letter in given.ways
        }
        print(
            f"\n{WORKLOADS[workload][0]}: {given.tenants} tenants, seconds, "
            f"median of {given.rounds} rounds"
        )
        print(f"  {'jobs':35}" + "".join(f"{jobs:>9}" for jobs in given.jobs) + "     best")
        best = {}
        for letter, found in medians.items():
            jobs = min(found, key=lambda each: found[each])
            best[letter] = found[jobs]
            cells = [f"{found[each]:9.2f}" if each in found else f"{'':9}" for each in given.jobs]
            where = f"jobs {jobs}" if WAYS[letter].takes_jobs else "-"
            print(f"  {letter}  {WAYS[letter].title:32}{''.join(cells)}     {where}")
        for ratio in RATIOS:
            over, under = ratio.split("/")
            if over in best and under in best:
                value = best[over] / best[under]
                print(f"  {ratio} {value:8.2f} times{goal(workload, ratio, value)}")


def goal(workload: str, ratio: str, value: float) -> str:
    """Return the words for the goal of a ratio, none where it has none."""
    sign, wanted = GOALS.get(workload, {}).get(ratio, ("", 0.0))
    if not sign:
        return ""
    met = value <= wanted if sign == "<" else value >= wanted
    words = "at most" if sign == "<" else "at least"
    return f"  (goal: {words} {wanted:g} times, {'met' if met else 'missed'})"


def report_idle(count: int, asked: float, idle: float) -> None:
    """Print the times of an upgrade that has nothing to do."""
    more = idle - asked
    print(f"\nnothing to do: {count} tenants, way b, jobs 1, median of {IDLE_RUNS} runs")
    print(f"  alembic --help       {asked:8.2f} s")
    print(
        f"  alembic upgrade head {idle:8.2f} s, {more:.2f} s more  "
        f"(goal: at most {IDLE_GOAL} s more, {'met' if more <= IDLE_GOAL else 'missed'})"
    )


def machine(engine: Engine, ways: str) -> str:
    """Return the line that tells what the times were taken on."""
    with engine.connect() as connection:
        server = connection.exec_driver_sql("SHOW server_version").scalar()
    packages = ["alembic", "sqlalchemy", *(["django", "django-tenants"] if "f" in ways else [])]
    found = [f"{package} {version(package)}" for package in packages]
    return (
        f"{os.cpu_count()} CPUs, {platform.platform()}, Python {platform.python_version()}, "
        f"{', '.join(found)}, PostgreSQL {server}"
    )


@contextlib.contextmanager
def scratch_database() -> Iterator[tuple[URL, Engine]]:
    """Make a database, and drop it at the end."""
    url = make_url(SERVER)
    name = f"fleet_{os.getpid()}"
    server = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name), create_engine(url.set(database=name), poolclass=NullPool)
    finally:
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def render_all(fleet: Fleet, given: argparse.Namespace) -> None:
    """Render the projects that the ways need."""
    render_alembic(fleet.folder / "stock", fleet.url, "generic")
    render_alembic(fleet.folder / "cookbook", fleet.url, "generic")
    (fleet.folder / "cookbook/migrations/env.py").write_text(COOKBOOK)
    if set(given.ways) & set("bc"):
        render_alembic(fleet.folder / "multitenant", fleet.url, str(given.template))
    if "f" in given.ways:
        render_django(fleet.folder / "django", fleet.url)
        with fleet.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE public.tenants (id bigint GENERATED BY DEFAULT AS IDENTITY "
                "PRIMARY KEY, schema_name varchar(63) NOT NULL UNIQUE)"
            )
            for tenant in fleet.tenants:
                connection.exec_driver_sql(
                    f"INSERT INTO public.tenants (schema_name) VALUES ('{tenant}')"
                )


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tenants", type=int, default=500, help="how many, at most 9999")
    parser.add_argument("--jobs", default="1,2,4,8", help="numbers of jobs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="how often (%(default)s)")
    parser.add_argument("--ways", default="".join(WAYS), help="letters of them (%(default)s)")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="(%(default)s)")
    parser.add_argument("--idle-tenants", type=int, default=5000, help="0 for none (%(default)s)")
    parser.add_argument("--template", type=Path, help="another folder of the template")
    given = parser.parse_args()
    given.jobs = [int(number) for number in given.jobs.split(",")]
    given.workloads = given.workloads.split(",")
    if not set(given.ways) <= set(WAYS) or not set(given.workloads) <= set(WORKLOADS):
        parser.error(f"expected some of the ways {''.join(WAYS)}, of {', '.join(WORKLOADS)}")
    if not 1 <= given.tenants <= 9999 or given.idle_tenants > 9999:
        parser.error("expected 1 to 9999 tenants")
    if set(given.ways) & set("bc"):
        given.template = (given.template or find("multitenant").folder).resolve()
    if "f" in given.ways and not find_spec("django_tenants"):
        print("Way f is left out: django-tenants is not installed.")
        given.ways = given.ways.replace("f", "")
    return given


def main() -> None:
    """Print a table for each workload, and the time of an upgrade that has nothing to do."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The benchmark was ended."))
    with tempfile.TemporaryDirectory() as name, scratch_database() as (url, engine):
        print(machine(engine, given.ways), flush=True)
        fleet = Fleet(Path(name), url, engine, names(given.tenants))
        render_all(fleet, given)
        report(measure_all(fleet, given), given)
        if "b" in given.ways and given.idle_tenants:
            report_idle(given.idle_tenants, *measure_idle(fleet, given.idle_tenants))


if __name__ == "__main__":
    main()
