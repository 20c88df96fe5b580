# The alembic command has options of a command line; a program that runs migrations has none, and
# has set up its logging already.
if config.config_file_name is not None and config.cmd_opts is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)
