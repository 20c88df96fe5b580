"""The command `alembic-templates`: it reads the arguments, calls the other modules and prints.

VERBS has a row for each verb: the function that runs it, and the arguments that it takes.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from alembic_templates._catalog import DATABASES, catalog, find
from alembic_templates._diff import diff
from alembic_templates._install import Target, install, states, target_of, uninstall
from alembic_templates.errors import TemplatesError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    It is 0 for success, 1 for an expected failure, of which one sentence is printed, 2 for a
    mistake in the usage (and for what `diff` cannot compare), and 130 after Ctrl-C.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output, such as head, has enough; what is left would be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: Sequence[str] | None) -> int:
    """Run the verb and return the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if "run" not in args:
        parser.print_help(sys.stderr)
        return 2
    # Drivers pass on the server's notes as warnings, which would stand between our own lines.
    logging.basicConfig(level=logging.ERROR)
    try:
        return int(args.run(args))
    except TemplatesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if args.run is _diff else 1  # 1 is that of a difference
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _init(args: argparse.Namespace) -> int:
    """Make an environment in a new folder, and alembic.ini in this one.

    As `alembic init -t NAME DIR` does, with nothing installed before.
    """
    # Imported here since it takes Alembic, which most verbs do without.
    from alembic_templates._init import init

    if args.name not in catalog() and str(args.folder) in catalog():
        raise TemplatesError(
            f"There is no template {args.name!r}: the template comes first, as in "
            f"`alembic-templates init {args.folder} {args.name}`."
        )
    template, options = find(args.name), {"package": args.package, "pyproject": args.pyproject}
    print(init(template, args.folder, args.database, **options))
    return 0


def _list(args: argparse.Namespace) -> int:
    """List the templates and their state in an Alembic.

    The text beside a name is the first line of its README, as in `alembic list_templates`.
    """
    found = states(target_of(args.python or sys.executable))
    width = max(map(len, found))
    for name, state in found.items():
        print(f"{name:{width}}  {find(name).synopsis}  [{state}]")
    return 0


def _install(args: argparse.Namespace) -> int:
    """Put templates where `alembic init -t NAME` finds them."""
    target = target_of(args.python or sys.executable)
    # Who names a Python means it.
    if args.python is None and (other := _other_environment(target)):
        print(
            f"warning: the templates are for {target.python}, which is {other}: install them where "
            "the project has its Alembic, by --python .venv/bin/python, or use alembic-templates "
            "init, which needs no install.",
            file=sys.stderr,
        )
    return _each(args.names or list(catalog()), install, target, force=args.force)


def _other_environment(target: Target) -> str | None:
    """Return what a target is, if it is not where a project's Alembic is, else None."""
    active = os.environ.get("VIRTUAL_ENV")
    if active and os.path.realpath(active) != os.path.realpath(target.prefix):
        return f"not in the active virtual environment {active}"
    # What pipx and uv leave in an environment that they made for one command.
    receipts = ("pipx_metadata.json", "uv-receipt.toml")
    if any(Path(target.prefix, name).is_file() for name in receipts):
        return "in an environment that is for this command alone"
    return None


def _uninstall(args: argparse.Namespace) -> int:
    """Remove installed templates."""
    target = target_of(args.python or sys.executable)
    return _each(args.names or target.installed(), uninstall, target, force=args.force)


def _each(
    names: Sequence[str], work: Callable[[str, Target, bool], str], target: Target, *, force: bool
) -> int:
    """Work on each template and print what was done; return the exit code.

    A template that fails does not stop the others. An unknown name does; one that this version no
    longer has is known as long as it is installed.
    """
    there = target.installed()
    for name in names:
        if name not in there:
            find(name)
    errors: list[str] = []
    for name in names:
        try:
            print(f"{name}: {work(name, target, force)} {target.folder}")
        except TemplatesError as error:
            errors.append(str(error))
    for text in dict.fromkeys(errors):  # a reason that all have is printed once
        print(f"error: {text}", file=sys.stderr)
    return 1 if errors else 0


def _path(args: argparse.Namespace) -> int:
    """Print a template's folder, for `alembic init` without an install.

    Nothing else is printed, so that a shell can insert it.
    """
    print(find(args.name).folder)
    return 0


def _diff(args: argparse.Namespace) -> int:
    """Compare an environment with its template: exit code 0 the same, 1 different, 2 error."""
    found = diff(find(args.name), args.folder)
    sys.stdout.write(found)
    return 1 if found else 0


def _try(args: argparse.Namespace) -> int:
    """Try a template on your database and driver, and remove what the trial has made.

    The trial prints its steps itself, as they pass.
    """
    # Imported here since it takes Alembic and SQLAlchemy, which the other verbs do without.
    from alembic_templates._try import try_template

    try_template(find(args.name), url=args.url, keep=args.keep)
    return 0


def _prune(args: argparse.Namespace) -> int:
    """Delete the files of all revisions before one, which becomes the base.

    They are shown first. The exit code is 1 if the answer to the question is no.
    """
    # Imported here for the same reason.
    from alembic_templates._prune import plan

    pruning = plan(args.revision, args.config)
    base = pruning.base.revision
    if not pruning.before:
        print(f"{base} is the base already: nothing to delete.")
        return 0
    print(f"{base} becomes the base, and these files are deleted:")
    print(*(f"  {script.path}" for script in pruning.before), sep="\n")
    print("A database from before it can no longer be upgraded; build new ones from the models.")
    try:
        sure = args.yes or input("Delete them? [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        raise TemplatesError("There is nobody to ask: give --yes to delete the files.") from None
    if not sure:
        print("Nothing was deleted.")
        return 1
    pruning.run()
    return 0


def _new(args: argparse.Namespace) -> int:
    """Make a whole project around an environment, with models, tests and CI.

    A word with `=` in it is an answer, and another one the folder.
    """
    words = [*args.words, *(args.no_input or [])]
    answers = dict(word.split("=", 1) for word in words if "=" in word)
    folders = [word for word in words if "=" not in word]
    if len(folders) > 1:
        args.usage_error(f"expected one DIR, and answers as key=value: {' '.join(folders)}")
    # Imported here since it takes cookiecutter, which is an extra.
    from alembic_templates._new import new

    made = new(Path(*folders), answers, ask=args.no_input is None)
    print(f"{made} was made: cd {shlex.quote(str(made))}, and run the commands of its README.md.")
    return 0


def _lint(args: argparse.Namespace) -> int:
    """Find what is unsafe in revisions; the exit code is 1 if there is something.

    The findings are printed in the format that is asked for, and below them their number.
    """
    # Imported here for the same reason.
    from alembic_templates._lint import lint

    report = lint(args.config, since=args.since, url=args.url)
    for finding in report.findings:
        print(finding.as_github() if args.format == "github" else finding.as_text())
    print(report.summary)
    return 1 if report.findings else 0


def _rebase(args: argparse.Namespace) -> int:
    """Put one of two branches behind the other, so that there is one head.

    With one head there is nothing to do, and the exit code is 0.
    """
    # Imported here for the same reason.
    from alembic_templates._rebase import rebase

    done = rebase(args.config, onto=args.onto)
    if done is None:
        print("There are no two heads: nothing to do.")
        return 0
    if done.unasked:
        print(f"The database was not asked whether it has these revisions: {done.unasked}")
    print(f"Moved {done.moved} behind {done.behind}: {done.file} was changed.")
    return 0


class Verb(NamedTuple):
    """A verb: its function, whose docstring begins with the help, an example, and its arguments."""

    run: Callable[[argparse.Namespace], int]
    example: str
    arguments: Sequence[argparse.ArgumentParser]


def _argument(*names: str, **settings: Any) -> argparse.ArgumentParser:
    """Return a parser of one argument, for `parents` of the verbs that take it.

    It is given what ArgumentParser.add_argument() takes.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(*names, **settings)
    return parser


_NAME = _argument("name", metavar="NAME", help="a template")
_NAMES = _argument("names", nargs="*", metavar="NAME", help="a template (default: all)")
_PYTHON = _argument(
    "--python",
    metavar="PATH",
    help="the Python whose Alembic is meant (default: this one)",
)
_FORCE = _argument("--force", action="store_true", help="also what is not as it was installed")
_FOLDER = _argument("folder", metavar="DIR", type=Path, help="the environment's folder")
_URL = _argument("--url", help="the database (default: a SQLite file)")
_KEEP = _argument(
    "--keep", metavar="DIR", type=Path, help="render into this new folder, and keep it"
)
_REVISION = _argument("revision", metavar="REVISION", help="the revision that becomes the base")
_CONFIG = _argument(
    "--config",
    metavar="FILE",
    type=Path,
    default=Path("alembic.ini"),
    help="alembic.ini or pyproject.toml (default: alembic.ini)",
)
_YES = _argument("--yes", action="store_true", help="do not ask")
_WORD = "DIR|key=value"
_WORDS = _argument(
    "words",
    nargs="*",
    metavar=_WORD,
    help="where to make the project's folder (default: here), and answers to the questions",
)
# It takes the words after it, since argparse knows no second group of positional arguments.
_NO_INPUT = _argument("--no-input", nargs="*", metavar=_WORD, help="do not ask, take the defaults")

_DATABASE = _argument(
    "--database",
    action="append",
    default=[],
    choices=DATABASES,
    help="leave out what only other databases need (may be repeated)",
)
_PACKAGE = _argument(
    "--package", action="store_true", help="add __init__.py, as alembic init --package does"
)
_PYPROJECT = _argument(
    "--pyproject", action="store_true", help="write the settings to pyproject.toml"
)
_SINCE = _argument(
    "--since", metavar="REVISION", help="leave this revision and those before it out"
)
_DIALECT_URL = _argument("--url", help="a URL of the database's kind (default: the environment's)")
_FORMAT = _argument(
    "--format",
    choices=["text", "github"],
    default="text",
    help="lines of text (default), or annotations of a GitHub workflow",
)
_ONTO = _argument(
    "--onto",
    metavar="REVISION",
    help="a revision of the branch that stays (default: what git's main branch has)",
)

VERBS = [
    Verb(
        _init,
        "init shared migrations --database postgresql",
        [_NAME, _FOLDER, _DATABASE, _PACKAGE, _PYPROJECT],
    ),
    Verb(_list, "list", [_PYTHON]),
    Verb(_install, "install shared --python .venv/bin/python", [_NAMES, _PYTHON, _FORCE]),
    Verb(_uninstall, "uninstall shared", [_NAMES, _PYTHON, _FORCE]),
    Verb(
        _path,
        'path shared    # alembic init -t "$(alembic-templates path shared)" migrations',
        [_NAME],
    ),
    Verb(_diff, "diff shared migrations", [_NAME, _FOLDER]),
    Verb(_try, "try shared --url postgresql+asyncpg://me@localhost/mydb", [_NAME, _URL, _KEEP]),
    Verb(_prune, "prune 1975ea83b712 --config alembic.ini", [_REVISION, _CONFIG, _YES]),
    Verb(_lint, "lint --since 1975ea83b712", [_SINCE, _CONFIG, _DIALECT_URL, _FORMAT]),
    Verb(_rebase, "rebase --onto 1975ea83b712", [_ONTO, _CONFIG]),
    Verb(
        _new,
        "new --no-input project_name='My Shop' environment=asyncio database=postgresql",
        [_WORDS, _NO_INPUT],
    ),
]


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command, whose help ends with the example of each verb."""
    parser = argparse.ArgumentParser(
        prog="alembic-templates",
        description="Migration environments for Alembic that are right the first time.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n  alembic-templates ".join(["examples:", *(verb.example for verb in VERBS)]),
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('alembic-templates')}"
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for verb in VERBS:
        summary = (verb.run.__doc__ or "").partition("\n")[0]
        added = verbs.add_parser(
            verb.example.split()[0],
            help=summary,
            description=summary,
            epilog=f"example: alembic-templates {verb.example}",
            parents=verb.arguments,
        )
        added.set_defaults(run=verb.run, usage_error=added.error)
    return parser


if __name__ == "__main__":
    sys.exit(main())
