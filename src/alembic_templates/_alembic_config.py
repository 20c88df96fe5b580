"""The Alembic configuration that a verb works on, which `--config` names, and quiet runs of it."""

from __future__ import annotations

import configparser
import logging
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.util import CommandError

from alembic_templates.errors import TemplatesError


def config_of(path: Path, **more: Any) -> Config:
    """Return Alembic's configuration as the alembic command reads it: from one file or from two.

    An alembic.ini leaves to a pyproject.toml in its folder what it does not set itself. `more` is
    passed on to Config. Raises TemplatesError where there is no such file, which Alembic itself
    takes for an empty one, and where it is no ini file.
    """
    if not path.is_file():
        raise TemplatesError(f"{path} does not exist: name the Alembic configuration by --config.")
    more.setdefault("cmd_opts", Namespace(x=None))  # an env.py may read what stands after -x
    if path.suffix == ".toml":
        return Config(toml_file=path, **more)
    toml = path.with_name("pyproject.toml")
    config = Config(path, toml_file=toml if toml.is_file() else None, **more)
    try:
        _ = config.file_config  # which reads the file
    except (configparser.Error, UnicodeDecodeError) as error:
        # The text of the error quotes the line, in which a password may stand.
        lines = [getattr(error, "lineno", None), *dict(getattr(error, "errors", ()))]
        where = ", ".join([type(error).__name__, *(f"line {line}" for line in lines if line)])
        raise TemplatesError(
            f"{path} cannot be read as an ini file ({where}): correct it."
        ) from error
    return config


def raised_in(error: BaseException) -> str:
    """Return the name of the module that has raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"])


def reason(error: BaseException) -> str:
    """Return the first line of an error, with its class unless it is Alembic's own.

    The line is left out where it quotes an option or a URL, in which a password may stand.
    """
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, CommandError):
        return text
    module = raised_in(error)
    if module in {"configparser", "sqlalchemy.engine.url"}:
        text = ""
    if module == "configparser" and isinstance(error, configparser.InterpolationError | ValueError):
        text = "write each % of an option as %%"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """Log nothing of a run up to a level, and keep what env.py and revisions print out of our output.

    What they print goes to standard error.
    """
    logging.disable(level)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(logging.NOTSET)
