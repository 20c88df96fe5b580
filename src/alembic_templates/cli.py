"""The command `alembic-templates`."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from alembic_templates._catalog import catalog, find
from alembic_templates._diff import diff
from alembic_templates._install import install, target_of, uninstall
from alembic_templates.errors import TemplatesError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for an expected failure, 2 for usage."""
    parser = _parser()
    # parse_args would refuse the answers of `new DIR --no-input key=value`, after an option.
    args, more = parser.parse_known_args(argv)
    if args.run is _new and not any(word.startswith("-") for word in more):
        args.words += more
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    # Drivers pass on the server's notes as warnings, which would stand between our own lines.
    logging.basicConfig(level=logging.ERROR)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except TemplatesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if run is _diff else 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _list(args: argparse.Namespace) -> int:
    target = target_of(args.python)
    templates = catalog()
    width = max(map(len, templates))
    for name, template in templates.items():
        print(f"{name:{width}}  {template.synopsis}  [{target.state(template)}]")
    return 0


def _install(args: argparse.Namespace) -> int:
    names = args.names or list(catalog())
    target = target_of(args.python)
    for name in names:
        find(name)
    for name in names:
        before = install(name, target, force=args.force)
        done = {"installed": "is up to date", "not installed": "installed"}.get(before, "replaced")
        print(f"{name}: {done} in {target.folder}")
    return 0


def _uninstall(args: argparse.Namespace) -> int:
    target = target_of(args.python)
    names = args.names or target.installed()
    for name in names:
        if name not in target.installed():
            find(name)
    for name in names:
        done = uninstall(name, target, force=args.force)
        print(f"{name}: {'removed from' if done else 'is not installed in'} {target.folder}")
    return 0


def _path(args: argparse.Namespace) -> int:
    print(find(args.name).folder)
    return 0


def _diff(args: argparse.Namespace) -> int:
    found = diff(find(args.name), args.folder)
    sys.stdout.write(found)
    return 1 if found else 0


def _try(args: argparse.Namespace) -> int:
    # Imported here since it takes Alembic and SQLAlchemy, which the other verbs do without.
    from alembic_templates._try import try_template

    try_template(find(args.name), url=args.url, keep=args.keep)
    return 0


def _prune(args: argparse.Namespace) -> int:
    from alembic_templates._prune import plan

    pruning = plan(args.revision, args.config)
    base = pruning.base.revision
    if not pruning.before:
        print(f"{base} is the base already: nothing to delete.")
        return 0
    print(f"{base} becomes the base, and these files are deleted:")
    for script in pruning.before:
        print(f"  {script.path}")
    print(
        "A database from before it can no longer be upgraded; a new one is built from the models."
    )
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
    answers = dict(word.split("=", 1) for word in args.words if "=" in word)
    folders = [word for word in args.words if "=" not in word]
    if len(folders) > 1:
        args.usage_error(f"expected one DIR, and answers as key=value: {' '.join(folders)}")
    # Imported here since it takes cookiecutter, which is an extra.
    from alembic_templates._new import new

    made = new(Path(*folders), answers, ask=not args.no_input)
    print(f"{made} was made: cd {shlex.quote(str(made))}, and run the commands of its README.md.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alembic-templates",
        description="Migration environments for Alembic that are right the first time.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('alembic-templates')}"
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    examples = ["examples:"]

    def verb(
        run: Callable[[argparse.Namespace], int], summary: str, example: str
    ) -> argparse.ArgumentParser:
        name = example.split()[0]
        epilog = f"example: alembic-templates {example}"
        added = verbs.add_parser(name, help=summary, description=summary, epilog=epilog)
        added.set_defaults(run=run)
        examples.append(f"  alembic-templates {example}")
        return added

    def add_python(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--python",
            default=sys.executable,
            metavar="PATH",
            help="the Python whose Alembic is meant (default: this one)",
        )

    def add_names(added: argparse.ArgumentParser, default: str) -> None:
        added.add_argument(
            "names", nargs="*", metavar="NAME", help=f"a template (default: {default})"
        )
        add_python(added)

    add_python(verb(_list, "List the templates and their state in an Alembic.", "list"))

    added = verb(
        _install,
        "Put templates where `alembic init -t NAME` finds them.",
        "install shared --python .venv/bin/python",
    )
    add_names(added, "all")
    added.add_argument(
        "--force", action="store_true", help="replace what was modified or not installed by this"
    )

    added = verb(_uninstall, "Remove installed templates.", "uninstall shared")
    add_names(added, "all that are installed")
    added.add_argument("--force", action="store_true", help="remove what was modified, too")

    added = verb(
        _path,
        "Print a template's folder, for `alembic init` without an install.",
        'path shared    # alembic init -t "$(alembic-templates path shared)" migrations',
    )
    added.add_argument("name", metavar="NAME", help="a template")

    added = verb(
        _diff,
        "Compare an environment with its template: exit code 0 the same, 1 different, 2 error.",
        "diff shared migrations",
    )
    added.add_argument("name", metavar="NAME", help="a template")
    added.add_argument("folder", metavar="DIR", type=Path, help="the environment's folder")

    added = verb(
        _try,
        "Prove a template on your database and driver, within names of its own.",
        "try shared --url postgresql+asyncpg://me@localhost/mydb",
    )
    added.add_argument("name", metavar="NAME", help="a template")
    added.add_argument("--url", help="the database (default: a SQLite file)")
    added.add_argument(
        "--keep", metavar="DIR", type=Path, help="render into this new folder, and keep it"
    )

    added = verb(
        _prune,
        "Delete the files of all revisions before one, which becomes the base.",
        "prune 1975ea83b712 --config alembic.ini",
    )
    added.add_argument("revision", metavar="REVISION", help="the revision that becomes the base")
    added.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=Path("alembic.ini"),
        help="alembic.ini or pyproject.toml (default: alembic.ini)",
    )
    added.add_argument("--yes", action="store_true", help="do not ask")

    added = verb(
        _new,
        "Make a whole project around an environment, with models, tests and CI.",
        "new --no-input project_name='My Shop' environment=asyncio database=postgresql",
    )
    added.usage = "%(prog)s [-h] [DIR] [--no-input] [key=value ...]"
    added.set_defaults(usage_error=added.error)
    added.add_argument(
        "words",
        nargs="*",
        metavar="DIR, key=value",
        help="the folder to make the project's folder in (default: this one), and answers to the "
        "questions, which an unknown key lists",
    )
    added.add_argument("--no-input", action="store_true", help="do not ask, take the defaults")
    parser.epilog = "\n".join(examples)
    return parser


if __name__ == "__main__":
    sys.exit(main())
