"""The projects of the fleet: the same revisions for Alembic and for Django."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL

from benchmarks.projects import indented, render, write_revision

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


def python_file(path: Path, text: str) -> None:
    """Write a Python file, and its folder as a package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(text)


def render_alembic(folder: Path, url: URL, template: str) -> None:
    """Render an environment of a template, with the revisions."""
    render(
        folder,
        template,
        sqlalchemy__url=url.render_as_string(hide_password=False),
        tenants="SELECT nspname FROM pg_namespace WHERE nspname LIKE 't0%' ORDER BY nspname",
    )
    names = [f"r{number:02}" for number in range(1, LAST + 1)]
    for number, (body, _) in enumerate(REVISIONS, start=1):
        write_revision(folder, names[:number], body)


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
