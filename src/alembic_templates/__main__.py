"""Run the command by `python -m alembic_templates`."""

import sys

from alembic_templates.cli import main

sys.exit(main())
