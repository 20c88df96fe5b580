"""{{ cookiecutter.project_name }}."""

from pathlib import Path

from dotenv import load_dotenv

# The `alembic` command imports this package too, so that .env of a checkout counts there
# as well. A variable that is set already wins. An installed wheel has no such file.
load_dotenv(Path(__file__).resolve().parents[2] / ".env")
