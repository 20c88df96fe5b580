"""Remove what is not the project's: caches, and the empty files of other environments and databases."""

import shutil
from pathlib import Path

# Python and tools leave these among the template's own files (pip does on each install), and
# cookiecutter takes along whatever stands there.
places = [".", "migrations/**", "migrations_shared/**", "src/**", "tests/**"]
for cache in ("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"):
    for found in [found for place in places for found in Path().glob(f"{place}/{cache}")]:
        shutil.rmtree(found)

# These alone, since `cookiecutter --overwrite-if-exists` runs this in a project that has others.
optional = ["migrations/*", "migrations_shared/**/*", "tests/test_migrations_shared.py", "compose.yaml"]
for path in [path for pattern in optional for path in Path().glob(pattern)]:
    if path.is_file() and path.stat().st_size == 0:
        path.unlink()
for folder in ("migrations_shared/versions", "migrations_shared"):
    if not any(Path(folder).iterdir()):
        Path(folder).rmdir()
