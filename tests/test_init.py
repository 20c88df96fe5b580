"""The verb `init`: environments made without an install, with what a project needs and no more."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from conftest import MODELS, SUPPORTED, Database, Project, as_fleet, kind_of, tree
from processes import kept_environment
from sandboxes import Sandbox
from test_command import NO_SPACE, UNPRIVILEGED

from alembic_templates import cli
from alembic_templates._catalog import catalog, templates_folder

# The modules of each database, which some of the others can do without.
MODULES = {
    "sqlite": {"sqlite_transactions.py"},
    "postgresql": {"postgresql_lock.py", "ddl_retries.py", "concurrent_indexes.py"},
    "mysql": {"mysql_lock.py", "ddl_retries.py"},
    "mariadb": {"mysql_lock.py", "ddl_retries.py"},
}
TABLES = {"alembic_version", "author", "book"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty folder to make environments in, which is the working folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    own = {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    return Project(folder, {**kept_environment(), **own})


def call(*args: str, code: int = 0) -> tuple[str, str]:
    """Run the verb, which must end with this exit code; return its output and its errors."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            ended = cli.main(["init", *args])
        except SystemExit as stop:  # of the parser
            ended = int(str(stop.code))
    assert ended == code, err.getvalue()
    return out.getvalue(), err.getvalue()


def call_wrapped(*args: str, wrapper: str) -> tuple[str, str]:
    """Run the verb in a process that may do less than this one; it must fail."""
    done = subprocess.run(
        [sys.executable, "-c", wrapper, sys.executable, "-m", "alembic_templates", "init", *args],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout, done.stderr


def init(*args: str) -> str:
    """Make an environment and return what is printed, which has no warnings."""
    out, err = call(*args)
    assert err == ""
    return out


def refused(project: Project, *args: str, wrapper: str | None = None) -> str:
    """Run the verb, which must refuse in one sentence and change nothing; return the sentence."""
    before = tree(project.folder.parent)
    if wrapper is None:
        out, err = call(*args, code=1)
    else:
        out, err = call_wrapped(*args, wrapper=wrapper)
    assert tree(project.folder.parent) == before
    assert out == ""
    assert re.fullmatch(r"error: .+\.\n", err), err
    return err.removeprefix("error: ").removesuffix("\n")


def databases(*names: str) -> list[str]:
    """Return the options that name databases."""
    return [word for name in names for word in ("--database", name)]


# --- what is made ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--package",)], ids=["plain", "package"])
@pytest.mark.parametrize(
    ("template", "place"),
    [
        *((name, "migrations") for name in catalog()),
        *(("shared", place) for place in ("src/my app/db", "../beside", "{absolute}")),
    ],
)
def test_environment_is_that_of_alembic_init(
    project: Project, template: str, place: str, options: tuple[str, ...]
) -> None:
    """Each file and folder is as `alembic init -t` makes it, to the byte, wherever it is."""
    place = place.format(absolute=project.folder.parent / "absolute")
    source = str(templates_folder() / template)
    project.alembic("init", "-t", source, *options, place)
    expected = tree(project.folder.parent)
    for path in sorted(project.folder.parent.rglob("*"), reverse=True):
        if path != project.folder:
            path.unlink() if path.is_file() else path.rmdir()
    init(template, place, *options)
    assert tree(project.folder.parent) == expected
    assert len(expected) > len(list(Path(source).glob("*.py")))


@pytest.mark.parametrize(
    "named",
    [(), ("sqlite",), ("postgresql",), ("mysql",), ("mariadb",), ("sqlite", "postgresql")],
    ids=lambda named: "+".join(named) or "none",
)
@pytest.mark.parametrize("template", catalog())
def test_files_of_other_databases_are_left_out(
    project: Project, template: str, named: tuple[str, ...]
) -> None:
    """With --database, the modules that only other databases need are not there, and `diff` agrees."""
    init(template, "migrations", *databases(*named))
    kept = set().union(*(MODULES[name] for name in named or MODULES))
    source = {path.name for path in (templates_folder() / template).iterdir() if path.is_file()}
    expected = source - set().union(*MODULES.values()) - {"alembic.ini.mako"} | kept | {"versions"}
    assert {path.name for path in (project.folder / "migrations").iterdir()} == expected
    assert cli.main(["diff", template, "migrations"]) == 0


def test_nothing_is_written_into_alembic(sandbox: Sandbox) -> None:
    """Where site-packages is read-only, as in an image, an environment is made all the same."""
    before = sandbox.tree()
    for path in (sandbox.site, *sandbox.site.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    script = sandbox.python.with_name("alembic-templates")
    args = [sandbox.python, script, "init", "shared", "migrations"]
    sandbox.run(sys.executable, "-c", UNPRIVILEGED, *args)
    assert sandbox.tree() == before
    assert (sandbox.folder / "migrations" / "env.py").is_file()
    assert (sandbox.folder / "alembic.ini").is_file()
    sandbox.alembic("history")


# --- what it says, and that it works -----------------------------------------------------------

FIRST = {
    "sync": "postgresql+psycopg://me@localhost/mydb",
    "asyncio": "postgresql+asyncpg://me@localhost/mydb",
    "shared": "postgresql+psycopg://me@localhost/mydb",
    "multitenant": "postgresql+psycopg://me@localhost/mydb",
}


@pytest.mark.parametrize("template", catalog())
def test_what_to_set_and_to_run_is_said(project: Project, template: str) -> None:
    """At the end stand the lines to set, and the next commands."""
    fleet = template == "multitenant"
    lines = init(template, "migrations").splitlines()
    assert lines == [
        (
            "migrations is ready. Set in alembic.ini, with your own values (DATABASE_URL may give the "
            "URL instead):"
        ),
        f"    sqlalchemy.url = {FIRST[template]}",
        "    target_metadata = myapp.models:Base.metadata",
        *(["    tenants = acme globex"] if fleet else []),
        "Then run:",
        *(["    alembic -x create=true upgrade head"] if fleet else []),
        '    alembic revision --autogenerate -m "create the tables"',
        "    alembic upgrade head",
    ]


def test_alembic_ini_that_is_there_stays(project: Project) -> None:
    """An alembic.ini of before is as it was, as with `alembic init`, and what it needs is said."""
    ini = project.folder / "alembic.ini"
    ini.write_text("[alembic]\nscript_location = other\n")
    printed = init("shared", "db/migrations")
    assert ini.read_text() == "[alembic]\nscript_location = other\n"
    assert "alembic.ini was there already and stays as it was." in printed
    assert "    script_location = %(here)s/db/migrations\n" in printed


@pytest.mark.parametrize("place", ["audit", "db/alembic"])
def test_second_environment_has_a_section_of_its_own(
    project: Project, sqlite: Database, place: str
) -> None:
    """With the printed section added, both environments work, and the first is as it was."""
    init("shared", "migrations")
    project.set(sqlalchemy__url=f"sqlite:///{project.folder}/first.db", target_metadata=None)
    project.revision("a1")
    (project.folder / "models.py").write_text(MODELS)
    printed = init("shared", place)
    ini = project.folder / "alembic.ini"
    section = printed.partition(":\n")[2].partition("\nThen run:")[0]
    section = textwrap.dedent(section).replace("myapp.models:Base.metadata", "models:metadata")
    section = re.sub(r"(sqlalchemy.url = ).*", rf"\g<1>{sqlite.text}", section)
    ini.write_text(f"{ini.read_text()}\n{section}\n")
    for words in re.findall(r"^    alembic (.+)$", printed, re.MULTILINE):
        project.alembic(*shlex.split(words))
    assert sqlite.tables() == TABLES
    assert project.alembic("heads").stdout == "a1 (head)\n"


def set_printed(project: Project, printed: str, file: str, **values: str) -> None:
    """Set the lines that were printed, with the values of this test, where the file has them."""
    path = project.folder / file
    content = path.read_text().splitlines()
    for line in re.findall(r"^    (\S+ = .+)$", printed, re.MULTILINE):
        key, _, value = line.partition(" = ")
        quote = '"' if value.startswith('"') else ""
        value = quote + values[key.strip('"')] + quote
        empty = [f"{key} =", f'{key} = ""']
        index = next(number for number, each in enumerate(content) if each.rstrip() in empty)
        content[index] = f"{key} = {value}"
    path.write_text("\n".join(content))


def run_printed(project: Project, printed: str) -> None:
    """Run the commands that were printed, and `alembic check`."""
    commands = re.findall(r"^    alembic (.+)$", printed, re.MULTILINE)
    for words in [*commands, "check"]:
        project.alembic(*(word.strip('"') for word in re.findall(r'"[^"]*"|\S+', words)))


@pytest.mark.parametrize(
    ("template", "driver", "file"),
    [
        ("sync", "sqlite", "alembic.ini"),
        ("sync", "postgresql+psycopg", "pyproject.toml"),
        ("asyncio", "sqlite+aiosqlite", "pyproject.toml"),
        ("asyncio", "mysql+aiomysql", "alembic.ini"),
        ("shared", "sqlite", "pyproject.toml"),
        ("shared", "postgresql+psycopg", "alembic.ini"),
        ("shared", "mysql+pymysql", "alembic.ini"),
        ("multitenant", "sqlite", "alembic.ini"),
        ("multitenant", "postgresql+psycopg", "pyproject.toml"),
        ("multitenant", "mysql+pymysql", "alembic.ini"),
    ],
)
def test_what_is_said_works(
    project: Project, template: str, driver: str, file: str, request: pytest.FixtureRequest
) -> None:
    """With the printed lines set and the printed commands run, the database has the models' tables.

    The environment has what its database needs and no more.
    """
    if driver not in SUPPORTED.get(template, []):
        pytest.skip("Async drivers need greenlet")
    kind = kind_of(driver)
    database: Database = request.getfixturevalue(kind)
    options = ["--pyproject"] if file == "pyproject.toml" else []
    printed = init(template, "migrations", "--database", kind, *options)
    (project.folder / "models.py").write_text(MODELS)
    values = {
        "sqlalchemy.url": database.url_for(driver, template).replace("%", "%%"),
        "target_metadata": "models:metadata",
        "tenants": "",
    }
    if template == "multitenant":
        values["tenants"] = {
            "sqlite": "test",
            "postgresql": "public",
            "mariadb": str(database.url.database),
        }[kind]
    set_printed(project, printed, file, **values)
    run_printed(project, printed)
    assert database.tables() == TABLES


@pytest.mark.parametrize("named", ["postgresql", "mysql"])
@pytest.mark.parametrize("template", ["sync", "multitenant"])
def test_database_that_was_not_named_is_refused(
    project: Project, sqlite: Database, template: str, named: str
) -> None:
    """On a database whose files were left out, the environment names the missing one."""
    init(template, "migrations", "--database", named)
    project.set(sqlalchemy__url=sqlite.url_for("sqlite", template))
    project.revision("a1")
    if template == "multitenant":
        as_fleet(project, sqlite)
    done = project.alembic("upgrade", "head", ok=False)
    assert "sqlite_transactions.py is not in this environment" in done.stdout + done.stderr
    assert sqlite.tables() == set()


# --- pyproject.toml ----------------------------------------------------------------------------


def test_pyproject_of_before_is_continued(project: Project, sqlite: Database) -> None:
    """The settings come behind what pyproject.toml has, and logging stands in alembic.ini."""
    before = '[project]\nname = "shop"\n\n[tool.other]\nx = 1'
    path = project.folder / "pyproject.toml"
    path.write_text(before)
    printed = init("sync", "migrations", "--pyproject")
    assert path.read_text().startswith(f"{before}\n")
    assert "pyproject.toml, section [tool.alembic]" in printed
    (project.folder / "models.py").write_text(MODELS)
    values = {"sqlalchemy.url": sqlite.text, "target_metadata": "models:metadata"}
    set_printed(project, printed, "pyproject.toml", **values)
    run_printed(project, printed)
    assert sqlite.tables() == TABLES
    ini = (project.folder / "alembic.ini").read_text()
    assert "INFO  [alembic.runtime.migration] Running upgrade" in project.alembic(
        "downgrade", "base"
    ).stderr.replace("downgrade", "upgrade")
    assert "[logger_alembic]" in ini
    assert "script_location" not in ini


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(
            '[tool.alembic]\nscript_location = "other"\n',
            "pyproject.toml has a [tool.alembic] already, which stays as it is: remove it first, "
            "or leave --pyproject out.",
            id="settings",
        ),
        pytest.param(
            "[[tool.alembic.post_write_hooks]]\nname = 'ruff'\n",
            "pyproject.toml has a [tool.alembic] already, which stays as it is: remove it first, "
            "or leave --pyproject out.",
            id="hooks",
        ),
        *(
            pytest.param(
                f"{tool}\n",
                "pyproject.toml can take no section [tool.alembic] (.+): write `tool` as sections, "
                "such as [tool.ruff], or leave --pyproject out.",
                id=tool,
            )
            for tool in ("tool = {}", "tool = 3", "tool = 'alembic'", "tool = { x = 1 }")
        ),
        pytest.param(
            "[tool\n", r"pyproject.toml cannot be read (.+): correct it first.", id="broken"
        ),
        pytest.param(
            "# \udce9\n", r"pyproject.toml cannot be read (.+): correct it first.", id="latin-1"
        ),
    ],
)
def test_pyproject_that_has_settings_stays(project: Project, content: str, sentence: str) -> None:
    """Settings that are there, and a file that cannot be read, are left untouched and refused."""
    path = project.folder / "pyproject.toml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    pattern = re.escape(sentence).replace(r"\(\.\+\)", r"\(.+\)")
    assert re.fullmatch(pattern, refused(project, "shared", "migrations", "--pyproject"))


def test_alembic_ini_would_hide_pyproject(project: Project) -> None:
    """Where alembic.ini is there, whose settings come first, --pyproject is refused."""
    (project.folder / "alembic.ini").write_text("[alembic]\nscript_location = other\n")
    assert refused(project, "shared", "migrations", "--pyproject") == (
        "alembic.ini is there already, and its settings come before those of pyproject.toml: "
        "rename it, or leave --pyproject out."
    )


# --- packages ----------------------------------------------------------------------------------

PROGRAM = """
    from sqlalchemy import create_engine
    from myapp.{name}.commands import Migrations
    from myapp.models import metadata
    with create_engine("{url}").begin() as connection:
        migrations = Migrations(connection)
        migrations.upgrade()
        migrations.check(metadata)
        print(*migrations.current())
"""


@pytest.mark.parametrize("name", ["migrations", "alembic"])
@pytest.mark.parametrize("options", [(), ("--package",)], ids=["plain", "package"])
@pytest.mark.parametrize("template", ["shared", "multitenant"])
def test_application_imports_its_environment(
    project: Project, sqlite: Database, template: str, options: tuple[str, ...], name: str
) -> None:
    """`from myapp.migrations.commands import Migrations` works, and the alembic command does."""
    package = project.folder / "myapp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(MODELS)
    init(template, f"myapp/{name}", *options)
    url = sqlite.url_for("sqlite", template)
    project.set(target_metadata="myapp.models:metadata", sqlalchemy__url=url)
    if template == "multitenant":
        as_fleet(project, sqlite)
    project.alembic("revision", "--autogenerate", "-m", "first", "--rev-id", "a1")
    project.alembic("upgrade", "head")
    project.alembic("downgrade", "base")
    program = PROGRAM.format(name=name, url=sqlite.text)
    assert project.python(program).stdout == "a1\n"
    assert sqlite.tables() == TABLES


def test_package_never_hides_alembic(project: Project) -> None:
    """A package named alembic at the top is refused; without --package the name is harmless."""
    assert refused(project, "shared", "alembic", "--package") == (
        "A package named alembic would hide Alembic itself: choose another DIR, such as "
        "migrations, or leave --package out."
    )
    init("shared", "alembic")
    project.alembic("history")


# --- what is refused ---------------------------------------------------------------------------


def full(project: Project) -> None:
    """Make the folder, with a file in it."""
    (project.folder / "migrations").mkdir()
    (project.folder / "migrations" / "mine").write_text("mine")


def a_file(project: Project) -> None:
    """Make a file of the folder's name."""
    (project.folder / "migrations").write_text("mine")


def a_link(project: Project) -> None:
    """Make a link of the folder's name that leads nowhere."""
    (project.folder / "migrations").symlink_to("nowhere")


@pytest.mark.parametrize("make", [full, a_file, a_link])
def test_folder_that_is_not_empty_is_refused(
    project: Project, make: Callable[[Project], None]
) -> None:
    """What is there stays, and no alembic.ini is made."""
    make(project)
    assert refused(project, "shared", "migrations") == (
        "migrations is there already and is not an empty folder: choose another DIR."
    )


@pytest.mark.parametrize("name", ["migrations", "."])
def test_empty_folder_is_taken(project: Project, name: str) -> None:
    """An empty folder is as good as none, as with `alembic init`."""
    (project.folder / name).mkdir(exist_ok=True)
    init("sync", name)
    project.alembic("history")


@pytest.mark.parametrize(
    "character", ["%", '"', "\\", "\n", "\r", "\x01", "\x1f", "\x7f", "\udce9"]
)
def test_name_that_breaks_the_configuration_is_refused(project: Project, character: str) -> None:
    """A name that Alembic could not read again is refused before anything is made."""
    name = f"my{character}migrations"
    assert refused(project, "shared", name) == (
        f"The name {name!r} cannot stand in Alembic's configuration: choose a DIR without "
        f"{character!r}."
    )


@pytest.mark.parametrize("blank", [" ", "\t", "\xa0", "\u3000"])
def test_name_that_ends_with_a_blank_is_refused(project: Project, blank: str) -> None:
    """The parser of ini files would cut it off; elsewhere in a name it is harmless."""
    name = f"my migrations{blank}"
    assert refused(project, "shared", name) == (
        f"The name {name!r} cannot stand in Alembic's configuration: choose a DIR without "
        f"{blank!r} at its end."
    )
    init("shared", f"{blank}my{blank}migrations")
    project.alembic("history")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        pytest.param("nope", "", id="like-none"),
        pytest.param("shard", " (did you mean shared?)", id="misspelt"),
        pytest.param("tenant", " (did you mean multitenant?)", id="part"),
        pytest.param(
            "async",
            " here, where the one for async drivers is asyncio (async is Alembic's own)",
            id="alembics",
        ),
    ],
)
def test_unknown_template_names_the_right_one(project: Project, name: str, hint: str) -> None:
    """All names are listed, and the one that is probably meant is said; `async` is Alembic's."""
    assert refused(project, name, "migrations") == (
        f"There is no template {name!r}{hint}: expected {', '.join(catalog())}."
    )


def test_swapped_arguments_are_said(project: Project) -> None:
    """Who gives the folder first is told the order."""
    assert refused(project, "migr", "shared") == (
        "There is no template 'migr': the template comes first, as in `alembic-templates init "
        "shared migr`."
    )


@pytest.mark.parametrize("options", [(), ("--pyproject",)], ids=["ini", "pyproject"])
@pytest.mark.parametrize("place", ["migrations", "a/b/migrations", "empty", "."])
def test_failure_leaves_nothing_behind(
    project: Project, place: str, options: tuple[str, ...]
) -> None:
    """On a disk that is full, no file or folder stays, and pyproject.toml is as it was."""
    if place == "empty":
        (project.folder / "empty").mkdir()
    if place != "." and options:
        (project.folder / "pyproject.toml").write_text("[project]\nname = 'shop'\n")
    assert refused(project, "shared", place, *options, wrapper=NO_SPACE) == (
        f"No environment can be made in {place} (File too large): nothing was left behind; choose "
        "a folder that you may write to."
    )


def test_folder_without_permission_is_one_sentence(project: Project) -> None:
    """Who may not write here is told so."""
    project.folder.chmod(0o555)
    sentence = refused(project, "shared", "a/migrations", wrapper=UNPRIVILEGED)
    assert sentence.startswith("No environment can be made in a/migrations (Permission denied): ")


# Makes environments in the folders of the arguments, each by two processes at once, and prints the
# exit codes and errors of both.
TWO = """
import io, json, multiprocessing, os, sys
from contextlib import redirect_stderr, redirect_stdout
from alembic_templates import _init, cli

def call(folder, options, barrier, answers):
    os.chdir(folder)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        barrier.wait()
        code = cli.main(["init", "shared", *options])
    answers.put((code, err.getvalue()))

context = multiprocessing.get_context("fork")
for folder in sys.argv[2:]:
    barrier, answers = context.Barrier(2), context.Queue()
    options = json.loads(sys.argv[1])
    both = [context.Process(target=call, args=(folder, options, barrier, answers)) for _ in "12"]
    for process in both:
        process.start()
    print(json.dumps(sorted(answers.get(timeout=60) for _ in both)))
"""


@pytest.mark.parametrize("options", [(), ("--package", "--pyproject")], ids=["ini", "pyproject"])
@pytest.mark.parametrize("place", ["migrations", "a/b/migrations", "."])
def test_of_two_at_once_one_is_refused(
    project: Project, place: str, options: tuple[str, ...]
) -> None:
    """One of two processes makes the environment as if alone; the other leaves it as it is."""
    alone, *rounds = (project.folder / f"{number}" for number in range(11))
    for folder in (alone, *rounds):
        folder.mkdir()
    os.chdir(alone)
    init("shared", place, *options)
    arguments = [json.dumps([place, *options]), *map(str, rounds)]
    done = subprocess.run(
        [sys.executable, "-c", TWO, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    sentence = f"error: {place} is there already and is not an empty folder: choose another DIR.\n"
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [[[0, ""], [1, sentence]]] * len(rounds), done.stderr
    assert [tree(folder) == tree(alone) for folder in rounds] == [True] * len(rounds)


def test_unknown_database_is_a_mistake_in_the_usage(project: Project) -> None:
    """The known databases are listed."""
    _, errors = call("shared", "migrations", "--database", "oracle", code=2)
    assert all(name in errors for name in MODULES)
    assert list(project.folder.iterdir()) == []
