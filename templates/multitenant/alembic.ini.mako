[alembic]
# The database, with each % written as %%. `-x url=…` overrides it. If it is empty, DATABASE_URL of
# the process environment is used. Write {tenant} for the name of the tenant if each tenant has a
# database of its own.
sqlalchemy.url =

# The tenants: names separated by spaces, a SELECT statement, or package.module:function.
tenants =

# The metadata of the models as package.module:attribute; separate several by spaces.
target_metadata =

# The folder with env.py and the revisions, and the folder in which Python finds the models
# (with a src layout: %(here)s/src).
script_location = ${script_location}
prepend_sys_path = %(here)s
path_separator = os

# The README in that folder lists the options of this environment, such as jobs. Those of Alembic
# are at https://alembic.sqlalchemy.org/en/latest/tutorial.html#editing-the-ini-file

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

# INFO would log a line for each revision of each tenant.
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
