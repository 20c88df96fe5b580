"""Plant faults in the templates, one at a time, and see whether the tests find them.

A fault is what a tired author would write: a condition turned round, a call left out, an error that
is not raised, another limit. Each is planted in a copy of the repository, in every template that has
the module, and the test files of TESTS are run on it until one of their tests fails. Faults are drawn
from all that are possible, by a seed, and each function gets one before any gets two. What no test
finds is printed: a test is missing, or the line does nothing.

    python scripts/plant_faults.py --count 60 --seed 1 [--module settings] [--list]
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORIGIN = ROOT / "templates" / "multitenant"
# For each module, the tests that should find a fault in it, those of the promise first.
TESTS = {
    "migration_lock": [
        "lock",
        "sqlite",
        "connections",
        "settings",
        "fleet_urls",
        "ddl_lock_retries",
        "faults",
    ],
    "postgresql_lock": ["lock", "pooler", "connections", "fleet", "ddl_lock_retries", "faults"],
    "mysql_lock": ["lock", "connections", "fleet", "pooler", "ddl_lock_retries", "faults"],
    "sqlite_transactions": ["sqlite", "lock", "connections", "faults"],
    "turns": ["commands", "lock"],
    "tenant_names": ["fleet_names", "fleet_urls", "fleet"],
    "tenant_schemas": ["fleet", "fleet_names", "connections", "pooler", "faults"],
    "settings": ["settings", "written", "logging", "ddl_lock_retries", "fleet"],
    "database_url": ["settings", "passwords", "written"],
    "connections": ["connections", "settings", "written", "shape", "lock"],
    "metadata": ["settings", "written", "autogenerate_rules"],
}
OPPOSITE = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
# Seconds after which a run has not come to an end, which is a way to find a fault, too.
TIMEOUT = 1800


@dataclass(frozen=True)
class Fault:
    """A piece of a module, from one offset to another, and what stands there instead."""

    module: str
    function: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        """Return the fault as one line."""
        old, new = (" ".join(text.split())[:60] for text in (self.old, self.new))
        return f"{self.module}.py:{self.line} {self.function}: {old}  ->  {new}"


def faults_of(module: str) -> Iterator[Fault]:
    """Give each fault that is possible in the functions of a module."""
    source = (ORIGIN / f"{module}.py").read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            for place, new in replacements(node, source.decode()):
                start = lines[place.lineno - 1] + place.col_offset
                end = lines[(place.end_lineno or 0) - 1] + (place.end_col_offset or 0)
                old = source[start:end].decode()
                yield Fault(module, function.name, place.lineno, start, end, old, new)


def replacements(node: ast.AST, source: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Give what can stand in the place of a node, or of a part of it."""
    text = ast.get_source_segment(source, node) or ""
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield node.test, f"not ({ast.get_source_segment(source, node.test)})"
    elif isinstance(node, ast.Expr | ast.Raise) and "(" in text:
        yield node, "pass"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = (ast.get_source_segment(source, n) for n in (node.left, node.comparators[0]))
        yield node, f"({left} {OPPOSITE[type(node.ops[0])]} {right})"
    elif isinstance(node, ast.BoolOp):
        word = "or" if isinstance(node.op, ast.And) else "and"
        values = [f"({ast.get_source_segment(source, value)})" for value in node.values]
        yield node, f"({f' {word} '.join(values)})"
    elif isinstance(node, ast.Constant) and text in {"True", "False"}:
        yield node, str(not node.value)
    elif isinstance(node, ast.Constant) and type(node.value) in {int, float}:
        yield node, str(node.value + 1)  # type: ignore[operator]
    elif isinstance(node, ast.Return) and node.value is not None and text != "return None":
        yield node, "return None"


def drawn(modules: list[str], count: int, seed: int) -> list[Fault]:
    """Draw faults, one for each function before any has two."""
    chance = random.Random(seed)  # noqa: S311 - a sample
    functions: dict[tuple[str, str], list[Fault]] = {}
    for module in modules:
        for fault in faults_of(module):
            functions.setdefault((fault.module, fault.function), []).append(fault)
    queues = list(functions.values())
    chance.shuffle(queues)
    for queue in queues:
        chance.shuffle(queue)
    rounds = zip_longest(*queues)
    return [fault for each in rounds for fault in each if fault is not None][:count]


def copy_repository(folder: Path) -> None:
    """Copy what the tests need of the repository."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "cookiecutter.json"):
        shutil.copy2(ROOT / name, folder)
    for name in ("src", "templates", "tests", "docs", "hooks"):
        ignored = shutil.ignore_patterns("__pycache__", "_build")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)


def finder(fault: Fault, folder: Path) -> str | None:
    """Plant a fault in a copy, and return the test that finds it, None if none does."""
    copies = sorted(folder.glob(f"templates/*/{fault.module}.py"))
    before = copies[0].read_bytes()
    after = before[: fault.start] + fault.new.encode() + before[fault.end :]
    compile(after, str(copies[0]), "exec")
    for copy in copies:
        copy.write_bytes(after)
    try:
        return failed(folder, [f"tests/test_{name}.py" for name in TESTS[fault.module]])
    finally:
        for copy in copies:
            copy.write_bytes(before)


def failed(folder: Path, files: list[str]) -> str | None:
    """Run test files as plain tox does, and return their first test that fails."""
    options = ["-x", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", "not full", "--tb=no"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *files],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder / "src")},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end of {' '.join(files)}"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split()[1] if lines else f"exit code {done.returncode} of {' '.join(files)}"


def main() -> int:
    """Plant the faults, print which test finds each, and return 1 if one is not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--module", action="append", choices=list(TESTS), dest="modules")
    parser.add_argument("--list", action="store_true", help="print the faults, and plant none")
    options = parser.parse_args()
    faults = drawn(options.modules or list(TESTS), options.count, options.seed)
    if options.list:
        print(*faults, sep="\n")
        return 0
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        for fault in faults:
            found = finder(fault, Path(folder))
            print(f"{fault}\n    {found or 'NOT FOUND'}", flush=True)
            if found is None:
                survivors.append(fault)
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults were found.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
