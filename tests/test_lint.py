"""`alembic-templates lint`: what is unsafe in revisions is found, at its line, and nothing else."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Database, Project, original, render, without_traces
from processes import run_python

from alembic_templates._lint import lint
from alembic_templates._lint_rules import OWN, SQUAWK, is_constant, is_widened
from alembic_templates.errors import TemplatesError

# What strong_migrations calls unsafe, in the order of its README, with the rule that finds it.
UNSAFE = {
    "removing a column": ("op.drop_column('users', 'old')", "ban-drop-column"),
    "changing a type": (
        "op.alter_column('users', 'x', type_=sa.BigInteger(), existing_type=sa.Integer())",
        "changing-column-type",
    ),
    "changing an unknown type": (
        "op.alter_column('users', 'x', type_=sa.Text())",
        "changing-column-type",
    ),
    "changing a type that cannot be written": (
        "op.alter_column('users', 'x', type_=sa.Text(), existing_type=sa.types.UserDefinedType())",
        "changing-column-type",
    ),
    "shortening a text": (
        "op.alter_column('users', 'x', type_=sa.String(20), existing_type=sa.String(30))",
        "changing-column-type",
    ),
    "renaming a column": (
        "op.alter_column('users', 'x', new_column_name='y')",
        "renaming-column",
    ),
    "renaming a table": ("op.rename_table('users', 'customers')", "renaming-table"),
    "creating a table by force": (
        (
            "op.drop_table('users', if_exists=True)\n"
            "op.create_table('users', sa.Column('id', sa.Integer))"
        ),
        "recreating-table",
    ),
    "an auto incrementing column": (
        "op.add_column('users', sa.Column('id', sa.Integer, primary_key=True))",
        "adding-serial-column",
    ),
    "an identity column": (
        "op.add_column('users', sa.Column('id', sa.BigInteger, sa.Identity()))",
        "adding-field-with-default",
    ),
    "a stored generated column": (
        "op.add_column('users', sa.Column('x', sa.Text, sa.Computed('a || b', persisted=True)))",
        "adding-field-with-default",
    ),
    "a foreign key": (
        "op.create_foreign_key('fk', 'users', 'orders', ['order_id'], ['id'])",
        "adding-foreign-key-constraint",
    ),
    "a reference with a foreign key": (
        "op.add_column('users', sa.Column('city_id', sa.Integer, sa.ForeignKey('cities.id')))",
        "adding-foreign-key-constraint",
    ),
    "a check constraint": (
        "op.create_check_constraint('positive', 'users', 'price > 0')",
        "constraint-missing-not-valid",
    ),
    "SQL": ("op.execute('ALTER TABLE users DROP COLUMN old')", "ban-drop-column"),
    "a backfill": (
        "op.add_column('users', sa.Column('x', sa.Text))\nop.execute(\"UPDATE users SET x = 'y'\")",
        "backfill-in-transaction",
    ),
    "an index": ("op.create_index('ix', 'users', ['x'])", "require-concurrent-index-creation"),
    "a reference with an index": (
        (
            "op.add_column('users', sa.Column('city_id', sa.BigInteger))\n"
            "op.create_index('ix_users_city_id', 'users', ['city_id'])"
        ),
        "require-concurrent-index-creation",
    ),
    "a concurrent index in a transaction": (
        "op.create_index('ix', 'users', ['x'], postgresql_concurrently=True)",
        "ban-concurrent-index-creation-in-transaction",
    ),
    "a unique constraint": (
        "op.create_unique_constraint('uq', 'users', ['x'])",
        "disallowed-unique-constraint",
    ),
    "an exclusion constraint": (
        "op.create_exclude_constraint('ex', 'users', (sa.column('n'), '='), using='gist')",
        "constraint-missing-not-valid",
    ),
    "a json column": ("op.add_column('users', sa.Column('x', sa.JSON))", "adding-json-column"),
    "a volatile default": (
        "op.add_column('users', sa.Column('x', sa.Uuid, server_default=sa.func.gen_random_uuid()))",
        "adding-field-with-default",
    ),
    "NOT NULL": (
        "op.alter_column('users', 'x', nullable=False, existing_type=sa.Text())",
        "adding-not-nullable-field",
    ),
    "renaming an enum value": (
        "op.execute(\"ALTER TYPE status RENAME VALUE 'done' TO 'completed'\")",
        "renaming-enum-value",
    ),
    "renaming a schema": ("op.execute('ALTER SCHEMA users RENAME TO x')", "renaming-schema"),
    # A matter of speed, which docs/lint.md names as left out.
    "an index of many columns": (
        (
            "with op.get_context().autocommit_block():\n"
            "    op.create_index('ix', 'users', list('abcd'), postgresql_concurrently=True)"
        ),
        None,
    ),
}

# What it calls safe, and what people write beside it.
SAFE = {
    "a longer text": (
        "op.alter_column('users', 'x', type_=sa.String(30), existing_type=sa.String(20))"
    ),
    "a text without an end": (
        "op.alter_column('users', 'x', type_=sa.Text(), existing_type=sa.String(20))"
    ),
    "a larger number": (
        "op.alter_column('users', 'x', type_=sa.Numeric(12, 2), existing_type=sa.Numeric(10, 2))"
    ),
    "any number": (
        "op.alter_column('users', 'x', type_=sa.Numeric(), existing_type=sa.Numeric(10, 2))"
    ),
    "a table": "op.create_table('users', sa.Column('id', sa.Integer, primary_key=True))",
    "dropping a table": "op.drop_table('users')",
    "dropping and creating a table": (
        "op.drop_table('users')\nop.create_table('users', sa.Column('id', sa.Integer))"
    ),
    "a column": "op.add_column('users', sa.Column('x', sa.Text))",
    "a column with a default": (
        "op.add_column('users', sa.Column('x', sa.Integer, server_default='-1', nullable=False))"
    ),
    "a column with a number": (
        "op.add_column('users', sa.Column('x', sa.Integer, server_default=sa.text('-1')))"
    ),
    "a column with the time": (
        "op.add_column('users', sa.Column('x', sa.DateTime, server_default=sa.func.now()))"
    ),
    "a column with the time in UTC": (
        "default = sa.text(\"timezone('utc', now())\")\n"
        "op.add_column('users', sa.Column('x', sa.DateTime, server_default=default))"
    ),
    "a volatile default later": (
        "op.add_column('users', sa.Column('x', sa.Uuid))\n"
        "op.alter_column('users', 'x', server_default=sa.func.gen_random_uuid())"
    ),
    "a jsonb column": "op.add_column('users', sa.Column('x', postgresql.JSONB))",
    "a foreign key that is not valid": (
        "op.create_foreign_key('fk', 'users', 'orders', ['order_id'], ['id'],\n"
        "    postgresql_not_valid=True)"
    ),
    "validating a foreign key": "op.execute('ALTER TABLE users VALIDATE CONSTRAINT fk')",
    "a check constraint that is not valid": (
        "op.create_check_constraint('positive', 'users', 'price > 0', postgresql_not_valid=True)"
    ),
    "validating a check constraint": "op.execute('ALTER TABLE users VALIDATE CONSTRAINT positive')",
    "a backfill of its own": "op.execute('UPDATE users SET x = 1 WHERE x IS NULL')",
    "a backfill in batches": (
        "with op.get_context().autocommit_block():\n"
        "    for start in range(0, 30_000, 10_000):\n"
        "        op.execute(f'UPDATE users SET x = 1 WHERE id >= {start} AND id < {start + 10_000}')"
    ),
    "a concurrent index": (
        "with op.get_context().autocommit_block():\n"
        "    op.create_index('ix', 'users', ['x'], postgresql_concurrently=True)"
    ),
    "a reference with a concurrent index": (
        "op.add_column('users', sa.Column('city_id', sa.BigInteger))\n"
        "with op.get_context().autocommit_block():\n"
        "    op.create_index('ix', 'users', ['city_id'], postgresql_concurrently=True)"
    ),
    "a unique constraint of an index": (
        "with op.get_context().autocommit_block():\n"
        "    op.create_index('uq', 'users', ['x'], unique=True, postgresql_concurrently=True)\n"
        "op.execute('ALTER TABLE users ADD CONSTRAINT uq UNIQUE USING INDEX uq')"
    ),
    "NOT NULL, first": (
        "op.create_check_constraint('nn', 'users', 'x IS NOT NULL', postgresql_not_valid=True)"
    ),
    "NOT NULL, then": (
        "op.execute('ALTER TABLE users VALIDATE CONSTRAINT nn')\n"
        "op.alter_column('users', 'x', nullable=False, existing_type=sa.Text())\n"
        "op.drop_constraint('nn', 'users')"
    ),
    "an enum value": "op.execute(\"ALTER TYPE status ADD VALUE 'completed' AFTER 'done'\")",
    "a schema": "op.execute('CREATE SCHEMA customers')",
    "dropping an index": "op.drop_index('ix', 'users')",
    "dropping a constraint": "op.drop_constraint('uq', 'users')",
    "dropping NOT NULL": "op.alter_column('users', 'x', nullable=True, existing_type=sa.Text())",
    "a table and all of its own": (
        "op.create_table('New', sa.Column('id', sa.Integer), schema='s')\n"
        "op.create_index('ix_new', 'New', ['id'], schema='s')\n"
        "op.add_column('New', sa.Column('n', sa.Integer, nullable=False), schema='s')\n"
        "op.add_column('New', sa.Column('j', sa.JSON), schema='s')\n"
        "op.create_unique_constraint('uq', 'New', ['n'], schema='s')\n"
        "op.create_primary_key('pk', 'New', ['id'], schema='s')\n"
        "op.create_foreign_key('fk', 'New', 'users', ['n'], ['id'], source_schema='s')\n"
        "op.alter_column('New', 'n', type_=sa.Text(), existing_type=sa.Integer(), schema='s')\n"
        "op.alter_column('New', 'n', new_column_name='m', schema='s')\n"
        "op.alter_column('New', 'id', nullable=False, schema='s')\n"
        "op.execute('UPDATE s.\"New\" SET m = 1')\n"
        "op.drop_column('New', 'm', schema='s')"
    ),
    "a table of its own with another name": (
        "op.create_table('old', sa.Column('id', sa.Integer))\n"
        "op.rename_table('old', 'new')\n"
        "op.add_column('new', sa.Column('j', sa.JSON))"
    ),
    "a function whose body is SQL": (
        "op.execute('''CREATE FUNCTION g() RETURNS int\nBEGIN ATOMIC SELECT 1; SELECT 2; END''')"
    ),
    "a function": (
        "op.execute('''CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$\n"
        "BEGIN UPDATE users SET x = 1; ALTER TABLE users DROP COLUMN x; RETURN NEW; END; $$''')"
    ),
    "rows": "op.bulk_insert(sa.table('t', sa.column('n', sa.Text)), [{'n': \"it's; ALTER TABLE\"}])",
    "a comment": "op.create_table_comment('users', 'people')",
}


@pytest.fixture
def linted(project: Project) -> Project:
    """An environment of PostgreSQL, to which nothing connects."""
    project.set(sqlalchemy__url="postgresql+psycopg://me@127.0.0.1:1/nowhere", target_metadata=None)
    return project


def run_lint(
    project: Project, *args: str, ok: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a project; fail the test unless its exit code is 0 if `ok`, or else 1."""
    command = ["-m", "alembic_templates.cli", "lint", *args]
    done = run_python(command, project.folder, {**project.env, **env}, timeout=60)
    assert done.returncode == (0 if ok else 1), done.stdout + done.stderr
    return done


def found(project: Project, **options: str) -> dict[str, set[str]]:
    """Return the rules that each revision breaks, in this process."""
    report = lint(project.folder / "alembic.ini", **{"since": None, "url": None, **options})
    rules: dict[str, set[str]] = {}
    for finding in report.findings:
        rules.setdefault(finding.path.stem, set()).add(finding.rule)
    return rules


def in_a_row(project: Project, bodies: dict[str, str], down: str | None = None) -> None:
    """Write a revision for each body, one after the other."""
    for rev, body in bodies.items():
        path = project.revision(rev, body, down=down)
        source = path.read_text()
        path.write_text(source.replace("from alembic import context, op", IMPORTS))
        down = rev


IMPORTS = "from alembic import context, op\nfrom sqlalchemy.dialects import postgresql"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """What is found in a history of all unsafe and safe forms, by the name of the form."""
    folder = tmp_path_factory.mktemp("forms")
    with without_traces(folder):
        project = render("shared", folder)
        project.set(sqlalchemy__url="postgresql://", target_metadata=None)
        unsafe = {name: body for name, (body, _) in UNSAFE.items()}
        in_a_row(project, {**unsafe, **SAFE})
        yield found(project)


@pytest.mark.parametrize("form", [name for name, (_, rule) in UNSAFE.items() if rule])
def test_an_unsafe_form_is_found(form: str, judged: dict[str, set[str]]) -> None:
    """Each form that strong_migrations calls unsafe has a finding of the rule for it."""
    assert UNSAFE[form][1] in judged[form]


def test_nine_of_ten_unsafe_forms_are_found(judged: dict[str, set[str]]) -> None:
    """Those that are not found are few, and the documentation names them."""
    assert sum(form in judged for form in UNSAFE) >= 0.9 * len(UNSAFE)


@pytest.mark.parametrize("form", SAFE)
def test_a_safe_form_is_not_flagged(form: str, judged: dict[str, set[str]]) -> None:
    """What strong_migrations calls safe has no finding."""
    assert form not in judged


def test_each_statement_has_one_finding(judged: dict[str, set[str]]) -> None:
    """Squawk's general rule for constraints is left out where another one says what to do."""
    forms = ["a foreign key", "a unique constraint"]
    assert [len(judged[form]) for form in forms] == [1, 1]


@pytest.mark.parametrize(
    ("old", "new", "is_safe"),
    [
        ("VARCHAR(10)", "VARCHAR(20)", True),
        ("VARCHAR(10)", "VARCHAR(9)", False),
        ("VARCHAR", "VARCHAR(10)", False),
        ("VARCHAR(10)", "VARCHAR", True),
        ("TEXT", "VARCHAR", True),
        ("TEXT", "VARCHAR(10)", False),
        ("VARCHAR(10)", "CHAR(20)", False),
        ("CHAR(10)", "CHAR(20)", False),
        ("CIDR", "INET", True),
        ("INET", "CIDR", False),
        ("NUMERIC(10, 2)", "NUMERIC(12, 2)", True),
        ("NUMERIC(10, 2)", "NUMERIC(12, 3)", False),
        ("NUMERIC(10)", "NUMERIC(12, 0)", True),
        ("NUMERIC(10, 2)", "NUMERIC", True),
        ("NUMERIC", "NUMERIC(10, 2)", False),
        ("TIMESTAMP(3) WITHOUT TIME ZONE", "TIMESTAMP WITHOUT TIME ZONE", True),
        ("TIMESTAMP WITHOUT TIME ZONE", "TIMESTAMP(3) WITHOUT TIME ZONE", False),
        ("TIMESTAMP WITHOUT TIME ZONE", "TIMESTAMP WITH TIME ZONE", False),
        ("INTERVAL(2)", "INTERVAL(4)", True),
        ("INTEGER", "BIGINT", False),
        ("INTEGER", "INTEGER", True),
        (None, "TEXT", False),
    ],
)
def test_a_safe_change_of_type_is_not_flagged(old: str | None, new: str, is_safe: bool) -> None:
    """The types that PostgreSQL changes without rewriting the table are known."""
    assert is_widened(old, new) is is_safe


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("-1", True),
        ("(0)", True),
        ("'random()'", True),
        ("timezone('utc'::text, now())", True),
        ("'a'::varchar(10)", True),
        ("(now() + interval '1 day')", True),
        ("gen_random_uuid()", False),
        ("md5(random()::text)", False),
        ("nextval('numbers')", False),
        ("my_own(1)", False),
    ],
)
def test_a_default_that_is_one_value_is_not_flagged(default: str, expected: bool) -> None:
    """A default is volatile because of its functions, whatever its form."""
    assert is_constant(default) is expected


OLD = {
    "r1": "op.create_table('t', sa.Column('a', sa.String(10), nullable=False), sa.Column('b', sa.Text))",
    "r2": "op.add_column('t', sa.Column('c', sa.Numeric(4, 2)))",
    "r3": "op.rename_table('t', 'u')  # lint: ignore renaming-table a test",
    "r4": "op.alter_column('u', 'b', new_column_name='d')  # lint: ignore renaming-column a test",
}


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        pytest.param("op.alter_column('u', 'a', type_=sa.String(20))", None, id="longer"),
        pytest.param("op.alter_column('u', 'a', nullable=False)", None, id="not-null-before"),
        pytest.param("op.alter_column('u', 'd', type_=sa.Text())", None, id="same"),
        pytest.param("op.alter_column('u', 'c', type_=sa.Numeric())", None, id="added"),
        pytest.param(
            "op.alter_column('u', 'a', type_=sa.String(5))", "changing-column-type", id="shorter"
        ),
        pytest.param(
            "op.alter_column('u', 'c', nullable=False)", "adding-not-nullable-field", id="not-null"
        ),
        pytest.param(
            "op.execute('ALTER TABLE u ALTER a DROP NOT NULL')\n"
            "op.alter_column('u', 'a', nullable=False)",
            "adding-not-nullable-field",
            id="own-sql",
        ),
        pytest.param(
            "with op.batch_alter_table('u') as batch:\n    batch.alter_column('a', nullable=True)\n"
            "op.alter_column('u', 'a', nullable=False)",
            "adding-not-nullable-field",
            id="null-since",
        ),
    ],
)
def test_older_revisions_say_what_a_column_was(
    linted: Project, operation: str, rule: str | None
) -> None:
    """What the operation does not say is known from the history, also with --since."""
    in_a_row(linted, {**OLD, "r5": operation})
    assert found(linted) == ({"r5": {rule}} if rule else {})
    assert found(linted, since="r4") == ({"r5": {rule}} if rule else {})


def test_after_a_revision_that_fails_nothing_is_known(linted: Project) -> None:
    """What a revision would have done to a column cannot be told."""
    fails = "raise ValueError  # lint: ignore not-rendered a test"
    in_a_row(linted, {**OLD, "bad": fails, "r5": "op.alter_column('u', 'a', nullable=False)"})
    assert found(linted) == {"r5": {"adding-not-nullable-field"}}


def test_findings_point_at_the_operation(linted: Project) -> None:
    """The line is that of the operation: over several lines, in a batch, in a helper, in SQL."""
    path = linted.folder / "migrations" / "versions" / "r1.py"
    path.write_text(
        textwrap.dedent(
            '''\
            """A revision."""
            import sqlalchemy as sa
            from alembic import op

            revision = "r1"
            down_revision = None


            def helper(name):
                op.drop_column("users", name)  # here


            def upgrade():
                helper("a")
                op.add_column(  # here
                    "users",
                    sa.Column("x", sa.Integer, nullable=False),
                )
                with op.batch_alter_table("users") as batch:
                    batch.add_column(sa.Column("y", sa.Integer))
                    batch.drop_column("b")  # here
                    batch.alter_column(  # here
                        "c",
                        new_column_name="d",
                    )
                op.execute(  # here
                    """
                    CREATE TABLE t (id int);
                    ALTER TABLE users DROP COLUMN e;
                    """
                )


            def downgrade():
                op.drop_table("users")
            '''
        )
    )
    lines = path.read_text().splitlines()
    expected = [number for number, line in enumerate(lines, 1) if line.endswith("# here")]
    report = lint(linted.folder / "alembic.ini", since=None, url=None)
    assert [finding.line for finding in report.findings] == expected


@pytest.mark.parametrize(
    "body",
    [
        (
            "op.create_foreign_key('fk', 'users', 'orders', ['x'], ['id']); "
            "op.create_check_constraint('ck', 'users', 'n > 0')"
        ),
        (
            "op.execute('ALTER TABLE users ADD CONSTRAINT u UNIQUE (x); "
            "ALTER TABLE users ADD CONSTRAINT ck CHECK (n > 0)')"
        ),
    ],
    ids=["operations", "sql"],
)
def test_a_statement_hides_no_finding_of_another_in_its_line(linted: Project, body: str) -> None:
    """An ignored rule of one statement does not silence that of the next."""
    linted.revision(
        "r1",
        "# lint: ignore adding-foreign-key-constraint the table is small\n"
        "# lint: ignore disallowed-unique-constraint the table is small\n" + body,
    )
    assert found(linted) == {"r1": {"constraint-missing-not-valid"}}


def test_it_prints_a_line_for_each_finding(linted: Project) -> None:
    """The output is `file:line: rule: sentence`, and a summary."""
    linted.revision("r1", "op.drop_column('users', 'x')")
    assert run_lint(linted).stdout == (
        "migrations/versions/r1.py:11: ban-drop-column: Dropping a column may break existing "
        "clients.\n"
        "1 finding in 1 revision\n"
    )


def test_nothing_found_is_success(linted: Project) -> None:
    """Without a finding the exit code is 0."""
    in_a_row(linted, {"r1": "pass", "r2": "op.add_column('users', sa.Column('x', sa.Text))"})
    assert run_lint(linted, ok=True).stdout == "no findings in 2 revisions\n"


def test_workflows_of_github_get_annotations(linted: Project) -> None:
    """What would end an annotation or begin a property of it is escaped."""
    path = linted.revision("r1", "raise ValueError('100%, at: \\\\n')")
    path.rename(path.with_name("a,b.py"))
    done = run_lint(linted, "--format", "github")
    assert done.stdout.splitlines()[0] == (
        "::error file=migrations/versions/a%2Cb.py,line=11,title=not-rendered::The revision cannot "
        "be rendered without a database (ValueError: 100%25, at: \\n): what follows in it was not "
        "looked at."
    )


def test_a_comment_silences_one_rule_in_its_revision(linted: Project) -> None:
    """Another rule, and the same rule in another revision, are found as before."""
    drop = "op.drop_column('users', 'x')"
    silence = "# lint: ignore ban-drop-column nobody has read it since June"
    in_a_row(linted, {"r1": f"{silence}\n{drop}\nop.rename_table('a', 'b')", "r2": drop})
    assert found(linted) == {"r1": {"renaming-table"}, "r2": {"ban-drop-column"}}


@pytest.mark.parametrize(
    "comment",
    [
        "# noqa: E501  # lint: ignore ban-drop-column nobody has read it since June",
        "# LINT: Ignore ban-drop-column nobody has read it since June",
    ],
)
def test_a_comment_silences_beside_others_and_in_capitals(linted: Project, comment: str) -> None:
    """A comment that people read as one for lint is one."""
    linted.revision("r1", f"op.drop_column('users', 'x')  {comment}")
    assert found(linted) == {}


@pytest.mark.parametrize(
    ("comment", "sentence"),
    [
        (
            "# lint: ignore ban-drop-column",
            "The comment silences nothing: write `# lint: ignore RULE reason`.",
        ),
        (
            "# noqa  # LINT: ignore ban-drop-column",
            "The comment silences nothing: write `# lint: ignore RULE reason`.",
        ),
        ("# lint: ignore", "The comment silences nothing: write `# lint: ignore RULE reason`."),
        (
            "#lint: ignroe ban-drop-column because",
            "The comment silences nothing: write `# lint: ignore RULE reason`.",
        ),
        (
            "# lint: ignore drop-column because",
            "The comment silences drop-column, which is no rule of this run: expected one of ",
        ),
    ],
)
def test_a_comment_that_silences_nothing_is_found(
    linted: Project, comment: str, sentence: str
) -> None:
    """A rule that is unknown and a reason that is missing are said, and silence nothing."""
    linted.revision("r1", f"op.drop_column('users', 'x')\n{comment}")
    lines = run_lint(linted).stdout.splitlines()
    assert lines[0].startswith("migrations/versions/r1.py:11: ban-drop-column: ")
    assert lines[1].startswith(f"migrations/versions/r1.py:12: ignore-comment: {sentence}")


def test_a_text_is_no_comment(linted: Project) -> None:
    """What stands in a string silences nothing."""
    linted.revision("r1", "'# lint: ignore ban-drop-column because'\nop.drop_column('users', 'x')")
    assert found(linted) == {"r1": {"ban-drop-column"}}


def test_two_heads_are_found(project: Project, sqlite: Database) -> None:
    """Each head is named, on any database, and of another one than PostgreSQL nothing more."""
    project.set(sqlalchemy__url=sqlite.text)
    project.revision("r1", "op.drop_column('users', 'x')")
    for rev in ("a", "b"):
        project.revision(rev, down="r1")
    sentence = (
        "There are 2 heads (a, b), and `alembic upgrade head` fails: run `alembic-templates "
        "rebase` or `alembic merge heads`."
    )
    lines = run_lint(project).stdout.splitlines()
    assert sorted(lines) == [
        "The database is sqlite: only the heads were looked at.",
        f"migrations/versions/a.py:6: multiple-heads: {sentence}",
        f"migrations/versions/b.py:6: multiple-heads: {sentence}",
    ]
    assert not Path(str(sqlite.url.database)).exists()


def test_on_another_database_only_the_heads_are_looked_at(project: Project) -> None:
    """With one head the exit code is 0, and what was not looked at is said."""
    project.revision("r1", "op.drop_column('users', 'x')")
    done = run_lint(project, "--url", "mysql://", ok=True)
    assert done.stdout == "The database is mysql: only the heads were looked at.\n"


def test_what_needs_a_database_is_named(linted: Project) -> None:
    """A revision that fails without a database is found at its line; the others are looked at."""
    needs = "op.drop_column('users', 'x')\nop.get_bind().scalar(sa.text('SELECT 1')).upper()"
    in_a_row(linted, {"r1": needs, "r2": "op.rename_table('a', 'b')"})
    lines = run_lint(linted).stdout.splitlines()
    assert lines[1].startswith(
        "migrations/versions/r1.py:13: not-rendered: The revision cannot be "
    )
    assert found(linted) == {"r1": {"ban-drop-column", "not-rendered"}, "r2": {"renaming-table"}}


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param("raise SystemExit(0)", id="exit"),
        pytest.param(
            "with op.batch_alter_table('t') as batch:\n    batch.drop_constraint(None)", id="batch"
        ),
    ],
)
def test_a_failure_does_not_move_what_follows(linted: Project, fails: str) -> None:
    """A revision that ends the program, or fails in a batch, is one finding; lines are right."""
    in_a_row(linted, {"r1": fails, "r2": "op.drop_column('users', 'x')"})
    report = lint(linted.folder / "alembic.ini", since=None, url=None)
    assert [(each.path.stem, each.line, each.rule) for each in report.findings] == [
        ("r1", 12, "not-rendered"),
        ("r2", 12, "ban-drop-column"),
    ]


def test_what_squawk_cannot_parse_is_named(linted: Project) -> None:
    """A statement with an error is found, and the others of its revision are judged."""
    in_a_row(
        linted,
        {
            "r1": "op.execute('ALTER TABLE users FOO')\nop.execute('ALTER SOMETHING')\nop.drop_column('t', 'c')"
        },
    )
    report = lint(linted.folder / "alembic.ini", since=None, url=None)
    assert [(each.line, each.rule) for each in report.findings] == [
        (12, "syntax-error"),
        (13, "syntax-error"),
        (14, "ban-drop-column"),
    ]
    assert "squawk cannot parse this statement (" in report.findings[0].sentence


def test_what_a_revision_prints_stands_apart(linted: Project) -> None:
    """The output has the findings alone, so that a program can read it."""
    linted.revision("r1", "print('hello')\nop.drop_column('users', 'x')")
    done = run_lint(linted)
    assert "hello" not in done.stdout
    assert "hello" in done.stderr


@pytest.mark.parametrize("since", ["r2", "r"])
def test_since_leaves_old_revisions_out(linted: Project, since: str) -> None:
    """What is an ancestor of --since is not looked at, nor is --since itself; branches are."""
    drop = "op.drop_column('users', 'x')"
    in_a_row(linted, {"r1": drop, "r2": drop, "c": drop})
    in_a_row(linted, {"side": drop}, down="r1")
    linted.revision("needed", drop)
    path = linted.folder / "migrations" / "versions" / "r2.py"
    path.write_text(path.read_text() + "\ndepends_on = 'needed'\nbranch_labels = 'r'\n")
    linted.revision("m", down=("c", "side", "needed"))
    assert found(linted, since=since) == {"c": {"ban-drop-column"}, "side": {"ban-drop-column"}}


def test_an_unknown_since_is_an_error(linted: Project) -> None:
    """A misspelt revision does not let everything pass."""
    linted.revision("r1")
    assert run_lint(linted, "--since", "nope").stderr == (
        "error: Can't locate revision identified by 'nope': correct --since.\n"
    )


@pytest.mark.parametrize("since", ["", "@", "r1@"])
def test_an_empty_since_is_an_error(linted: Project, since: str) -> None:
    """What names nothing, such as a variable that is not set, is one sentence."""
    linted.revision("r1")
    assert run_lint(linted, "--since", since).stderr == (
        f"error: --since is {since!r}, which names no revision: correct it.\n"
    )


def test_each_revision_is_rendered_once(linted: Project) -> None:
    """Branches, merges, several bases, labels and dependencies: each revision by itself."""
    drop = "op.drop_column('{0}', 'x')"
    history: list[dict[str, object]] = [
        {"rev": "r1", "branch_labels": ("main",)},
        {"rev": "a", "down": "r1"},
        {"rev": "b", "down": "r1"},
        {"rev": "other", "branch_labels": ("others",), "depends_on": "main"},
        {"rev": "m", "down": ("a", "b")},
        {"rev": "z", "down": ("m", "other")},
    ]
    for each in history:
        linted.revision(upgrade=drop.format(each["rev"]), **each)  # type: ignore[arg-type]
    lines = run_lint(linted).stdout.splitlines()
    assert sorted(line.split(":")[0] for line in lines[:-1]) == sorted(
        f"migrations/versions/{each['rev']}.py" for each in history
    )


def test_a_fleet_has_each_finding_once(fleet_project: Project) -> None:
    """No database is asked who the tenants are."""
    fleet_project.set(
        sqlalchemy__url="postgresql+psycopg://me@127.0.0.1:1/nowhere",
        tenants="SELECT name FROM tenants",
        target_metadata=None,
    )
    fleet_project.revision("r1", "op.drop_column('users', 'x')")
    assert len(run_lint(fleet_project).stdout.splitlines()) == 2


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"tenants": "who:asked"}, id="function"),
        pytest.param({"tenants": "who:asked", "tenants_url": "sqlite:///none.db"}, id="pairs"),
        pytest.param(
            {"tenants": "SELECT name, url FROM tenants", "tenants_url": "sqlite:///none.db"},
            id="select",
        ),
    ],
)
def test_nobody_is_asked_who_the_tenants_are(
    fleet_project: Project, settings: dict[str, str]
) -> None:
    """A function is not called, a registry not opened, and --url says which database it is."""
    (fleet_project.folder / "who.py").write_text(
        "def asked(connection):\n    raise SystemExit(9)\n"
    )
    fleet_project.set(target_metadata=None, **settings)
    fleet_project.revision("r1", "op.drop_column('users', 'x')")
    done = run_lint(fleet_project, "--url", "postgresql://")
    assert len(done.stdout.splitlines()) == 2
    assert "ban-drop-column" in done.stdout
    assert not (fleet_project.folder / "none.db").exists()
    assert run_lint(fleet_project).stderr.startswith("error: No database URL: give --url ")


def alembics_own(template: str, folder: Path, env: dict[str, str]) -> Project:
    """Make an environment of one of Alembic's own templates."""
    folder.mkdir()
    project = Project(folder, env)
    project.alembic("init", "-t", template, "migrations")
    return project


def test_alembics_own_environment_is_linted(tmp_path: Path) -> None:
    """It works with an env.py that is not of this project; without a URL it says what to give."""
    project = alembics_own("generic", tmp_path / "generic", original("shared").env)
    project.revision("r1", "op.drop_column('users', 'x')")
    assert "ban-drop-column" in run_lint(project, "--url", "postgresql://me:p%40ss@host/x").stdout
    assert run_lint(project).stderr == (
        "error: migrations/env.py has no database URL that can be read: give --url (nothing is "
        "connected to, so `--url postgresql://` is enough), or set sqlalchemy.url in the Alembic "
        "configuration.\n"
    ).replace("migrations/env.py", str(project.folder / "migrations" / "env.py"))


def test_an_environment_for_several_databases_is_linted(tmp_path: Path) -> None:
    """Alembic's `multidb` has an upgrade for each database: those of PostgreSQL are looked at."""
    project = alembics_own("multidb", tmp_path / "multidb", original("shared").env)
    project.set("engine1", sqlalchemy__url="postgresql://")
    project.set("engine2", sqlalchemy__url="sqlite://")
    path = project.revision("r1")
    path.write_text(
        path.read_text().replace(
            "def upgrade():\n    pass",
            "def upgrade(engine_name):\n    op.drop_column(engine_name, 'x')",
        )
    )
    lines = run_lint(project).stdout.splitlines()
    assert [line.split(" ")[1] for line in lines[:-1]] == ["ban-drop-column:"]
    assert lines[-1] == "1 finding in 1 revision; on sqlite only the heads were looked at"


def test_an_environment_with_tenants_of_its_own_has_each_finding_once(tmp_path: Path) -> None:
    """An env.py that runs the migrations again and again is no reason to repeat them."""
    project = alembics_own("generic", tmp_path / "generic", original("shared").env)
    env = project.folder / "migrations" / "env.py"
    once = "    with context.begin_transaction():\n        context.run_migrations()\n"
    source = env.read_text()
    assert once in source
    env.write_text(source.replace(once, once * 3, 1))
    project.revision("r1", "op.get_bind().scalar(sa.text('SELECT 1')).upper()")
    lines = run_lint(project, "--url", "postgresql://").stdout.splitlines()
    assert [line.split(" ")[1] for line in lines] == ["not-rendered:", "finding"]


def test_without_a_url_it_says_what_to_give(project: Project) -> None:
    """One sentence names --url, the option and that nothing is connected to."""
    project.revision("r1")
    assert run_lint(project).stderr == (
        "error: No database URL: give --url (nothing is connected to, so `--url postgresql://` is "
        "enough), or set sqlalchemy.url in the Alembic configuration.\n"
    )


def test_without_squawk_it_says_what_to_install(linted: Project, tmp_path: Path) -> None:
    """One sentence names the extra."""
    linted.revision("r1", "op.drop_column('users', 'x')")
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    path = os.pathsep.join(site.getsitepackages())
    source = str(Path(lint.__code__.co_filename).parents[1])
    own = {"PYTHONPATH": f"{source}{os.pathsep}{path}", "PATH": "/nowhere"}
    done = subprocess.run(
        [python, "-m", "alembic_templates.cli", "lint"],
        cwd=linted.folder,
        env={**linted.env, **own},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: squawk is not installed, which knows what is unsafe on PostgreSQL: run pip install "
        "'alembic-templates[lint]'.\n"
    )


def test_a_squawk_that_fails_is_said(
    linted: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What squawk says of its failure is quoted, with what to do."""
    linted.revision("r1", "op.drop_column('users', 'x')")
    squawk = tmp_path / "squawk"
    squawk.write_text("#!/bin/sh\necho too old >&2\nexit 2\n")
    squawk.chmod(0o755)
    monkeypatch.setattr(
        sys, "executable", str(tmp_path / "python")
    )  # squawk is looked for beside it
    with pytest.raises(TemplatesError) as raised:
        found(linted)
    assert str(raised.value) == f"{squawk} failed (too old): try a newer squawk-cli."


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        pytest.param("", "{} runs no migrations in offline mode: let it call ", id="nothing"),
        pytest.param("1 / 0", "{} fails in offline mode (ZeroDivisionError: ", id="mistake"),
        pytest.param(
            "from alembic.util import CommandError\nraise CommandError('Not today.')",
            "Not today.",
            id="of-alembic",
        ),
    ],
)
def test_an_env_py_that_cannot_be_run_is_an_error(linted: Project, env: str, sentence: str) -> None:
    """The sentence says what env.py does, in its own words if they are Alembic's."""
    linted.revision("r1")
    path = linted.folder / "migrations" / "env.py"
    path.write_text(env)
    assert run_lint(linted).stderr.startswith(f"error: {sentence.format(path)}")


def test_what_another_module_does_is_found_in_the_first_line(linted: Project) -> None:
    """A revision whose upgrade() stands in another module has its findings, without their line."""
    (linted.folder / "steps.py").write_text(
        "from alembic import op\n\ndef upgrade():\n    op.drop_column('users', 'x')\n"
    )
    path = linted.revision("r1")
    path.write_text(path.read_text() + "\nfrom steps import upgrade\n")
    assert run_lint(linted).stdout.startswith("migrations/versions/r1.py:1: ban-drop-column: ")


def test_an_environment_that_is_not_there_is_an_error(linted: Project) -> None:
    """Alembic's sentence names the folder that it has not found."""
    (linted.folder / "migrations").rename(linted.folder / "moved")
    error = run_lint(linted).stderr
    assert error.startswith("error: Path doesn't exist: ")
    assert error.count("\n") == 1


def test_the_projects_squawk_settings_hold(linted: Project) -> None:
    """Rules of .squawk.toml are on or off, and its paths leave no revision out."""
    in_a_row(linted, {"r1": "op.drop_column('t', 'c')\nop.drop_table('t')"})
    (linted.folder / ".squawk.toml").write_text(
        'excluded_rules = ["ban-drop-column"]\nincluded_rules = ["ban-drop-table"]\n'
        'excluded_paths = ["*.sql"]\n'
    )
    assert "ban-drop-table" in run_lint(linted).stdout
    assert "ban-drop-column" not in run_lint(linted).stdout
    (linted.folder / ".squawk.toml").write_text("excluded_rules = [")
    assert run_lint(linted).stderr.startswith(
        f"error: {linted.folder / '.squawk.toml'} cannot be read ("
    )
    (linted.folder / ".squawk.toml").write_text('excluded_rules = ["nonsense"]')
    failed = run_lint(linted).stderr
    assert "squawk failed (" in failed
    assert failed.endswith("): correct .squawk.toml.\n")


def test_a_revision_that_cannot_be_loaded_is_an_error(linted: Project) -> None:
    """A mistake in a file's Python is one sentence."""
    linted.revision("r1", "op.drop_column('users', 'x'")
    done = run_lint(linted)
    assert done.stderr.startswith("error: The revisions cannot be loaded (SyntaxError: ")
    assert "r1.py" in done.stderr


def test_a_missing_configuration_is_an_error(linted: Project) -> None:
    """--config names the file, and a pyproject.toml will do."""
    assert run_lint(linted, "--config", "other.ini").stderr == (
        "error: other.ini does not exist: name the Alembic configuration by --config.\n"
    )
    linted.revision("r1", "op.drop_column('users', 'x')")
    (linted.folder / "pyproject.toml").write_text(
        '[tool.alembic]\nscript_location = "migrations"\n'
    )
    done = run_lint(linted, "--config", "pyproject.toml", "--url", "postgresql://")
    assert "ban-drop-column" in done.stdout


def test_the_documented_hook_works(linted: Project) -> None:
    """The hook of the documentation is one that pre-commit takes, and its command runs."""
    page = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\n(repos:\n.+?)^```", page, re.MULTILINE | re.DOTALL)
    (repository,) = yaml.safe_load(block)["repos"]
    (hook,) = repository["hooks"]
    assert (repository["repo"], hook["language"], hook["pass_filenames"]) == (
        "local",
        "system",
        False,
    )
    in_a_row(linted, {"1975ea83b712": "op.drop_column('users', 'x')"})
    command, verb, *arguments = hook["entry"].split()
    assert (command, verb) == ("alembic-templates", "lint")
    assert "no findings" in run_lint(linted, *arguments, ok=True).stdout
    assert re.search(hook["files"], "migrations/versions/1975ea83b712.py")


def test_the_documentation_has_each_rule() -> None:
    """The page names all rules that are on."""
    page = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    assert [rule for rule in [*OWN, *SQUAWK] if f"`{rule}`" not in page] == []
