"""The documentation: it builds, its links lead somewhere, and what people copy from it works."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

import pytest
import yaml
from conftest import ROOT, Project
from sandboxes import Sandbox
from sqlalchemy import URL

from alembic_templates._catalog import catalog, templates_folder

DOCS = ROOT / "docs"
CODE = DOCS / "code"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]
    if not any(part.startswith("_") for part in path.relative_to(ROOT).parts)
)

# Pages whose blocks other tests run: those of test_chooser.py and test_readme.py.
ELSEWHERE = {"docs/chooser.md", "README.md"}

# Blocks that people run and a test of a page cannot, by the words that they begin with.
NOT_RUN = {
    "# Try a template on a scratch SQLite file": "CI runs it: it installs the checkout",
    "# Run all tests": "CI runs it: these tests are a part of it",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: what stands after the fence, its `:caption:`, and its lines."""

    language: str
    caption: str | None
    text: str


def blocks_of(page: str) -> Iterator[Block]:
    """Give the blocks of code of a page, in order."""
    source = (ROOT / page).read_text(encoding="utf-8")
    for fence in re.finditer(r"^```(\S[^\n]*)\n(.*?)^```$", source, re.MULTILINE | re.DOTALL):
        language, body = fence[1].removeprefix("{code-block} "), fence[2]
        caption = re.search(r"^:caption: (.+)\n", body, re.MULTILINE)
        text = re.sub(r"\A(:\w+:.*\n)+\n?", "", body)
        if caption and language.startswith("{literalinclude} code/"):
            source = DOCS / language.removeprefix("{literalinclude} ")
            language, text = "python", source.read_text(encoding="utf-8")
        yield Block(language, caption and caption[1], text)


def to_run(page: str) -> list[Block]:
    """Return the blocks of a page that its test runs, or writes to a file, in order."""
    found = [
        block
        for block in blocks_of(page)
        if block.language == "ini"
        or (block.language == "python" and block.caption)
        or (block.language == "sh" and not block.text.startswith(tuple(NOT_RUN)))
    ]
    return found if any(block.language == "sh" for block in found) else []


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `tox -e docs` builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    options = re.search(r"^commands = sphinx-build (.+ docs) ", tox, re.MULTILINE)
    assert options
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", *options[1].split(), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder


class Page(HTMLParser):
    """The anchors of a built page, its links, and the text of each block of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.code: list[str] = []
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note anchors and links, and begin a block of code."""
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        self.links += [value for name in ("href", "src") if (value := given.get(name))]
        if tag == "pre":
            self.code.append("")
        if self._inside or tag == "pre":
            self._inside.append(given.get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        """Leave an element of a block."""
        if self._inside:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        """Note what a block says, without the numbers of its lines."""
        if self._inside and "linenos" not in self._inside:
            self.code[-1] += data


@cache
def built(path: Path) -> Page:
    """Return a built page."""
    return Page(path)


def test_all_links_inside_the_site_lead_somewhere(site: Path) -> None:
    """Each relative link is to a file of the site and, where it names one, to an anchor in it."""
    broken = []
    pages = sorted(site.rglob("*.html"))
    for path in pages:
        for link in built(path).links:
            name, anchor = urldefrag(link)
            name = name.partition("?")[0]  # the version of a style sheet
            if re.match(r"[a-z]+:|//", name):
                continue
            target = (path.parent / unquote(name)).resolve() if name else path
            if not target.is_file() or (
                anchor and target.suffix == ".html" and unquote(anchor) not in built(target).ids
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 15
    assert broken == []


def test_names_of_alembic_and_sqlalchemy_are_links(site: Path) -> None:
    """A name of an inventory in docs/ leads to the documentation that has it; each one is used."""
    links = {link for path in site.rglob("*.html") for link in built(path).links}
    for inventory in sorted((DOCS / "inventories").iterdir()):
        for line in inventory.read_text(encoding="utf-8").splitlines()[3:]:
            name, _, place = line.split()
            assert [link for link in links if link.endswith(f"/{place}#{name}")], name


@pytest.mark.parametrize("name", catalog())
def test_page_of_a_template_shows_all_of_its_env(site: Path, name: str) -> None:
    """The parts of a template's page are the lines of its env.py, each of them once, in order."""
    shown = "\n".join(built(site / "templates" / f"{name}.html").code)
    source = (templates_folder() / name / "env.py").read_text(encoding="utf-8")
    lines = [line for line in source.splitlines() if line]
    found = [line for line in shown.splitlines() if line]
    start = found.index(lines[0])
    assert found[start : start + len(lines)] == lines
    page = (DOCS / "templates" / f"{name}.md").read_text(encoding="utf-8")
    # The env.py of `multitenant` is its own; that of the others is shown by a part they share.
    included = "{literalinclude} ../../templates/multitenant/env.py"
    shared = "{include} ../_parts/env.md"
    found = [each for each in (included, shared) if each in page]
    assert found == [included if name == "multitenant" else shared]


@pytest.mark.parametrize("page", [*(f"templates/{name}" for name in catalog()), "fleets"])
def test_diagrams_stand_in_their_pages(site: Path, page: str) -> None:
    """A diagram is an SVG with all words of its text, and with words for a screen reader."""
    source = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(r"^:::\{(\w+)\} (.+)\n((?:.+\n)+?):::$", source, re.MULTILINE)
    assert found
    html = (site / f"{page}.html").read_text(encoding="utf-8")
    (drawing,) = re.findall(r'<svg class="diagram".*?</svg>', html)
    svg = ElementTree.fromstring(drawing)
    assert svg.get("aria-label") == found[2]
    drawn = " ".join(str(each.text) for each in svg.iter("text"))
    ends = re.findall(r"[:=] (?:yours |ours )?(.+?)(?:,|$)", found[3], re.MULTILINE)
    assert len(ends) > 3
    assert [words for words in ends if words.strip("= ") not in drawn] == []


def test_index_leads_to_migrations_at_start_up(site: Path) -> None:
    """One click leads from the first page to async PostgreSQL with migrations at start-up."""
    assert "startup.html#async-postgresql" in built(site / "index.html").links


@pytest.mark.parametrize("name", catalog())
def test_page_of_a_template_names_its_files(name: str) -> None:
    """The table of a template's page has the files of its folder, and no other."""
    page = (DOCS / "templates" / f"{name}.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\S+)` \|", page.partition("## The files")[2], re.MULTILINE)
    folder = templates_folder() / name
    assert sorted(table) == sorted(path.name for path in folder.iterdir() if path.is_file())


def environment(scratch: Sandbox, state: Path) -> dict[str, str]:
    """Return the variables of a page's commands: those that its blocks have exported come last."""
    return {
        **scratch.env,
        "PYTHONDONTWRITEBYTECODE": "",  # Alembic is compiled once
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # What the page installs is there; a download would be a mistake.
        "PIP_NO_INDEX": "1",
        "STATE": str(state),
    }


def with_real_server(block: Block, request: pytest.FixtureRequest) -> str:
    """Put the tests' servers in the place of `me@localhost/mydb`, which the pages write for yours."""

    def real(found: re.Match[str]) -> str:
        kind = "postgresql" if found[1] == "postgresql" else "mariadb"
        url: URL = request.getfixturevalue(kind).url
        url = url.set(drivername=found[0].partition(":")[0])
        text = url.render_as_string(hide_password=False)
        return text.replace("%", "%%") if block.language == "ini" else text

    return re.sub(r"\b(postgresql|mysql)(?:\+\w+)?://me@localhost/mydb\b", real, block.text)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and to_run(page)])
def test_what_a_page_says_to_run_works(page: str, request: pytest.FixtureRequest) -> None:
    """The blocks of a page run in a new folder, in order; ini blocks are set in alembic.ini.

    The folder has the models.py of the first page, which the others take for granted.
    """
    scratch: Sandbox = request.getfixturevalue("sandbox")
    pip = scratch.python.with_name("pip")
    pip.write_text(f'#!/bin/sh\nexec {scratch.python} -m pip "$@"\n', encoding="utf-8")
    pip.chmod(0o755)
    folder = scratch.folder / "project"
    folder.mkdir()
    shutil.copy2(CODE / "models.py", folder)
    state = scratch.folder / "state"
    state.touch()
    ran = 0
    for block in to_run(page):
        text = with_real_server(block, request)
        if block.language == "ini":
            set_options(Project(folder), text)
        elif block.language == "python":
            write_code(folder, str(block.caption), text)
        else:
            ran += 1
            script = f'set -eo pipefail\n. "$STATE"\n{text}\n[ $? = 0 ]\nexport -p > "$STATE"\n'
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=folder,
                env=environment(scratch, state),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if done.returncode or "Traceback" in done.stderr:
                pytest.fail(f"{text}\n{done.stdout}\n{done.stderr}")
    assert ran


def write_code(folder: Path, caption: str, text: str) -> None:
    """Write a block to the file that its caption names, or `FILE, in front of "LINE"`."""
    name, _, line = caption.partition(", in front of ")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if line:
        before, mark, after = path.read_text(encoding="utf-8").partition(line.strip('"'))
        assert mark, caption
        text = f"{before}{text}{mark}{after}"
    path.write_text(text, encoding="utf-8")


def set_options(project: Project, text: str) -> None:
    """Set the options of an ini block in alembic.ini, in the section that it names."""
    section = "alembic"
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition("="))
        if name.startswith("["):
            section = name.strip("[]")
        elif name:
            project.set(section, **{name.replace(".", "__"): value})


def test_blocks_that_do_not_run_are_few() -> None:
    """Each block of commands is run but those that are named above, and each of those exists."""
    blocks = [block for page in PAGES for block in blocks_of(page)]
    kept = [block.text for block in blocks if block.text.startswith(tuple(NOT_RUN))]
    assert {start for start in NOT_RUN if any(text.startswith(start) for text in kept)} == {
        *NOT_RUN
    }
    # Output to read, and commands of one's own programs.
    assert [block.text for block in blocks if block.language == "console"] == []
    assert {block.language.partition(" ")[0] for block in blocks} <= {
        "sh", "ini", "python", "text", "yaml", "{include}", "{literalinclude}", "{toctree}",
    }  # fmt: skip


# What people see: errors, and lines that are logged.
MESSAGES = {
    "AutogenerateDiffsDetected", "CommandError", "LockNotAvailable", "TemplatesError",
    "info", "warning", "add_detail",
}  # fmt: skip


def words_of(node: ast.expr) -> str:
    """Return a text of the sources as it is quoted, with … for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(?:[sdg]|\.\df)", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return "…"


def messages_of(paths: list[Path]) -> dict[str, str]:
    """Return the messages of some files, each with the name of what is called with it."""
    found = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                called = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
                if called in MESSAGES:
                    found[re.sub("…+", "…", words_of(node.args[0]))] = called
    return found


def quoted_messages() -> list[str]:
    """Return the messages that the page quotes."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)


def test_quoted_errors_stand_in_the_sources() -> None:
    """Each message that the troubleshooting page quotes is the beginning of one in the sources."""
    package = ROOT / "src" / "alembic_templates"
    sources = messages_of([*templates_folder().glob("*/*.py"), *package.glob("*.py")])
    quotes = quoted_messages()
    assert [each for each in quotes if not any(text.startswith(each) for text in sources)] == []
    assert len(quotes) == len(set(quotes))


def test_errors_of_the_environments_are_all_quoted() -> None:
    """The page has each CommandError of the templates; those of replay.py are reasons of a line."""
    paths = [path for path in templates_folder().glob("*/*.py") if path.name != "replay.py"]
    errors = [
        text for text, called in messages_of(paths).items() if called not in {"info", "warning"}
    ]
    quotes = quoted_messages()
    assert len(errors) > 40
    assert [text for text in errors if not any(text.startswith(each) for each in quotes)] == []


def test_job_of_the_fleet_is_one_that_kubernetes_takes() -> None:
    """The YAML that the page of fleets includes is a Job that runs a command of this environment."""
    readme = (templates_folder() / "multitenant" / "README").read_text(encoding="utf-8")
    text = readme[readme.index("    apiVersion: batch/v1") : readme.index("A pod that is stopped")]
    job = yaml.safe_load(textwrap.dedent(text))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completions"] == spec["parallelism"] == 2
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what a Job allows
    (container,) = pod["containers"]
    assert container["command"] == ["alembic", "-x", "jobs=4", "upgrade", "head"]
    assert container["envFrom"] == [{"secretRef": {"name": "database-url"}}]


def test_code_of_each_recipe_follows_the_table() -> None:
    """The cookbook's page has a section of code for each row of its first table, in order.

    What is for those who look up a test stands at the end.
    """
    page = (DOCS / "cookbook.md").read_text(encoding="utf-8")
    titles = re.findall(r"^\| \[(.+?)\]\(#", page, re.MULTILINE)
    *sections, last = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert "tests/test_" in last.partition("\n")[2]
    assert not any("| `tests/" in section for section in [page.partition("\n## ")[0], *sections])
    assert re.findall(r"^\| \[(.+?)\]\(https", last, re.MULTILINE) == titles
    assert [section.partition("\n")[0] for section in sections] == titles
    assert [each for each in sections if "```{literalinclude}" not in each] == []


def test_reference_has_each_verb_of_the_command(site: Path) -> None:
    """The reference shows the help of each verb, as the command prints it."""
    shown = built(site / "command.html")
    verbs = re.findall(r"^ {4}(\w+)(?: {2,}\S.*)?$", shown.code[0], re.MULTILINE)
    assert {"install", "try", "prune"} <= set(verbs)
    for verb in verbs:
        assert verb in shown.ids
        assert any(f"usage: alembic-templates {verb} " in text for text in shown.code), verb


def generated() -> ModuleType:
    """Return the extension that makes parts of pages."""
    spec = importlib.util.spec_from_file_location("generated", DOCS / "_ext" / "generated.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_of_the_benchmarks_become_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page has the machine, and tables of ratios, seconds, and statements."""
    row = {"case": "no work", "way": "sync", "against": "Alembic's", "goal": "", "cpu": None}
    fleet = {"median": 12.0, "min": 12.0, "max": 12.0, "seconds": 15.2, "against_seconds": 1.26}
    fleet |= {"case": "empty, 500 tenants, 2 jobs", "against": "psql", "goal": "", "cpu": 9.8}
    fleet |= {"statements": 6.0, "against_statements": 3.0}
    each = {**fleet, "way": "an alembic process for each tenant", "seconds": 102.4}
    each |= {"statements": 8.5}
    results = {
        "machine": {"CPUs": "2", "alembic": "1.20.1"},
        "quick": False,
        "benchmarks": {
            "startup": [{**row, "median": 0.7612, "min": 0.7, "max": 0.81}],
            "fleet": [{**fleet, "way": "multitenant"}, each],
        },
    }
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    module = generated()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.benchmarks() == textwrap.dedent(
        """\
        Measured on: CPUs 2, alembic 1.20.1.

        :::{container} scroll
        ![The ratios as bars](../benchmarks/results.svg)
        :::

        ### A command with nothing to do

        | case | way | compared with | times as long | goal |
        | --- | --- | --- | --- | --- |
        | no work | sync | Alembic's | 0.761 (0.7 to 0.81) |  |

        ### A fleet of tenants

        | case | way | compared with | times as long | goal |
        | --- | --- | --- | --- | --- |
        | empty, 500 tenants, 2 jobs | multitenant | psql | 12 |  |
        | empty, 500 tenants, 2 jobs | an alembic process for each tenant | psql | 12 |  |"""
    )
    assert module.fleet_seconds().splitlines()[2:] == [
        "| psql | 1.3 |  | 3 |",
        "| multitenant | 15.2 | 10 | 6 |",
        "| an alembic process for each tenant | 102.4 | 10 | 8.5 |",
    ]
    assert module.fleet_summary() == (
        "500 schemas get ten revisions in 15 seconds with 2 jobs, for which `psql` takes 1 with the "
        "same SQL, and an `alembic` process for each schema 102. Beside those of its revisions a "
        "tenant costs 6 statements, where `psql` sends 3."
    )


def test_figures_are_those_of_a_whole_run() -> None:
    """The README has the sentence that is made of results.json, and that was no quick run."""
    module = generated()
    assert module.results()["quick"] is False
    assert module.fleet_summary() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_included_text_of_a_readme_has_the_font_of_code() -> None:
    """Options, URLs and names get backticks, those that have them keep them, and code stays."""
    mark = generated().mark_code
    assert mark("| -x jobs=4 | lock_timeout | see sqlite:////srv/{tenant}.db, or {tenant} |") == (
        "| `-x jobs=4` | `lock_timeout` | see `sqlite:////srv/{tenant}.db`, or `{tenant}` |"
    )
    assert mark('Write {"connect_timeout": 10} in alembic.ini.') == (
        'Write `{"connect_timeout": 10}` in `alembic.ini`.'
    )
    assert mark("See `-x url=… upgrade` and render().") == "See `-x url=… upgrade` and `render()`."
    assert mark("    from myapp.migrations.commands import Migrations") == (
        "    from myapp.migrations.commands import Migrations"
    )


def test_questions_of_the_scaffold_are_all_on_its_page(site: Path) -> None:
    """The page of the scaffold has each question of cookiecutter.json, with its choices."""
    asked = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    page = (site / "scaffold.html").read_text(encoding="utf-8")
    for key, answer in asked.items():
        for word in [key, *answer] if isinstance(answer, list) else [key]:
            if not key.startswith("_"):
                assert f'<span class="pre">{word}</span>' in page, word
