"""Refuse answers that give no working project, before any file is written."""

import json
import keyword
import re
import sys

# What is installed with the project, by its distribution's, its module's or its command's name.
INSTALLED = {
    "activate", "aiomysql", "aiosqlite", "alembic", "ast_serialize", "asyncpg", "build", "cfgv",
    "distlib", "dotenv", "filelock", "greenlet", "hatchling", "identify", "iniconfig", "librt",
    "mako", "markupsafe", "mypy", "nodeenv", "packaging", "pathspec", "pip", "platformdirs",
    "pluggy", "pre_commit", "psycopg", "py", "pygments", "pymysql", "pyproject_hooks", "pytest",
    "pytest_alembic", "pytest_asyncio", "python", "python3", "python_discovery",
    "python_dotenv", "pyyaml", "ruff", "setuptools", "sqlalchemy", "tomli", "typing_extensions",
    "virtualenv", "yaml",
}  # fmt: skip

# Other modules that the project or its tests import, and databases that servers keep for themselves.
TAKEN = {
    *INSTALLED, *sys.stdlib_module_names, "test",
    "conftest", "tests",
    "test_migrations", "test_migrations_shared", "test_models", "test_startup",
    "information_schema", "mysql", "performance_schema", "template0", "template1",
}  # fmt: skip

# ruff format would wrap lines with longer ones; the tests name tenants after the package, too, which
# have 60 characters.
LONGEST_SLUG, LONGEST_PACKAGE = 70, 36


def problem(answers: dict[str, str]) -> str | None:
    """Return what is wrong with the answers in one sentence, None where nothing is."""
    project_name = answers["project_name"]
    project_slug = answers["project_slug"]
    package_name = answers["package_name"]
    if not re.fullmatch(r"[^\W_][\w .,'()&+-]*", project_name):
        return (
            f"project_name is {project_name!r}: expected letters, digits, spaces and . , ' ( ) & + - "
            "after a letter or digit."
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", project_slug):
        return (
            f"project_slug is {project_slug!r}: expected lower-case letters and digits, a letter "
            "first, in words joined by single hyphens, such as 'my-project'."
        )
    if len(project_slug) > LONGEST_SLUG:
        return (
            f"project_slug is {project_slug!r}, {len(project_slug)} characters long: expected "
            f"{LONGEST_SLUG} at most."
        )
    if project_slug.replace("-", "_") in INSTALLED:
        return (
            f"project_slug is {project_slug!r}, a name that the project needs for something else: "
            f"choose another, such as '{project_slug}-app'."
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", package_name) or keyword.iskeyword(package_name):
        return (
            f"package_name is {package_name!r}: expected a lower-case Python identifier that is no "
            "keyword, such as 'my_project'."
        )
    if len(package_name) > LONGEST_PACKAGE:
        return (
            f"package_name is {package_name!r}, {len(package_name)} characters long: expected "
            f"{LONGEST_PACKAGE} at most."
        )
    if package_name in TAKEN:
        return (
            f"package_name is {package_name!r}, a name that the project needs for something else: "
            f"choose another, such as '{package_name}_app'."
        )
    if answers["environment"] == "multitenant" and answers["database"] == "sqlite":
        return (
            "environment multitenant does not go with database sqlite, which has no schemas for the "
            "tenants: choose database postgresql or mariadb."
        )
    return None


if __name__ == "__main__":
    # The inner tojson gives JSON, and the outer one the quotes of a Python string around it.
    found = problem(json.loads({{ cookiecutter | tojson | tojson }}))
    if found:
        sys.exit(f"error: {found}")
