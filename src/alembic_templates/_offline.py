"""The SQL of each revision by itself, as the owner's own env.py writes it with `--sql`.

Alembic's offline mode renders the way from one revision to another as one script, in which nobody
can tell which line of which file has made a statement. Here env.py runs once, and runs the
revisions one after the other; what is written meanwhile belongs to that revision, and the line is
found on the stack. No database is connected to.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from configparser import InterpolationError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from alembic.config import Config
from alembic.operations.batch import BatchOperationsImpl
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import NoSuchModuleError

from alembic_templates._alembic_config import quiet, raised_in, reason
from alembic_templates._columns import Change, Columns
from alembic_templates.errors import TemplatesError

_NO_URL = (
    "give --url (nothing is connected to, so `--url postgresql://` is enough), or set "
    "sqlalchemy.url in the Alembic configuration."
)

# A statement after which other columns are those of a table, or the same ones are different.
_CHANGE = (
    r"(?:(?:CREATE|DROP)\b[\w\s]*?\bTABLE|ALTER\s+TABLE(?=.*\b(?:ALTER|RENAME)\b))\s+"
    r'(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(?:ONLY\s+)?([\w$."]+)'
)


@dataclass(frozen=True)
class Statement:
    """A statement of a revision, and the line of the revision's file that has made it.

    `change` is what is known of the column if alter_column() has made it.
    """

    text: str
    line: int
    change: Change | None = None


@dataclass
class Rendered:
    """What a revision has written: `error` is the line and the reason where it has failed.

    `in_transaction` says that env.py has begun a transaction around it.
    """

    script: Script
    in_transaction: bool
    statements: list[Statement] = field(default_factory=list)
    error: tuple[int, str] | None = None


@dataclass
class Rendering:
    """The revisions that were rendered for PostgreSQL, and the names of all dialects in use."""

    revisions: list[Rendered] = field(default_factory=list)
    dialects: set[str] = field(default_factory=set)


def render(config: Config, directory: ScriptDirectory, wanted: Collection[str]) -> Rendering:
    """Render the upgrade of each revision in `wanted`, given by its id, for PostgreSQL.

    A revision that fails has an `error`, and the others go on. An env.py that runs the migrations
    several times, for tenants or for several databases, gives each revision once for each set of
    arguments that its upgrade() gets. Raises TemplatesError where env.py itself fails.
    """
    recorder = _Recorder()
    config.output_buffer = recorder  # type: ignore[assignment]
    # Our own fleets then ask no database who their tenants are.
    config.attributes["any_tenant"] = True
    rendering = Rendering()
    scripts = list(reversed(list(directory.walk_revisions())))
    upgrade_all = _recorded(recorder, scripts)

    def steps(_heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        rendering.dialects.add(context.dialect.name)
        if context.dialect.name == "postgresql" and scripts:
            # One step for all: Alembic counts versions for each, which says nothing here.
            step = MigrationStep.upgrade_from_script(directory.revision_map, scripts[0])
            step.migration_fn = upgrade_all
            with _noting(context, recorder):
                yield step

    _run_env(config, directory, steps)
    if not rendering.dialects:
        raise TemplatesError(
            f"{_env(directory)} runs no migrations in offline mode: let it call "
            "context.run_migrations() where context.is_offline_mode() is true."
        )
    # The others say what the columns were before.
    rendering.revisions = [each for each in recorder.rendered if each.script.revision in wanted]
    return rendering


def _run_env(config: Config, directory: ScriptDirectory, steps: Callable[..., Any]) -> None:
    """Run env.py in offline mode, as `alembic upgrade heads --sql` does, with steps of our own."""
    try:
        with (
            quiet(logging.INFO),
            EnvironmentContext(
                config,
                directory,
                fn=steps,
                as_sql=True,
                starting_rev=None,
                destination_rev="heads",
                tag=None,
            ),
        ):
            directory.run_env()
    except (Exception, SystemExit) as error:
        raise _env_error(error, config, directory) from error


class _Recorder:
    """The output of the offline mode, which Alembic gives each statement in a call of its own."""

    def __init__(self) -> None:
        self.rendered: list[Rendered] = []
        self.current: Rendered | None = None
        self.in_transaction = False
        self.batch_line: int | None = None
        self.change: Change | None = None
        self.is_noted = False
        self.columns: Columns | None = None

    def write(self, text: str) -> None:
        """Take what Alembic writes: a statement or a comment."""
        sql = text.strip()
        if sql in {"BEGIN;", "COMMIT;"}:
            self.in_transaction = sql == "BEGIN;"
        if self.current is not None:
            line = self.batch_line or self.line(self.current.script)
            found = [Statement(piece, line, self.change) for piece in pieces(sql)]
            self.current.statements += found
            for statement in [] if self.is_noted else found:
                self.forget(statement)

    def forget(self, statement: Statement) -> None:
        """Forget the columns of a table that SQL of the revision's own has changed."""
        changed = re.match(_CHANGE, code(statement.text).strip(), re.IGNORECASE | re.DOTALL)
        if changed and self.columns is not None:
            self.columns.forget(changed[1])

    def flush(self) -> None:
        """Do nothing: there is nothing behind this output."""

    @staticmethod
    def line(script: Script) -> int:
        """Return the innermost line of a revision's file that is running, 1 if there is none."""
        frame = sys._getframe(1)
        while frame.f_back is not None:
            if frame.f_globals is vars(script.module):
                return frame.f_lineno
            frame = frame.f_back
        return 1


def pieces(sql: str) -> list[str]:
    """Return the statements of a text, such as an op.execute() with several of them."""
    if re.search(r"\bBEGIN\s+ATOMIC\b", sql, re.IGNORECASE):  # a function's body has its own
        return [sql]
    ends = [match.end() for match in re.finditer(";", code(sql))]
    found = [sql[start:end].strip() for start, end in zip([0, *ends], [*ends, None], strict=True)]
    return [each for each in found if code(each).strip("; \n\t")]


def code(sql: str) -> str:
    """Return SQL with spaces in place of what stands in texts and comments."""
    hidden = r"[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/"
    return re.sub(hidden, lambda found: " " * len(found[0]), sql, flags=re.DOTALL)


def _recorded(recorder: _Recorder, scripts: Sequence[Script]) -> Callable[..., None]:
    """Return a function that runs the upgrade() of revisions, with the arguments of env.py.

    What runs with the same arguments a second time is left out.
    """
    seen: set[str] = set()

    def upgrade(**arguments: Any) -> None:
        for script in scripts:
            run = f"{script.revision} {arguments}"
            if run in seen:
                continue
            seen.add(run)
            recorder.current = Rendered(script, recorder.in_transaction)
            recorder.rendered.append(recorder.current)
            try:
                script.module.upgrade(**arguments)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it may raise whatever it likes
                line = _error_line(error.__traceback__, script)
                recorder.current.error = (line, reason(error))
                if recorder.columns is not None:  # nobody knows what it would have done
                    recorder.columns.forget()
            finally:
                recorder.current = recorder.batch_line = None

    return upgrade


@contextmanager
def _noting(context: MigrationContext, recorder: _Recorder) -> Iterator[None]:
    """Let the recorder know what Alembic has forgotten when it writes a statement.

    That is what a column was before, which follows from the calls of the context's `impl`, and the
    line of an operation in batch_alter_table(), which is queued in BatchOperationsImpl.batch and
    run at the end of the block. The recorder takes the place of another `output_buffer` that env.py
    has given the `impl`. None of them is public: if Alembic changes them,
    test_a_safe_form_is_not_flagged, test_findings_point_at_the_operation and
    test_an_environment_for_several_databases_is_linted in tests/test_lint.py fail.
    """
    impl: Any = context.impl
    if impl.output_buffer is not recorder:  # which has not seen whether a transaction began
        recorder.in_transaction = impl.transactional_ddl
        impl.output_buffer = recorder
    recorder.columns = columns = Columns(context.dialect)
    init: Any = BatchOperationsImpl.__init__

    def begun(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        self.batch = _Batch(recorder)

    for name in ("create_table", "add_column", "alter_column", "rename_table"):
        setattr(impl, name, _noted(recorder, getattr(impl, name), getattr(columns, name)))
    BatchOperationsImpl.__init__ = begun  # type: ignore[method-assign]
    try:
        yield
    finally:
        BatchOperationsImpl.__init__ = init  # type: ignore[method-assign]


def _noted(
    recorder: _Recorder, run: Callable[..., None], note: Callable[..., Change | None]
) -> Callable[..., None]:
    """Return a method of Alembic's `impl` that also notes what it does to columns."""

    def method(*arguments: Any, **options: Any) -> None:
        recorder.change, recorder.is_noted = note(*arguments, **options), True
        try:
            run(*arguments, **options)
        finally:
            recorder.change, recorder.is_noted = None, False

    return method


class _Batch(list[Any]):
    """The queue of a batch, which gives the recorder the line of each operation as it is run."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.lines: list[int] = []

    def append(self, operation: Any) -> None:
        """Queue an operation."""
        current = self.recorder.current
        self.lines.append(self.recorder.line(current.script) if current else 1)
        super().append(operation)

    def __iter__(self) -> Iterator[Any]:
        """Give the operations in their order."""
        for line, operation in zip(self.lines, super().__iter__(), strict=True):
            self.recorder.batch_line = line
            yield operation
        self.recorder.batch_line = None


def _error_line(traceback: TracebackType | None, script: Script) -> int:
    """Return the innermost line of a revision's file in a traceback, 1 if there is none."""
    line = 1
    while traceback is not None:
        if traceback.tb_frame.f_globals is vars(script.module):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _env(directory: ScriptDirectory) -> Path:
    return Path(directory.dir, "env.py")


def _env_error(error: BaseException, config: Config, directory: ScriptDirectory) -> TemplatesError:
    """Return the error for an env.py that has failed, which most often misses a URL."""
    said = reason(error)
    if isinstance(error, CommandError) and said.startswith("No database URL"):
        return TemplatesError(f"No database URL: {_NO_URL}")
    if isinstance(error, CommandError):
        return TemplatesError(said)
    if isinstance(error, InterpolationError):
        return TemplatesError(
            f"{config.config_file_name} has an option that cannot be read: write each % in its "
            "value as %%."
        )
    if isinstance(error, NoSuchModuleError) or raised_in(error) == "sqlalchemy.engine.url":
        return TemplatesError(f"{_env(directory)} has no database URL that can be read: {_NO_URL}")
    return TemplatesError(f"{_env(directory)} fails in offline mode ({said}): correct it.")
