"""Find what is unsafe in revisions before a database runs them.

Each revision is rendered by itself through the owner's env.py, and squawk looks at its SQL if that
is for PostgreSQL. What squawk cannot see is left out here: which type a column had, which tables
the revision itself has made. By default a finding is something that stops the application or loses
data; rules of style and of timeouts are off.
"""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alembic.script import Script, ScriptDirectory

from alembic_templates._alembic_config import config_of
from alembic_templates._history import ancestors, find, load, place
from alembic_templates._lint_rules import OWN, SQUAWK, Tables, is_harmless, own_problems
from alembic_templates._offline import Rendered, Statement, render
from alembic_templates._squawk import Problem, settings, squawk

# What is found without a look at the SQL.
_HISTORY = ["multiple-heads", "not-rendered", "ignore-comment"]


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where."""

    path: Path
    line: int
    rule: str
    sentence: str

    @property
    def place(self) -> str:
        """The file's path, from the current folder if it is in there."""
        return place(self.path)

    def as_text(self) -> str:
        """Return the line that is printed."""
        return f"{self.place}:{self.line}: {self.rule}: {self.sentence}"

    def as_github(self) -> str:
        """Return the command to a workflow of GitHub, which shows it beside the line.

        The escapes are those of GitHub's own toolkit (packages/core/src/command.ts).
        """
        place, rule = (_escaped(each, "%\r\n:,") for each in (self.place, self.rule))
        text = _escaped(self.sentence, "%\r\n")
        return f"::error file={place},line={self.line},title={rule}::{text}"


@dataclass(frozen=True)
class Report:
    """The findings, in the order of the history, and the summary that stands below them."""

    findings: list[Finding]
    summary: str


def lint(config_file: Path, *, since: str | None, url: str | None) -> Report:
    """Look at the revisions that are not ancestors of `since`, or at all.

    `url` is needed for its dialect alone; without one it is that of the environment. Raises
    TemplatesError where there is none, no squawk, no such revision or configuration.
    """
    config = config_of(config_file)
    if url is not None:
        config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    directory, scripts = load(config)
    old: set[str] = set()
    for script in find(directory, since, "--since") if since is not None else []:
        old |= ancestors(directory, script.revision, with_dependencies=True)
    looked_at = [script for script in scripts if script.revision not in old]
    rendering = render(config, directory, {script.revision for script in looked_at})
    options = settings()
    rules = [*_HISTORY, *OWN, *SQUAWK, *options.get("included_rules", [])]
    found = _heads(directory)
    for rendered in rendering.revisions:
        found += _failure(rendered)
    found += _problems(rendering.revisions, rules, options)
    heads = [script for script in scripts if script.is_head]
    findings = list(_without_ignored(found, [*looked_at, *heads], rules))
    order = {Path(script.path): number for number, script in enumerate(scripts)}
    findings.sort(key=lambda each: (order[each.path], each.line, each.rule))
    return Report(findings, _summary(findings, len(looked_at), rendering.dialects))


def _summary(findings: Sequence[Finding], revisions: int, dialects: set[str]) -> str:
    others = " and ".join(sorted(dialects - {"postgresql"}))
    if dialects == {others}:
        return f"The database is {others}: only the heads were looked at."
    number = len(findings) or "no"
    counted = (
        f"{number} finding{'' if len(findings) == 1 else 's'} in {revisions} "
        f"revision{'' if revisions == 1 else 's'}"
    )
    return f"{counted}; on {others} only the heads were looked at" if others else counted


def _heads(directory: ScriptDirectory) -> list[Finding]:
    """Return a finding for each head where there are several."""
    heads = sorted(directory.get_heads())
    if len(heads) < 2:
        return []
    sentence = (
        f"There are {len(heads)} heads ({', '.join(heads)}), and `alembic upgrade head` fails: run "
        "`alembic-templates rebase` or `alembic merge heads`."
    )
    found = []
    for head in heads:
        script: Any = directory.get_revision(head)
        lines = _source(script).splitlines()
        at = next((n for n, line in enumerate(lines, 1) if re.match(r"revision\b", line)), 1)
        found.append(Finding(Path(script.path), at, "multiple-heads", sentence))
    return found


def _failure(rendered: Rendered) -> list[Finding]:
    """Return a finding for a revision that cannot be rendered."""
    if rendered.error is None:
        return []
    line, reason = rendered.error
    sentence = (
        f"The revision cannot be rendered without a database ({reason}): what follows in it was "
        "not looked at."
    )
    return [Finding(Path(rendered.script.path), line, "not-rendered", sentence)]


def _problems(
    revisions: Sequence[Rendered], rules: Sequence[str], options: dict[str, Any]
) -> list[Finding]:
    """Return what is wrong with the SQL of revisions, each finding once."""
    found: dict[tuple[int, int], list[Finding]] = {}
    tables = [Tables(each.statements, in_transaction=each.in_transaction) for each in revisions]
    for number, at, problem in _of_squawk(revisions, options):
        statement = revisions[number].statements[at]
        if problem.rule in rules and not is_harmless(problem, statement, at, tables[number]):
            finding = _finding(revisions[number], statement, problem.rule, problem.sentence)
            found.setdefault((number, at), []).append(finding)
    findings = [each for of_statement in found.values() for each in _most_specific(of_statement)]
    for rendered, known in zip(revisions, tables, strict=True):
        for statement, rule in own_problems(rendered.statements, known):
            findings.append(_finding(rendered, statement, rule, OWN[rule]))
    return list(dict.fromkeys(findings))


def _finding(rendered: Rendered, statement: Statement, rule: str, sentence: str) -> Finding:
    sentence = " ".join(sentence.split())
    return Finding(Path(rendered.script.path), statement.line, rule, sentence)


def _most_specific(findings: list[Finding]) -> list[Finding]:
    """Return a statement's findings without the general rule of constraints if one says more.

    Squawk has both, and the general one advises NOT VALID where that is refused.
    """
    specific = {
        "adding-foreign-key-constraint",
        "adding-serial-primary-key-field",
        "disallowed-unique-constraint",
    }
    if specific.isdisjoint(each.rule for each in findings):
        return findings
    return [
        each
        for each in findings
        if each.rule != "constraint-missing-not-valid"
        or "VALIDATE" in each.sentence.partition(".")[0]
    ]


def _of_squawk(
    revisions: Sequence[Rendered], options: dict[str, Any]
) -> Iterator[tuple[int, int, Problem]]:
    """Give squawk's problems, each with the numbers of its revision and its statement.

    Squawk looks at nothing of a file that has a statement it cannot parse. Such a statement is a
    problem, and the others are looked at again without it.
    """
    left = {n: list(range(len(each.statements))) for n, each in enumerate(revisions)}
    while left := {n: numbers for n, numbers in left.items() if numbers}:
        files, places = {}, {}
        for n, numbers in left.items():
            files[n], places[n] = _file(revisions[n], numbers)
        broken: dict[int, set[int]] = {}
        for problem in squawk(files, options):
            at = places[problem.file][problem.line]
            if problem.rule != "syntax-error":
                yield problem.file, at, problem
            elif problem.file not in broken:  # what follows may be an error of the same statement
                broken[problem.file] = {at}
                said = f"squawk cannot parse this statement ({problem.sentence})"
                yield problem.file, at, replace(problem, sentence=f"{said}, and has not judged it.")
        left = {n: [at for at in left[n] if at not in each] for n, each in broken.items()}


def _file(rendered: Rendered, numbers: Sequence[int]) -> tuple[str, list[int]]:
    """Return the SQL of some statements in their transaction, and whose each line is."""
    lines, whose = [], []
    if rendered.in_transaction:
        lines, whose = ["BEGIN;"], [numbers[0]]
    for number in numbers:
        text = re.sub(r"\r\n?", "\n", rendered.statements[number].text).split("\n")
        lines += [*text[:-1], text[-1] if text[-1].endswith(";") else f"{text[-1]};"]
        whose += [number] * len(text)
    # The end of the file, where an error may stand, belongs to the last statement.
    return "\n".join([*lines, "COMMIT;" * rendered.in_transaction, ""]), [
        *whose,
        numbers[-1],
        numbers[-1],
    ]


def _without_ignored(
    findings: Sequence[Finding], scripts: Sequence[Script], rules: Sequence[str]
) -> Iterator[Finding]:
    """Give the findings that no comment of their revision silences, and the wrong comments."""
    silenced: set[tuple[Path, str]] = set()
    for path, script in {Path(script.path): script for script in scripts}.items():
        for line, text in _comments(script):
            rule, reason = re.fullmatch(r"(?i:ignore\b)?\s*(\S*)\s*(.*)", text).groups()  # type: ignore[union-attr]
            sentence = None
            if not text.lower().startswith("ignore") or not rule or not reason:
                sentence = "The comment silences nothing: write `# lint: ignore RULE reason`."
            elif rule not in rules:
                sentence = (
                    f"The comment silences {rule}, which is no rule of this run: expected "
                    f"one of {', '.join(sorted(rules))}."
                )
            if sentence:
                yield Finding(path, line, "ignore-comment", sentence)
            else:
                silenced.add((path, rule))
    yield from (each for each in findings if (each.path, each.rule) not in silenced)


def _comments(script: Script) -> Iterator[tuple[int, str]]:
    """Give the comments of a revision that speak to lint, each with its line."""
    with Path(script.path).open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            match = re.search(r"#\s*lint:\s*(.*)", token.string, re.IGNORECASE)
            if token.type == tokenize.COMMENT and match:
                yield token.start[0], match[1].strip()


def _source(script: Script) -> str:
    with tokenize.open(script.path) as file:
        return file.read()


def _escaped(text: str, characters: str) -> str:
    """Return text with each of the characters as a % and its number; % comes first."""
    for character in characters:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
