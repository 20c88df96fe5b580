"""Which of the files that an owner may delete are still here.

The README marks these files. Code that needs one asks is_here() or require_file()
before it imports it. So a command can say in one sentence which file is missing, and an
import that fails inside such a file does not look like a missing file.
"""

from importlib.util import find_spec

from alembic.util import CommandError


def is_here(module: str) -> bool:
    """Tell whether this environment has a module, such as commands."""
    return find_spec(f"{__package__}.{module}") is not None


def require_file(module: str, user: str) -> None:
    """Raise CommandError if a module has been deleted; `user` says what needs it."""
    if not is_here(module):
        raise CommandError(
            f"{module}.py is not in this environment, and {user} needs it: copy the "
            "file from the template that this environment was made of."
        )
