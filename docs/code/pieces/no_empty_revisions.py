def skip_empty(_context, _revision, directives) -> None:
    """Write no file if autogenerate has found nothing."""
    # `alembic check` calls this too, and needs the directives; it has no option autogenerate.
    asked = getattr(config.cmd_opts, "autogenerate", False)
    if asked and directives[0].upgrade_ops.is_empty():
        directives.clear()
