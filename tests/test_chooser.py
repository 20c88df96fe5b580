"""The chooser of the documentation, in a browser: its commands are run as they are shown."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import alembic
import pytest
from conftest import DRIVERS, MODELS, ROOT, SUPPORTED, Database, kind_of, run, skip
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from sqlalchemy import URL, column, create_engine, inspect, select, table

from alembic_templates import cli

HOWS = ("init", "install", "path")
MODELS_MODULE = f"{MODELS}\n\nclass Base:\n    metadata = metadata\n"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,2400",
)

# The blocks that are to be seen: the language and the text of each, from the top of the page.
VISIBLE_BLOCKS = """
return [...document.querySelectorAll(".chooser-steps pre")]
  .filter(block => block.checkVisibility())
  .map(block => [
    block.closest("[class*=highlight-]").className.match(/highlight-(\\w+)/)[1],
    block.textContent,
  ]);
"""
VISIBLE_DRIVERS = """
return [...document.querySelectorAll("[name=driver]")]
  .filter(input => input.checkVisibility())
  .map(input => [input.closest("div").dataset.database, input.value]);
"""
EXTENT = """
const shapes = selector => [...document.querySelectorAll(selector)]
  .filter(element => element.checkVisibility())
  .map(element => element.getBoundingClientRect());
const answers = shapes("#chooser label");
return [
  Math.max(...[...answers, ...shapes(".chooser-steps pre")].map(shape => shape.right)),
  Math.min(...answers.map(shape => shape.height)),
];
"""
GO = """
const [fragment, done] = arguments;
addEventListener("hashchange", () => setTimeout(done), { once: true });
location.hash = fragment;
"""
CHOSEN = "return [...document.querySelectorAll('#chooser :checked')].map(input => input.value)"

# What a program does with the start-up lines of the page.
START = """
from sqlalchemy import create_engine

engine = create_engine({url!r})
start(engine)
engine.dispose()
"""
START_ASYNC = """
import asyncio

from sqlalchemy.ext.asyncio import create_async_engine


async def main():
    engine = create_async_engine({url!r})
    await start(engine)
    await engine.dispose()


asyncio.run(main())
"""

combinations = pytest.mark.parametrize(
    ("template", "driver"),
    [
        pytest.param(template, driver, id=f"{template}-{driver}")
        for template, drivers in SUPPORTED.items()
        for driver in drivers
    ],
)


def short(driver: str) -> str:
    """Return the name that the page gives a driver; SQLite's own is the module sqlite3."""
    return driver.partition("+")[2] or "sqlite3"


def fragment(template: str, driver: str, how: str = "init") -> str:
    """Return the end of the address of a choice."""
    choice = f"#{template}-{kind_of(driver)}-{short(driver)}"
    return choice if how == "init" else f"{choice}-{how}"


def packages(template: str, driver: str) -> set[str]:
    """Return what pip has to install for a driver; SQLAlchemy needs greenlet for async ones."""
    name = driver.partition("+")[2]
    found = {"alembic-templates"}
    if name:
        found.add("psycopg[binary]" if name.startswith("psycopg") else name)
    if template == "asyncio" or driver not in SUPPORTED["sync"]:
        found.add("sqlalchemy[asyncio]")
    return found


@dataclass(frozen=True)
class Page:
    """The page of a file, in a browser."""

    browser: Chrome
    file: Path

    def open(self, fragment: str = "") -> None:
        """Load the page anew, as by a link from elsewhere."""
        self.browser.get("about:blank")
        self.browser.get(f"{self.file.as_uri()}{fragment}")

    def go(self, fragment: str) -> None:
        """Change the fragment alone, as by a link of the page itself."""
        self.browser.execute_async_script(GO, fragment)

    def choose(self, *values: str) -> None:
        """Click on answers."""
        for value in values:
            self.browser.find_element(By.ID, f"choose-{value}").click()

    @property
    def fragment(self) -> str:
        """The end of the address that the browser shows."""
        return "#" + self.browser.current_url.partition("#")[2]

    @property
    def chosen(self) -> list[str]:
        """The answers to the three questions."""
        found: list[str] = self.browser.execute_script(CHOSEN)
        return found

    def blocks(self, *languages: str) -> list[str]:
        """Return the text of the blocks to be seen, of some languages or of all."""
        found = self.browser.execute_script(VISIBLE_BLOCKS)
        return [text for language, text in found if not languages or language in languages]


@pytest.fixture(scope="session")
def built_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built as the documentation builds it but without other pages and the network."""
    docs = tmp_path_factory.mktemp("docs")
    for name in ("conf.py", "chooser.md"):
        shutil.copy2(ROOT / "docs" / name, docs)
    shutil.copytree(ROOT / "docs" / "_static", docs / "_static")
    options = ["-D", "extensions=myst_parser,sphinx_copybutton", "-D", "root_doc=chooser"]
    run(docs, sys.executable, "-m", "sphinx", "-q", "-b", "html", *options, ".", "built")
    return docs / "built" / "chooser.html"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Debian's Chromium without a window, one for all tests of a process."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        skip("No browser: apt-get install chromium chromium-driver.")
        raise AssertionError
    options = ChromeOptions()
    options.binary_location = program
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    browser = Chrome(options, Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser: Chrome, built_page: Path) -> Page:
    """The page as it is without a fragment."""
    page = Page(browser, built_page)
    page.open()
    return page


@dataclass(frozen=True)
class Machine:
    """Where the commands are run: what `alembic`, `alembic-templates` and `python` are there."""

    env: dict[str, str]
    made: dict[str, Path] = field(default_factory=dict)

    def run(self, folder: Path, *scripts: str) -> None:
        """Paste lines of the page into a shell."""
        for script in scripts:
            run(folder, "sh", "-ec", script, **self.env)

    def make(self, folder: Path, script: str) -> None:
        """Make a project with models and the environment of a script, which is run only once."""
        if script not in self.made:
            (folder / "myapp").mkdir(parents=True)
            (folder / "myapp" / "__init__.py").touch()
            (folder / "myapp" / "models.py").write_text(MODELS_MODULE)
            self.run(folder, script)
            self.made[script] = folder.with_name("made")
            shutil.copytree(folder, self.made[script])
        else:
            shutil.copytree(self.made[script], folder)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The tests' own Python with a copy of Alembic, into which templates can be installed."""
    folder = tmp_path_factory.mktemp("machine")
    shutil.copytree(Path(alembic.__file__).parent, folder / "lib" / "alembic")
    (folder / "bin").mkdir()
    script = f"#!{sys.executable}\nimport sys\nfrom {{}} import main\nsys.exit(main())\n"
    programs = {
        "alembic": script.format("alembic.config"),
        "alembic-templates": script.format(cli.__name__),
        "python": f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n',
    }
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    paths = {"PATH": folder / "bin", "PYTHONPATH": folder / "lib"}
    return Machine(
        {
            name: os.pathsep.join([str(path), *filter(None, [os.environ.get(name)])])
            for name, path in paths.items()
        }
    )


@dataclass(frozen=True)
class Choice:
    """What the page shows for a choice, by what is to be done with it."""

    install: str
    init: str
    ini: list[str]
    migrate: str
    python: list[str]


def read_choice(page: Page) -> Choice:
    """Read what the page shows: three blocks for the shell, one of settings, at most one program."""
    assert not [
        block
        for block in page.blocks()
        if re.search(r"[<>…]|\{(?!tenant\})|\b(NAME|TODO|undefined|null)\b", block)
    ]
    install, init, migrate = page.blocks("sh")
    (ini,) = page.blocks("ini")
    return Choice(install, init, ini.splitlines(), migrate, page.blocks("python"))


def set_lines(ini: Path, lines: list[str]) -> None:
    """Write lines over those of alembic.ini that have the same names and no values."""
    text = ini.read_text()
    for line in lines:
        name = line.partition(" = ")[0]
        assert text.count(f"\n{name} =\n") == 1
        text = text.replace(f"\n{name} =\n", f"\n{line}\n")
    ini.write_text(text)


@dataclass(frozen=True)
class Place:
    """The test's own database, which takes the place of the one that the page names."""

    database: Database
    driver: str
    folder: Path
    tenants: list[str]

    @property
    def url(self) -> str:
        """The URL of the database, for a program."""
        return self.database.url_for(self.driver)

    def substituted(self, lines: list[str]) -> list[str]:
        """Put the server for `me@localhost`, the database for `mydb`, and on MariaDB, where tenants
        are databases of the whole server, the names of the tenants."""
        if self.database.kind == "sqlite":  # a file of the project
            return lines
        assert "\n".join(lines).count("://me@localhost/") == 1
        own = self.database.url_for(self.driver).partition("://")[2].replace("%", "%%")
        found = []
        for line in lines:
            name, _, value = line.partition(" = ")
            if name == "tenants":
                value = " ".join(self.tenants)
            elif value.endswith("/mydb"):
                value = value.replace("me@localhost/mydb", own)
            else:
                value = value.replace(
                    "me@localhost/", own.replace(str(self.database.url.database), "")
                )
            found.append(f"{name} = {value}")
        return found

    def versions(self) -> dict[str, set[str]]:
        """Return the versions of each tenant, or of the database, all of which have the tables."""
        found = {}
        for tenant in self.tenants or [""]:
            url: URL = self.database.url
            if self.database.kind == "sqlite" and tenant:
                url = url.set(database=str(self.folder / f"{tenant}.db"))
            schema = tenant if tenant and self.database.kind != "sqlite" else None
            engine = create_engine(url)
            assert {"author", "book"} <= set(inspect(engine).get_table_names(schema=schema))
            query = select(column("version_num")).select_from(
                table("alembic_version", schema=schema)
            )
            with engine.connect() as connection:
                found[tenant] = set(connection.execute(query).scalars())
            engine.dispose()
        return found


@pytest.fixture
def place(
    template: str, driver: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Place]:
    """A place for the migrations of a test; tenants' databases are dropped afterwards."""
    folder, kind = tmp_path / "project", kind_of(driver)
    if kind == "sqlite":
        database = Database(kind, URL.create("sqlite", database=str(folder / "mydb.db")))
    else:
        database = request.getfixturevalue(kind)
    tenants = ["acme", "globex"] if template == "multitenant" else []
    if kind == "mariadb":
        tenants = [f"{database.url.database}_{tenant}" for tenant in tenants]
    yield Place(database, driver, folder, tenants)
    if kind == "mariadb":
        database.run(*[f"DROP DATABASE IF EXISTS {tenant}" for tenant in tenants])


def paste(choice: Choice, place: Place, machine: Machine) -> None:
    """Do all that the page says but the installation, and look at the database after each step."""
    machine.make(place.folder, choice.init)
    set_lines(place.folder / "alembic.ini", place.substituted(choice.ini))
    machine.run(place.folder, choice.migrate)
    (revision,) = place.folder.glob("**/versions/*_create_the_tables.py")
    at_head = {tenant: {revision.name.partition("_")[0]} for tenant in place.tenants or [""]}
    assert place.versions() == at_head
    for block in choice.python:
        place.database.run("DROP TABLE book", "DROP TABLE author", "DROP TABLE alembic_version")
        start = START_ASYNC if "async def start" in block else START
        program = block + start.format(url=place.url)
        run(place.folder, "python", "-c", program, **machine.env)
        assert place.versions() == at_head


@combinations
def test_what_is_shown_works(
    template: str, driver: str, page: Page, place: Place, machine: Machine
) -> None:
    """The commands, the settings and the program of each choice do what they are for."""
    page.choose(template, short(driver))
    assert page.fragment == fragment(template, driver)
    choice = read_choice(page)
    assert choice.install.startswith("pip install ")
    assert set(shlex.split(choice.install)[2:]) == packages(template, driver)
    is_async = driver not in SUPPORTED["sync"]
    expected = {"asyncio": [True], "shared": [is_async]}.get(template, [])
    assert ["async def start" in block for block in choice.python] == expected
    paste(choice, place, machine)


@pytest.mark.parametrize("template", SUPPORTED)
def test_each_way_to_a_template_is_the_same(
    template: str, page: Page, machine: Machine, tmp_path: Path
) -> None:
    """The three ways to a template give the same files, and nothing else of the page differs."""
    page.choose(template)
    choices, files = [], []
    for how in HOWS:
        page.choose(how)
        choice = read_choice(page)
        begin = {"init": "alembic-templates init ", "install": "alembic-templates install "}
        assert choice.init.startswith(begin.get(how, "alembic init "))
        folder = tmp_path / how / "project"
        machine.make(folder, choice.init)
        choices.append((choice.install, choice.ini, choice.migrate, choice.python))
        files.append(
            {
                path.relative_to(folder): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
        )
    assert choices[0] == choices[1] == choices[2]
    assert files[0] == files[1] == files[2]
    assert "env.py" in {path.name for path in files[0]}


def test_the_choice_is_what_the_templates_support(page: Page) -> None:
    """Each template can be chosen with the drivers that the tests run, and with no other."""
    found = {}
    for input_ in page.browser.find_elements(By.NAME, "template"):
        input_.click()
        found[input_.get_attribute("value")] = page.browser.execute_script(VISIBLE_DRIVERS)
    order = [driver for drivers in DRIVERS.values() for driver in drivers]
    assert found == {
        template: [[kind_of(driver), short(driver)] for driver in sorted(drivers, key=order.index)]
        for template, drivers in SUPPORTED.items()
    }


def test_a_link_leads_to_the_choice(page: Page) -> None:
    """Each address that the page gives shows the choice that it was given for."""
    for template, drivers in SUPPORTED.items():
        page.open(fragment(template, drivers[-1], "path"))
        assert page.chosen == [template, short(drivers[-1]), "path"]
        for driver in drivers:
            for how in HOWS:
                page.go(fragment(template, driver, how))
                assert page.chosen == [template, short(driver), how]


def test_the_fragment_follows_the_choice(page: Page) -> None:
    """The address tells each answer, and another address in the same window changes the answers."""
    page.choose("shared", "asyncpg", "path")
    assert page.fragment == "#shared-postgresql-asyncpg-path"
    page.choose("install")
    assert page.fragment == "#shared-postgresql-asyncpg-install"
    page.choose("init")
    assert page.fragment == "#shared-postgresql-asyncpg"
    page.choose("path")
    page.go("#sync-sqlite-sqlite3")
    assert page.chosen == ["sync", "sqlite3", "init"]


def test_a_driver_that_does_not_fit_gives_way(page: Page) -> None:
    """A template without the chosen driver gets another one of the same database, also by a link."""
    page.choose("shared", "asyncmy", "sync")
    assert page.fragment == "#sync-mariadb-pymysql"
    page.choose("asyncio")
    assert page.fragment == "#asyncio-mariadb-aiomysql"
    page.open("#sync-postgresql-asyncpg")
    assert page.chosen == ["sync", "psycopg", "init"]


def test_without_javascript(page: Page) -> None:
    """The answers still choose what is shown; a driver that does not fit shows a sentence instead."""
    script = '<script src="_static/chooser.js"></script>'
    html = page.file.read_text()
    assert html.count(script) == 1
    bare = page.file.with_name("bare.html")
    bare.write_text(html.replace(script, ""))
    page = Page(page.browser, bare)
    page.open()
    page.choose("shared", "asyncpg")
    sentence = page.browser.find_element(By.CLASS_NAME, "chooser-impossible")
    assert "asyncpg" in read_choice(page).install
    assert not sentence.is_displayed()
    page.choose("sync")
    assert page.blocks() == []
    assert sentence.is_displayed()
    page.choose("pymysql")
    assert "pymysql" in read_choice(page).install
    assert not sentence.is_displayed()


def test_blocks_are_copied(page: Page) -> None:
    """The button of a block copies the whole of it, as it is shown."""
    page.choose("multitenant")
    (wanted,) = [block for block in page.blocks("sh") if "upgrade" in block]
    for button in page.browser.find_elements(By.CSS_SELECTOR, ".chooser-steps button.copybtn"):
        shown = button.find_element(By.XPATH, "..").text
        if button.is_displayed() and "upgrade" in shown:
            assert button.value_of_css_property("opacity") == "1"
            button.click()
    page.browser.execute_script("document.body.prepend(document.createElement('textarea'))")
    area = page.browser.find_element(By.TAG_NAME, "textarea")
    area.send_keys(Keys.CONTROL, "v")
    assert area.get_property("value") == wanted.rstrip("\n")


def test_keyboard(page: Page) -> None:
    """The arrow keys move within a question, past what cannot be chosen, and Tab to the next."""
    page.choose("sync")
    active = page.browser.switch_to.active_element
    active.send_keys(Keys.TAB)
    active = page.browser.switch_to.active_element
    assert active.get_attribute("value") == "psycopg"
    active.send_keys(Keys.ARROW_DOWN)
    assert page.fragment == "#sync-mariadb-pymysql"
    page.browser.switch_to.active_element.send_keys(Keys.TAB)
    page.browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert page.fragment == "#sync-mariadb-pymysql-install"


def test_phone(page: Page) -> None:
    """On a narrow screen no answer or block stands beyond the edge, and a finger hits an answer."""
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for template in SUPPORTED:
            page.choose(template)
            right, height = page.browser.execute_script(EXTENT)
            assert right <= 360
            assert height >= 32
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.packaging
@pytest.mark.parametrize(("template", "driver"), [("shared", "sqlite+aiosqlite")])
def test_everything_with_nothing_but_what_is_shown(
    page: Page, place: Place, tmp_path: Path
) -> None:
    """In an empty virtual environment the command of pip installs all that the rest needs."""
    page.choose("shared", "aiosqlite")
    choice = read_choice(page)
    venv.EnvBuilder(symlinks=True).create(tmp_path / "venv")
    bin_ = tmp_path / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(bin_ / "python")]
    # This checkout stands for the package of the same name.
    wanted = [
        str(ROOT) if name == "alembic-templates" else name
        for name in shlex.split(choice.install)[2:]
    ]
    run(tmp_path, *pip, "install", "-q", *wanted, HOME=os.environ["HOME"])
    env = {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
    paste(choice, place, Machine(env))
