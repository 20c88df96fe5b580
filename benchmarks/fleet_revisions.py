"""The ten revisions of a fleet: tables, indexes, columns and rows of a small shop."""

# The key of each table.
ID = 'sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)'

REVISIONS = [
    f"""
op.create_table("customers", {ID},
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False))
op.create_index("ix_customers_name", "customers", ["name"])
""",
    f"""
op.create_table("products", {ID},
    sa.Column("sku", sa.String(40), nullable=False),
    sa.Column("title", sa.String(100), nullable=False),
    sa.Column("price", sa.Numeric(10, 2), nullable=False))
op.create_unique_constraint("uq_products_sku", "products", ["sku"])
""",
    f"""
op.create_table("orders", {ID},
    sa.Column("customer_id", sa.BigInteger, sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("placed", sa.DateTime(timezone=True), nullable=False))
op.create_index("ix_orders_customer_id", "orders", ["customer_id"])
op.create_index("ix_orders_placed", "orders", ["placed"])
""",
    f"""
op.create_table("order_lines", {ID},
    sa.Column("order_id", sa.BigInteger, sa.ForeignKey("orders.id"), nullable=False),
    sa.Column("product_id", sa.BigInteger, sa.ForeignKey("products.id"), nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False))
op.create_index("ix_order_lines_order_id", "order_lines", ["order_id"])
op.create_index("ix_order_lines_product_id", "order_lines", ["product_id"])
""",
    """
op.execute("INSERT INTO products (sku, title, price) "
           "VALUES ('a', 'Apple', 1.50), ('b', 'Bread', 3.20), ('c', 'Cheese', 7.90)")
""",
    """
op.add_column("customers", sa.Column("email", sa.String(200)))
op.add_column("customers", sa.Column("phone", sa.String(40)))
op.create_index("ix_customers_email", "customers", ["email"])
""",
    f"""
op.create_table("payments", {ID},
    sa.Column("order_id", sa.BigInteger, sa.ForeignKey("orders.id"), nullable=False),
    sa.Column("amount", sa.Numeric(10, 2), nullable=False),
    sa.Column("paid", sa.DateTime(timezone=True)))
op.create_index("ix_payments_order_id", "payments", ["order_id"])
""",
    """
op.alter_column("customers", "name", type_=sa.String(200), existing_type=sa.String(100))
op.alter_column("products", "price", type_=sa.Numeric(14, 4), existing_type=sa.Numeric(10, 2))
""",
    """
op.add_column("orders", sa.Column("status", sa.String(20)))
op.add_column("orders", sa.Column("note", sa.Text))
op.create_index("ix_orders_status", "orders", ["status"])
""",
    """
op.add_column("order_lines", sa.Column("discount", sa.Numeric(10, 2)))
op.alter_column("order_lines", "quantity", type_=sa.BigInteger, existing_type=sa.Integer)
op.create_index("ix_payments_paid", "payments", ["paid"])
""",
]
