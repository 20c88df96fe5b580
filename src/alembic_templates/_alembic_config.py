"""The Alembic configuration that a verb works on, which `--config` names, and quiet runs of it."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from alembic.config import Config

from alembic_templates.errors import TemplatesError


def config_of(path: Path, **more: Any) -> Config:
    """Return Alembic's configuration as the alembic command reads it: from one file or from two.

    An alembic.ini leaves to a pyproject.toml in its folder what it does not set itself. `more` is
    passed on to Config. Raises TemplatesError where there is no such file, which Alembic itself
    takes for an empty one.
    """
    if not path.is_file():
        raise TemplatesError(f"{path} does not exist: name the Alembic configuration by --config.")
    more.setdefault("cmd_opts", Namespace(x=None))  # an env.py may read what stands after -x
    if path.suffix == ".toml":
        return Config(toml_file=path, **more)
    toml = path.with_name("pyproject.toml")
    return Config(path, toml_file=toml if toml.is_file() else None, **more)


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
