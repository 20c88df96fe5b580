"""No part of a password is ever shown, however it is written into a URL."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
from itertools import product

import pytest
from alembic.config import CommandLine
from alembic.util import CommandError
from conftest import DRIVERS, Project
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from processes import run_python

from alembic_templates import cli

# The capitals stand in nothing else that is printed, so that they tell a part of a password.
CAPITALS = "QZXJ"
PASSWORDS = st.text(f"{CAPITALS}{CAPITALS.lower()}%@:/?#&=+[]{{}}' \\é", min_size=4, max_size=24)
FORMS = [
    "me:{}@127.0.0.1:1/shop",
    "me:{}@127.0.0.1:1/shop?x=y",
    "m/e:{}@127.0.0.1:1/shop",
    "/me:{}@127.0.0.1:1/shop",
    "me:{}@127.0.0.1:1/{{tenant}}",
]


@pytest.fixture(autouse=True)
def as_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Alembic's functions run as its command."""
    monkeypatch.setattr(sys, "argv", ["alembic"])


def output_of(project: Project, *args: str) -> str:
    """Return all that a command prints and logs, with the traceback that --raiseerr shows."""
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    logger = logging.getLogger("alembic")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            ini = str(project.folder / "alembic.ini")
            CommandLine().main(["-c", ini, "--raiseerr", *args])
    except (CommandError, SystemExit):
        shown.write(traceback.format_exc())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return shown.getvalue()


def parts(password: str) -> list[str]:
    """Return the parts of a password that would tell it: four characters, a capital among them."""
    found = [password[start : start + 4] for start in range(len(password) - 3)]
    return [part for part in found if any(each in part for each in CAPITALS)]


def prepared(project: Project) -> Project:
    """Return the project without a section for logging, which a test's process keeps."""
    path = project.folder / "alembic.ini"
    path.write_text(path.read_text().partition("[loggers]")[0])
    project.revision("a1")
    return project


EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


@pytest.mark.parametrize(
    ("form", "drivername"),
    [
        (form, driver)
        for form, drivers in product(FORMS, DRIVERS.values())
        for driver in drivers
        if not (form.startswith("/") and driver.startswith("sqlite"))  # the path of a file
    ],
)
def test_no_part_of_a_password_is_shown(project: Project, form: str, drivername: str) -> None:
    """A password that is not quoted is shown neither by an error nor by a line of the log."""
    prepared(project)

    @EXAMPLES
    @example("pZZw@rdQQ/1")
    @example("pZQw@rdQX?ZZZZ")
    @example("pZQw@rdQX?ZZZZ=QQQQ&JJJJ")
    @example("pZQw@rdQX:/ZZZZ")
    @example("pZQw@/rdQX")
    @example("@[:::J]")
    @example("@[::QQJ]ZZ")
    @given(PASSWORDS)
    def check(password: str) -> None:
        url = f"{drivername}://{form.format(password)}"
        output = output_of(project, "-x", f"url={url}", "current")
        assert not [part for part in parts(password) if part in output], output

    check()


@pytest.mark.parametrize("sql", [False, True], ids=["online", "sql"])
def test_no_part_of_a_password_is_shown_by_a_fleet(fleet_project: Project, sql: bool) -> None:
    """Neither errors of tenants nor the comments of a script show a part of a password."""
    prepared(fleet_project).set(tenants="one two")

    @EXAMPLES
    @example("pZZw@rdQQ/1")
    @given(PASSWORDS)
    def check(password: str) -> None:
        for form in (FORMS[0], FORMS[-1]):
            url = f"mysql+pymysql://{form.format(password)}"
            args = ["upgrade", "head", *(["--sql"] if sql else [])]
            output = output_of(fleet_project, "-x", f"url={url}", *args)
            assert not [part for part in parts(password) if part in output], output

    check()


@pytest.mark.parametrize("drivername", [driver for each in DRIVERS.values() for driver in each])
@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("/")])
def test_no_part_of_a_password_is_shown_by_try(form: str, drivername: str) -> None:
    """A password that is not quoted is refused, or the server that it is for does not answer."""

    @EXAMPLES
    @example("pZZw@rdQQ/1")
    @example("pZQw@rdQX?ZZZZ")
    @example("pZQw@rdQX?ZZZZ=QQQQ&JJJJ")
    @example("pZQw@rdQX:/ZZZZ")
    @example("pZQw@[rdQX]ZZZZ")
    @given(PASSWORDS)
    def check(password: str) -> None:
        url = f"{drivername}://{form.format(password)}"
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            assert cli.main(["try", "shared", "--url", url]) == 1
        assert not [part for part in parts(password) if part in shown.getvalue()], shown.getvalue()

    check()


LEAKS = "postgresql://me:QZXJ%40QZXJ@127.0.0.1/shop"


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        pytest.param("{url}\n[alembic]", "MissingSectionHeaderError, line 1", id="no-section"),
        pytest.param("[alembic]\nurl\n= {url}", "ParsingError, line 2, line 3", id="no-value"),
        pytest.param("[alembic]\nu = 1\nu = {url}", "DuplicateOptionError, line 3", id="twice"),
        pytest.param("[alembic]\nu = {url}\n[alembic]", "DuplicateSectionError, line 3", id="both"),
        pytest.param("[alembic]\nu = {url}\udce9", "UnicodeDecodeError", id="latin-1"),
    ],
)
@pytest.mark.parametrize(
    "args", ["lint", "lint --url postgresql://", "rebase", "prune r1"], ids=lambda args: args
)
def test_an_ini_file_that_cannot_be_read_is_not_shown(
    project: Project, lines: str, error: str, args: str
) -> None:
    """The sentence says in which line the mistake is, and quotes nothing of the file."""
    text = f"{lines.format(url=LEAKS)}\n"
    (project.folder / "alembic.ini").write_text(text, "utf-8", "surrogateescape")
    command = ["-m", "alembic_templates", *args.split()]
    done = run_python(command, project.folder, project.env)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: alembic.ini cannot be read as an ini file ({error}): correct it.\n",
    )


@pytest.mark.parametrize(
    ("url", "code", "sentence"),
    [
        pytest.param(
            LEAKS,
            "context.config.get_main_option('sqlalchemy.url')",
            "alembic.ini has an option that cannot be read: write each % in its value as %%.",
            id="read",
        ),
        pytest.param(
            "",
            f"context.config.set_main_option('sqlalchemy.url', '{LEAKS}')",
            "{env} fails in offline mode (ValueError: write each % of an option as %%): correct "
            "it.",
            id="set",
        ),
        pytest.param(
            "",
            "context.configure(url='postgresql://me:p@x:QZXJ/ss@127.0.0.1/shop')",
            "{env} has no database URL that can be read: give --url (nothing is connected to, so "
            "`--url postgresql://` is enough), or set sqlalchemy.url in the Alembic configuration.",
            id="port",
        ),
    ],
)
def test_no_url_of_an_env_py_is_shown(project: Project, url: str, code: str, sentence: str) -> None:
    """An env.py that is not of these templates, or a revision, may let an error quote its URL."""
    prepared(project)
    project.set(sqlalchemy__url=url)
    path = project.folder / "migrations" / "env.py"
    before = path.read_text()
    path.write_text(f"from alembic import context\n{code}\n")
    lint = ["-m", "alembic_templates", "lint"]
    done = run_python(lint, project.folder, project.env)
    assert (done.returncode, done.stderr) == (1, f"error: {sentence.format(env=path)}\n")
    path.write_text(before)
    project.revision("a1", code)
    project.set(sqlalchemy__url="postgresql://")
    done = run_python(lint, project.folder, project.env)
    assert "QZXJ" not in done.stdout + done.stderr


def test_no_part_of_a_password_of_database_url_is_shown(
    project: Project, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning of a DATABASE_URL that is not used shows no part of its password."""
    prepared(project).set(sqlalchemy__url=f"sqlite:///{tmp_path}/app.db")

    @EXAMPLES
    @example("pZZw@rdQQ/1")
    @example("pa@QQrdZZ?word")
    @example("pa@QQrdZZ?a=1&word")
    @example("pa@[QQrdZZ]word")
    @given(PASSWORDS)
    def check(password: str) -> None:
        monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{password}@db.example/shop")
        output = output_of(project, "current")
        assert "DATABASE_URL names" in output
        assert not [part for part in parts(password) if part in output], output

    check()


def test_no_part_of_a_password_is_shown_in_a_script(fleet_project: Project) -> None:
    """Where the tenants have URLs, the comment before a tenant's SQL has one of them."""
    prepared(fleet_project).set(tenants="who:tenants", tenants_url="sqlite://")
    (fleet_project.folder / "who.py").write_text(
        "import os\ndef tenants(_):\n    return [('one', os.environ['TENANT'])]\n"
    )
    for form in ("u:pQ@x/QQZZ@127.0.0.1/db", "u/pQ:QQZZ@127.0.0.1/db"):
        done = fleet_project.alembic(
            "upgrade", "head", "--sql", ok=False, TENANT=f"postgresql+psycopg://{form}"
        )
        assert "The URL of tenant 'one' has an @ too many" in done.stdout + done.stderr
        assert "QQZZ" not in done.stdout + done.stderr


def test_the_error_says_to_quote(project: Project) -> None:
    """A URL with an @ too many is refused with what to write, and no host is asked for."""
    project.revision("a1")
    done = project.alembic("-x", "url=mysql+pymysql://u:p%w@rd/1@127.0.0.1/db", "current", ok=False)
    assert done.stdout == (
        "FAILED: The database URL has an @ too many, so that it cannot be told where its password "
        "ends: write the characters @ : / % of a user or password as %40, %3A, %2F and %25, and in "
        "the Alembic configuration each % doubled.\n"
    )
