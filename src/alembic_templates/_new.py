"""Start a whole project: cookiecutter bakes the scaffold.

The questions, the defaults of the user's ~/.cookiecutterrc and the hooks that refuse answers which
give no working project are cookiecutter's and the scaffold's own, as with `cookiecutter .` in a
checkout. Here are the checks that cookiecutter does not make, and one place to bake in.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic_templates._catalog import scaffold_folder
from alembic_templates.errors import TemplatesError

try:
    from cookiecutter.config import get_user_config
    from cookiecutter.exceptions import CookiecutterException
    from cookiecutter.main import cookiecutter
    from jinja2 import TemplateError
except ModuleNotFoundError as error:
    raise TemplatesError(
        f"{error.name} is not installed, which makes the project: run "
        "pip install 'alembic-templates[project]'."
    ) from error


def new(folder: Path, given: dict[str, str], *, ask: bool) -> Path:
    """Make a project's folder in a folder and return it.

    `given` answers questions of cookiecutter.json; the others are asked, or have the defaults of
    the user and of cookiecutter.json. The project is made whole or not at all: it is moved here
    from a scratch folder.

    Raises TemplatesError for an answer to no question and one that is none of the choices, if
    nobody answers, if the project's folder exists, and if cookiecutter gives up; SystemExit if a
    hook has, since it has printed the reason itself.
    """
    _refuse_unknown(given)
    # Else it logs a traceback for an answer that the hook refuses.
    logging.getLogger("cookiecutter").setLevel(logging.CRITICAL)
    try:
        # An absolute path, since cookiecutter changes the working directory.
        with TemporaryDirectory(prefix=".alembic-templates-", dir=folder.absolute()) as scratch:
            made = _bake(scratch, given, ask=ask)
            target = folder / made.name
            if os.path.lexists(target):
                raise TemplatesError(f"{target} exists already: choose another project_slug.")
            made.rename(target)
    except EOFError as error:
        raise TemplatesError(
            "There is nobody to ask: give --no-input, and answers such as database=postgresql."
        ) from error
    except (CookiecutterException, TemplateError, OSError, ValueError) as error:
        if "(exit status: 1)" in str(error):
            raise SystemExit(1) from error  # of a hook, which has printed why
        raise TemplatesError(f"No project can be made in {folder}: {_reason(error)}.") from error
    return target


def _bake(scratch: str, given: dict[str, str], *, ask: bool) -> Path:
    """Let cookiecutter make the project in a scratch folder, with all else that it leaves behind.

    That is a file with the answers of each run, which it writes to HOME, and the rendered hooks.
    Raises what cookiecutter does.
    """
    tempfile.tempdir = scratch
    try:
        made = cookiecutter(
            str(scaffold_folder()),
            no_input=not ask,
            extra_context=given,
            output_dir=scratch,
            # A project_slug such as ../x may name what exists: then too the hook is to refuse it.
            overwrite_if_exists=True,
            default_config={**get_user_config(), "replay_dir": scratch},
        )
    finally:
        tempfile.tempdir = None
    return Path(made)


def _refuse_unknown(given: dict[str, str]) -> None:
    """Raise TemplatesError for an answer to no question, and for one that is none of the choices.

    Cookiecutter would ignore the first, and its sentence about the second does not help.
    """
    content = (scaffold_folder() / "cookiecutter.json").read_text(encoding="utf-8")
    questions = {key: value for key, value in json.loads(content).items() if key[0] != "_"}
    for key, value in given.items():
        if key not in questions:
            raise TemplatesError(f"There is no answer {key!r}: expected {', '.join(questions)}.")
        choices = questions[key]
        if isinstance(choices, list) and value not in choices:
            hint = "; mariadb is for MySQL as well" if (key, value) == ("database", "mysql") else ""
            raise TemplatesError(f"{key} is {value!r}: expected {', '.join(choices)}{hint}.")


def _reason(error: Exception) -> str:
    """Return what an error says, for a sentence to quote it.

    The text of an OSError has the scratch folder in it, and that of cookiecutter's error about a
    variable all answers; their shorter attributes have not.
    """
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    return str(text).rstrip(".")
