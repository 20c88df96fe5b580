[alembic]
# The database, with each % written as %%. `-x url=…` comes before it, DATABASE_URL after it.
# {tenant} in it stands for the name of a tenant that has a database of its own.
sqlalchemy.url =

# Names separated by spaces, a SELECT statement, or package.module:function.
tenants =

# The models' metadata as package.module:attribute, several separated by spaces.
target_metadata =

# Where the revisions stand, and where Python finds the models (src layout: %(here)s/src).
script_location = ${script_location}
prepend_sys_path = %(here)s
path_separator = os

# The README in the script location lists the options of this environment, such as jobs;
# Alembic's own are at https://alembic.sqlalchemy.org/en/latest/tutorial.html#editing-the-ini-file

[loggers]
keys = root,sqlalchemy,alembic,revisions

[handlers]
keys = console

[formatters]
keys = generic

[logger_root]
level = WARNING
handlers = console
qualname =

[logger_sqlalchemy]
level = WARNING
handlers =
qualname = sqlalchemy.engine

[logger_alembic]
level = INFO
handlers =
qualname = alembic

# At INFO, a line for each revision of each tenant.
[logger_revisions]
level = WARNING
handlers =
qualname = alembic.runtime.migration

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic

[formatter_generic]
format = %(levelname)-5.5s [%(name)s] %(message)s
datefmt = %H:%M:%S
