"""Which of the files that an owner may delete are still here.

The README marks these files. Where one is needed, its import comes after this question,
so that a command can say in one sentence which file it misses, and so that an import
which fails inside of such a file is not taken for its absence.
"""

from importlib.util import find_spec


def is_here(module: str) -> bool:
    """Tell whether this environment has a module, such as commands."""
    return find_spec(f"{__package__}.{module}") is not None
