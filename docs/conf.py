"""How Sphinx builds the documentation: `tox -e docs`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "alembic-templates"
author = "the alembic-templates contributors"
project_copyright = author
version = release = version_of("alembic-templates")

extensions = ["myst_parser", "sphinx.ext.intersphinx", "sphinx_copybutton", "diagrams", "generated"]
# The parts are included by several pages.
exclude_patterns = ["_build", "_parts"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Quotes in code-like words stay straight, to be copied.
smartquotes = False

html_theme = "furo"
html_title = "alembic-templates"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# The prompt of a console block is not copied.
copybutton_prompt_text = "$ "

# The names that the pages link to, in Sphinx's plain format, since a build may have no network.
intersphinx_mapping = {
    "alembic": ("https://alembic.sqlalchemy.org/en/latest/", "inventories/alembic.txt"),
    "python": ("https://docs.python.org/3/", "inventories/python.txt"),
    "sqlalchemy": ("https://docs.sqlalchemy.org/en/20/", "inventories/sqlalchemy.txt"),
}
