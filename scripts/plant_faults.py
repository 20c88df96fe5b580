"""Plant faults in the templates, one at a time, and see whether the tests find them.

A fault is what a tired author would write: a condition turned round, a call left out, an error that
is not raised, another limit. Faults are drawn from all that are possible, by a seed, and each function
gets one before any gets two. Each is planted in a copy of the repository, in every template that has
the module. The test files of TESTS are run on it until one of their tests fails, and if none does, the
other tests of plain tox, without those that read the sources and those that build packages. What no
test finds is printed: a test is missing, or the line does nothing.

    python scripts/plant_faults.py --count 30 --seed 30 [--module settings] [--list] [--jobs 2]
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Every module is in this template, but for the env.py of the other three.
ORIGIN = ROOT / "templates" / "multitenant"
OTHER_ENV = "shared/env"
# For each module, the tests that should find a fault in it, those of the promise first.
TESTS = {
    "autogenerate_rules": ["autogenerate_rules", "concurrent_indexes", "import_types", "settings"],
    "commands": ["commands", "connections", "replaceable", "fleet", "shape"],
    "concurrent_indexes": ["concurrent_indexes", "ddl_lock_retries", "shape"],
    "connections": ["connections", "settings", "written", "programs", "shape", "lock"],
    "database_url": ["settings", "passwords", "written", "programs", "fleet_pairs", "fleet_urls"],
    "ddl_retries": ["ddl_lock_retries", "pooler", "lock", "fleet"],
    "env": ["fleet_urls", "written", "autogenerate_rules", "fleet"],
    "event_loop": ["connections", "settings", "render", "shape"],
    "fleet": [
        "fleet_urls",
        "fleet_pairs",
        "fleet_parts",
        "fleet_report",
        "fleet",
        "fleet_restart",
        "lint",
    ],
    "fleet_read": ["fleet_urls", "fleet_parts", "fleet_names", "fleet_pairs", "fleet"],
    "fleet_report": ["fleet_report", "fleet_parts", "fleet_urls", "fleet_workers", "fleet"],
    "fleet_run": [
        "fleet_urls",
        "fleet_report",
        "fleet_parts",
        "fleet_pairs",
        "fleet",
        "fleet_workers",
        "fleet_restart",
    ],
    "fleet_script": ["fleet_urls", "fleet_pairs", "fleet_names", "lint", "fleet"],
    "fleet_servers": ["fleet_pairs", "fleet_restart", "fleet_urls", "fleet_workers", "rebase"],
    "fleet_settings": ["fleet_parts", "fleet_urls", "fleet", "written"],
    "fleet_workers": ["fleet_workers", "fleet_report", "fleet_restart", "fleet"],
    "import_types": ["import_types", "autogenerate_rules", "shape"],
    "metadata": ["settings", "written", "autogenerate_rules", "programs", "fleet"],
    "migration_lock": [
        "lock",
        "sqlite",
        "connections",
        "settings",
        "fleet_urls",
        "ddl_lock_retries",
        "programs",
        "faults",
    ],
    "mysql_lock": ["lock", "connections", "fleet", "pooler", "ddl_lock_retries", "faults"],
    "optional_files": ["shape", "programs"],
    "postgresql_lock": ["lock", "pooler", "connections", "fleet", "ddl_lock_retries", "faults"],
    "progress": ["fleet_workers", "fleet_report", "shape"],
    "render": ["commands", "shape"],
    "replay": ["fleet_urls", "fleet_pairs", "fleet", "fleet_report", "fleet_names"],
    "settings": [
        "settings",
        "written",
        "logging",
        "programs",
        "ddl_lock_retries",
        "fleet_urls",
        "fleet",
    ],
    OTHER_ENV: ["settings", "written", "autogenerate_rules", "connections"],
    "sqlite_transactions": ["sqlite", "lock", "connections", "faults"],
    "tenant_names": ["fleet_names", "fleet_urls", "fleet_pairs", "fleet"],
    "tenant_schemas": ["fleet", "fleet_names", "connections", "pooler", "faults"],
    "tenants": ["fleet_pairs", "fleet_parts", "fleet_names", "fleet"],
    "turns": ["commands", "lock", "ddl_lock_retries"],
}
# Tests that read the sources, or compare two copies of them. They find a fault by how it is written,
# and not by what it does.
READERS = [
    "test_command.py::test_commands_at_once_leave_whole_templates",
    "test_docs.py::test_errors_of_the_environments_are_all_quoted",
    "test_docs.py::test_quoted_errors_stand_in_the_sources",
    "test_lines.py",
    "test_render.py::test_rendered_files_are_formatted",
    "test_render.py::test_rendered_files_pass_the_linter",
    "test_scaffold.py::test_project_passes_ruff",
    "test_shape.py::test_functions_fit_on_a_screen",
    "test_shape.py::test_the_code_is_explained",
]
# What a copy of the repository does not need.
LEFT_OUT = (".git", ".tox", ".venv", ".*_cache", "__pycache__", "_build")
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


def source_of(module: str) -> Path:
    """Return the file of a module in the template in which it is edited."""
    if module == OTHER_ENV:
        return ORIGIN.parent / f"{module}.py"
    return ORIGIN / f"{module}.py"


def faults_of(module: str) -> Iterator[Fault]:
    """Give each fault that is possible in the functions of a module."""
    source = source_of(module).read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    for name, function in functions_of(ast.parse(source)):
        for node in nodes_of(function):
            for place, new in replacements(node, source.decode()):
                start = lines[place.lineno - 1] + place.col_offset
                end = lines[(place.end_lineno or 0) - 1] + (place.end_col_offset or 0)
                old = source[start:end].decode()
                yield Fault(module, name, place.lineno, start, end, old, new)


def functions_of(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Give each function in a node with its name, such as Bar.advance."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}."
            if not isinstance(child, ast.ClassDef):
                yield f"{prefix}{child.name}", child
        yield from functions_of(child, name)


def nodes_of(function: ast.AST) -> Iterator[ast.AST]:
    """Give the nodes of a function, without those of the functions in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from nodes_of(child)


def replacements(node: ast.AST, source: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Give what can stand in the place of a node, or of a part of it."""
    text = ast.get_source_segment(source, node) or ""
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield node.test, f"not ({ast.get_source_segment(source, node.test)})"
    elif isinstance(node, ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)
    ):
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


def finder(fault: Fault) -> str | None:
    """Plant a fault in a copy, and return the test that finds it, None if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "repository")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        before = source_of(fault.module).read_bytes()
        after = before[: fault.start] + fault.new.encode() + before[fault.end :]
        compile(after, fault.module, "exec")
        for file in copy.glob(f"templates/*/{fault.module.rpartition('/')[2]}.py"):
            if file.read_bytes() == before:
                file.write_bytes(after)
        first = [f"tests/test_{name}.py" for name in TESTS[fault.module]]
        return failed(copy, first) or failed(copy, ["tests", *left_out(first)])


def left_out(files: list[str]) -> list[str]:
    """Return the options that leave out the tests of some files, and READERS."""
    return [f"--deselect=tests/{each}" for each in READERS] + [f"--ignore={each}" for each in files]


def failed(folder: Path, files: list[str]) -> str | None:
    """Run test files as plain tox does, and return their first test that fails."""
    chosen = ["-m", "not full and not packaging", "--dist", "loadgroup"]
    options = ["-x", "-q", "-n", "2", "-p", "no:cacheprovider", "--tb=no", *chosen]
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
    return (
        lines[0].partition(" ")[2].partition(" - ")[0]
        if lines
        else f"exit code {done.returncode} of {' '.join(files)}"
    )


def main() -> int:
    """Plant the faults, print which test finds each, and return 1 if one is not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--module", action="append", choices=list(TESTS), dest="modules")
    parser.add_argument("--list", action="store_true", help="print the faults, and plant none")
    parser.add_argument("--jobs", type=int, default=1, help="how many faults are tried at once")
    options = parser.parse_args()
    if list(TESTS) != sorted([*(path.stem for path in ORIGIN.glob("*.py")), OTHER_ENV]):
        sys.exit("TESTS does not have each module once, in the order of their names.")
    faults = drawn(options.modules or list(TESTS), options.count, options.seed)
    if options.list:
        print(*faults, sep="\n")
        return 0
    survivors = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, found in zip(faults, pool.map(finder, faults), strict=True):
            print(f"{fault}\n    {found or 'NOT FOUND'}", flush=True)
            if found is None:
                survivors.append(fault)
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults were found.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
