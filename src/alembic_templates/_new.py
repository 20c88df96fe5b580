"""Start a whole project: bake the scaffold with cookiecutter."""

from __future__ import annotations

import json
import logging
import os
import runpy
import sys
import tempfile
import warnings
from pathlib import Path

from alembic_templates._catalog import scaffold_folder
from alembic_templates._signals import postponed, terminable
from alembic_templates.errors import TemplatesError

try:
    from cookiecutter.config import get_user_config
    from cookiecutter.exceptions import CookiecutterException, UndefinedVariableInTemplate
    from cookiecutter.generate import generate_context
    from cookiecutter.main import cookiecutter
    from cookiecutter.prompt import prompt_for_config
    from jinja2 import TemplateError
except ModuleNotFoundError as error:
    raise TemplatesError(
        f"{error.name} is not installed, which makes the project: run "
        "pip install 'alembic-templates[project]'."
    ) from error


def new(folder: Path, given: dict[str, str], *, ask: bool) -> Path:
    """Make a project's folder in a folder and return it.

    `given` answers questions of cookiecutter.json; the others are asked, or have the defaults of
    the user's ~/.cookiecutterrc and of cookiecutter.json. Raises TemplatesError where that gives no
    working project; then, and after an interrupt, nothing is left behind.
    """
    if not os.path.isdir(folder):  # Path.is_dir() raises where it may not look
        raise TemplatesError(
            f"{folder} is no folder: expected the one to make the project's folder in."
        )
    _check(given)
    if ask and not sys.stdin.isatty():
        raise TemplatesError(
            "There is nobody to ask: give --no-input, and answers such as database=postgresql."
        )
    answers = _answers(given, ask=ask)
    # The hook's own check, so that a project_slug such as a/b makes no folder first.
    hook = runpy.run_path(str(scaffold_folder() / "hooks" / "pre_gen_project.py"))
    problem: str | None = hook["problem"](answers)
    if problem:
        raise TemplatesError(problem)
    target = folder / answers["project_slug"]
    if os.path.lexists(target):
        raise TemplatesError(f"{target} exists already: choose another project_slug or folder.")
    _bake(answers, target)
    return target


def _check(given: dict[str, str]) -> None:
    """Raise TemplatesError unless the questions exist and the choices are among theirs."""
    content = (scaffold_folder() / "cookiecutter.json").read_text(encoding="utf-8")
    questions = {key: value for key, value in json.loads(content).items() if key[:1] != "_"}
    for key, value in given.items():
        if key not in questions:
            raise TemplatesError(f"There is no answer {key!r}: expected {', '.join(questions)}.")
        choices = questions[key]
        if isinstance(choices, list) and value not in choices:
            raise TemplatesError(f"{key} is {value!r}: expected {', '.join(choices)}.")


def _answers(given: dict[str, str], *, ask: bool) -> dict[str, str]:
    """Return the answer to each question, as cookiecutter itself finds them."""
    questions = str(scaffold_folder() / "cookiecutter.json")
    with warnings.catch_warnings(record=True) as caught:
        context = generate_context(questions, _defaults(), given)
    for warning in caught:  # a default of the user's that is no choice here
        print(f"warning: {warning.message}", file=sys.stderr)
    try:
        answers = prompt_for_config(context, no_input=not ask)
    except EOFError as error:
        raise TemplatesError("An answer is missing: give one, or --no-input.") from error
    except (UndefinedVariableInTemplate, TemplateError) as error:
        raise TemplatesError(
            f"An answer cannot be rendered ({_reason(error)}): expected one without braces."
        ) from error
    return {key: str(value) for key, value in answers.items() if key[:1] != "_"}


def _defaults() -> dict[str, object]:
    """Return the answers that the user has given once for all of cookiecutter's templates."""
    try:
        defaults = dict(get_user_config()["default_context"] or {})
    except (CookiecutterException, OSError, ValueError, TypeError, AttributeError) as error:
        # The last three come of a file that is no text, or YAML of another structure.
        raise TemplatesError(
            f"The configuration of cookiecutter cannot be read ({_reason(error)}): correct "
            "~/.cookiecutterrc, or the file that COOKIECUTTER_CONFIG names."
        ) from error
    # YAML has `project_name:` for null, which no question takes.
    return {key: value for key, value in defaults.items() if not isinstance(value, bool | None)}


def _bake(answers: dict[str, str], target: Path) -> None:
    """Make the project with these answers, whole or not at all."""
    # It would log the traceback of a hook that fails.
    logging.getLogger("cookiecutter").setLevel(logging.CRITICAL)
    parent = os.path.abspath(target.parent)  # cookiecutter works in folders of its own
    temporary = tempfile.tempdir
    try:
        with (
            terminable(),
            tempfile.TemporaryDirectory(prefix=".alembic-templates-", dir=parent) as scratch,
        ):
            tempfile.tempdir = scratch  # cookiecutter leaves the rendered hooks there
            # A hook that is interrupted would print a traceback.
            with postponed():
                made = cookiecutter(
                    str(scaffold_folder()),
                    no_input=True,
                    extra_context=answers,
                    output_dir=scratch,
                    # The user's defaults are among the answers, and HOME may be read-only.
                    default_config={"replay_dir": scratch},
                )
            os.rename(made, target)
    except (CookiecutterException, OSError) as error:
        raise TemplatesError(
            f"{target} cannot be made ({_reason(error)}): give a DIR and a project_slug that can."
        ) from error
    finally:
        tempfile.tempdir = temporary


def _reason(error: Exception) -> str:
    """Return what an error says, for a sentence to quote it."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    return str(text).rstrip(".")
