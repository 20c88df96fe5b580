"""Copy the environment into the project's package, and remove what is not the project's.

A template's files are copied as they are, as `alembic init` does, and need no list of their names.
A file that exists already is kept: cookiecutter does not tell whether it runs with
--skip-if-file-exists, and the file may have been edited.
"""

import filecmp
import json
import os
import shutil
import sys
from pathlib import Path

# The inner tojson gives JSON, and the outer one the quotes of a Python string around it.
ANSWERS = json.loads({{ cookiecutter | tojson | tojson }})

# Python and tools leave these in any folder, and cookiecutter takes them along; pip compiles
# whatever it installs.
CACHES = ("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache")


def templates_folder() -> Path:
    """Return the folder of the templates, which is beside the cookiecutter.json that was used.

    A relative path is relative to the folder in which cookiecutter was started. A hook runs in the
    project instead, so both folders that may be meant are looked at: the shell's, and the one that
    the project is made in, by default the same. Exits with a sentence unless one of them is right.
    """
    given = ANSWERS["_repo_dir"]
    starts = [os.environ.get("PWD", ""), ANSWERS["_output_dir"]]
    found = {Path(start, given).resolve() / "templates" for start in starts if start}
    found = {folder for folder in found if (folder / ANSWERS["environment"] / "env.py").is_file()}
    if len(found) != 1:
        sys.exit(
            f"error: The folder templates of {given} was not found: give cookiecutter the absolute "
            "path of the checkout."
        )
    return found.pop()


def copy_environment(template: Path, folder: Path) -> None:
    """Copy the files of a template; name those that the folder has otherwise, and keep them."""
    kept = []
    for source in sorted(template.iterdir()):
        target = folder / source.name
        if source.name == "alembic.ini.mako" or not source.is_file():
            continue
        if not target.exists():
            shutil.copyfile(source, target)
        elif not filecmp.cmp(source, target, shallow=False):
            kept.append(source.name)
    if kept:
        print(
            f"{folder}: kept {', '.join(kept)}, which the template has otherwise. For those of the "
            "template, delete them and run this again.",
            file=sys.stderr,
        )


def remove_what_is_not_the_projects() -> None:
    """Remove caches, and the files of other environments and databases, which are empty."""
    # Nothing else, since `cookiecutter --overwrite-if-exists` runs this in a project that has more.
    for place in (".", "src/**", "tests/**"):
        for cache in CACHES:
            for found in list(Path().glob(f"{place}/{cache}")):
                shutil.rmtree(found)
    shared = PACKAGE / "migrations_shared"
    tests = "tests/test_migrations_shared.py"
    optional = ["LICENSE", "compose.yaml", tests, *shared.glob("versions/*.py")]
    for path in map(Path, optional):
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()
    for folder in (shared / "versions", shared):
        if not any(folder.iterdir()):
            folder.rmdir()


PACKAGE = Path("src", ANSWERS["package_name"])

remove_what_is_not_the_projects()
copy_environment(templates_folder() / ANSWERS["environment"], PACKAGE / "migrations")
if ANSWERS["environment"] == "multitenant":
    copy_environment(templates_folder() / "sync", PACKAGE / "migrations_shared")
