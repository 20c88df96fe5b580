import os

# The ini parser takes % for its own, so that a password with %40 in it is an error without this.
if "DATABASE_URL" in os.environ:
    config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"].replace("%", "%%"))
