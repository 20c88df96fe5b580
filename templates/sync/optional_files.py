"""Which of the files that an owner may delete are still here.

The README marks these files. Code that needs one asks is_here() before it imports it.
So a command can say in one sentence which file is missing, and an import that fails
inside such a file does not look like a missing file.
"""

from importlib.util import find_spec


def is_here(module: str) -> bool:
    """Tell whether this environment has a module, such as commands."""
    return find_spec(f"{__package__}.{module}") is not None
