[alembic]
# The database, with each % written as %%. `-x url=…` overrides it. If it is empty, DATABASE_URL of
# the process environment is used.
sqlalchemy.url =

# The metadata of the models as package.module:attribute; separate several by spaces.
target_metadata =

# The folder with env.py and the revisions, and the folder in which Python finds the models
# (with a src layout: %(here)s/src).
script_location = ${script_location}
prepend_sys_path = %(here)s
path_separator = os

# The README in that folder lists the options of this environment, such as lock_timeout. Those of
# Alembic are at https://alembic.sqlalchemy.org/en/latest/tutorial.html#editing-the-ini-file

[loggers]
keys = root,sqlalchemy,alembic

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

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic

[formatter_generic]
format = %(levelname)-5.5s [%(name)s] %(message)s
datefmt = %H:%M:%S
