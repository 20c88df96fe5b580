"""Who configures logging: the alembic command, and no program that runs migrations itself."""

from __future__ import annotations

import pytest
from conftest import Database, Project

# What a program sees of its logging: all that fileConfig could change.
STATE = """
import logging

def state():
    named = logging.root.manager.loggerDict
    return {
        name: (
            each.level,
            [(type(h).__name__, h.level, id(h), id(h.formatter)) for h in each.handlers],
            each.disabled,
            each.propagate,
        )
        for name, each in [("root", logging.root), *named.items()]
        if isinstance(each, logging.Logger) and name in WATCHED
    }

WATCHED = {"root", "app", "app.child", "alembic", "sqlalchemy", "sqlalchemy.engine"}
"""

SETUPS = {
    "root-handler": "logging.basicConfig(level=logging.DEBUG, filename='app.log')",
    "own-logger": "logging.getLogger('app').addHandler(logging.FileHandler('app.log'))",
    "levels-alone": "logging.root.setLevel(logging.ERROR)",
    "alembic-level": "logging.getLogger('alembic').setLevel(logging.ERROR)",
    "alembic-handler": "logging.getLogger('alembic').addHandler(logging.FileHandler('app.log'))",
    "nothing": "",
}

RUNS = {
    "command": "command.upgrade(Config('alembic.ini'), 'head')",
    "config-main": "main(argv=['upgrade', 'head'])",
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_a_program_keeps_its_logging(
    project: Project, sqlite: Database, setup: str, run: str
) -> None:
    """A program keeps its loggers, handlers and levels, also where it calls main()."""
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    done = project.python(
        f"""{STATE}
import alembic.runtime.migration, sqlalchemy
from alembic import command
from alembic.config import Config, main

for name in WATCHED - {{"root"}}:
    logging.getLogger(name)
{setup}
before = state()
assert set(before) == WATCHED
{run}
after = state()
assert after == before, {{name: (before[name], after[name]) for name in before}}
print("kept")
""",
        DATABASE_URL=sqlite.text,
    )
    assert done.stdout == "kept\n"
    assert sqlite.tables() == {"made", "alembic_version"}


def test_a_program_still_logs_afterwards(project: Project, sqlite: Database) -> None:
    """What a program logs after a migration is written once, in its own format."""
    project.revision("a1")
    done = project.python(
        """
        import logging
        from alembic.config import main
        logger = logging.getLogger("app")
        logging.basicConfig(level=logging.INFO, format="<%(name)s> %(message)s")
        main(argv=["upgrade", "head"])
        logger.info("still here")
        """,
        DATABASE_URL=sqlite.text,
    )
    assert done.stderr.splitlines()[-2:] == [
        "<alembic.runtime.migration> Running upgrade  -> a1, A revision.",
        "<app> still here",
    ]


def test_the_command_configures_logging(project: Project, sqlite: Database) -> None:
    """The alembic command shows each migration on standard error, in the format of the ini file."""
    project.revision("a1")
    done = project.alembic("upgrade", "head", DATABASE_URL=sqlite.text)
    assert done.stderr.splitlines()[-1] == (
        "INFO  [alembic.runtime.migration] Running upgrade  -> a1, A revision."
    )
    assert done.stdout == ""


def test_the_command_obeys_the_ini_file(project: Project, sqlite: Database) -> None:
    """Levels in the ini file count: at WARNING the alembic command shows no migration."""
    project.set("logger_alembic", level="WARNING")
    project.revision("a1")
    done = project.alembic("upgrade", "head", DATABASE_URL=sqlite.text)
    assert done.stderr == ""
    assert sqlite.versions() == {"a1"}


def test_the_command_keeps_loggers_that_exist(project: Project, sqlite: Database) -> None:
    """A logger made before the ini file is read is not disabled: its records are shown."""
    # Python runs sitecustomize before the alembic command.
    (project.folder / "sitecustomize.py").write_text("import logging\nlogging.getLogger('early')\n")
    project.revision("a1", "import logging\nlogging.getLogger('early').warning('still here')")
    done = project.alembic("upgrade", "head", DATABASE_URL=sqlite.text, PYTHONPATH=".")
    assert done.stderr.splitlines()[-1] == "WARNI [early] still here"


@pytest.mark.parametrize("source", ["pyproject", "ini"])
def test_without_logging_sections_the_command_runs(
    project: Project, sqlite: Database, source: str
) -> None:
    """An ini file without [loggers], or none at all, is no error."""
    project.revision("a1", "op.create_table('made', sa.Column('id', sa.Integer))")
    ini = project.folder / "alembic.ini"
    if source == "ini":
        ini.write_text(ini.read_text().partition("[loggers]")[0])
    else:
        ini.unlink()
        (project.folder / "pyproject.toml").write_text(
            '[tool.alembic]\nscript_location = "%(here)s/migrations"\n'
        )
    done = project.alembic("upgrade", "head", DATABASE_URL=sqlite.text)
    assert done.stderr == ""
    assert sqlite.tables() == {"made", "alembic_version"}


def test_warnings_are_shown_without_an_ini_file(project: Project, sqlite: Database) -> None:
    """With all settings in pyproject.toml, the alembic command shows warnings all the same."""
    (project.folder / "pyproject.toml").write_text(
        f'[tool.alembic]\nscript_location = "migrations"\n"sqlalchemy.url" = "{sqlite.text}"\n'
    )
    (project.folder / "alembic.ini").unlink()
    done = project.alembic("current", DATABASE_URL="postgresql://somebody@elsewhere/other")
    assert "WARNI [alembic.env] DATABASE_URL" in done.stderr
