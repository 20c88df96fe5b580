"""Python processes for the tests, forked from one that has imported Alembic and SQLAlchemy already.

A command of a test is to run in a process of its own, as its user's would, and a new interpreter
spends a second of processor time on imports before it does anything. So each worker of a run starts
one process that imports what every command imports, and each command is a fork of it, which then
does what `python -m` and `python -c` do. Where a fork could behave otherwise (another system than
Linux, settings of the interpreter or of the loader in the environment, a module of the test that
hides one of those imported), and where TEST_NEW_PROCESSES is set, a new interpreter is started.
"""

from __future__ import annotations

import array
import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from select import select
from types import ModuleType
from typing import NoReturn, cast

IMPORTED = (
    "alembic.autogenerate.rewriter",
    "alembic.command",
    "alembic.config",
    "asyncio",
    "logging.config",
    "mako.template",
    "multiprocessing.popen_fork",
    "multiprocessing.queues",
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.ext.asyncio",
    "aiomysql",
    "aiosqlite",
    "asyncmy",
    "asyncpg",
    "psycopg",
    "pymysql",
)
# Code with these words hides a module, which must not have been imported, or looks at what has been.
HIDES = ("sys.modules", "meta_path", "__import__")
# What an interpreter reads of its environment at its start.
AT_START = ("PYTHON", "LANG", "LC_", "LD_", "COVERAGE_")
# What a test's process gets of the environment of the tests.
KEPT = (
    "PATH",
    "LANG",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "SYSTEMROOT",
    "COVERAGE_FILE",
    "COVERAGE_PROCESS_CONFIG",
)


def kept_environment(*more: str) -> dict[str, str]:
    """Return what a test's process gets of the environment of the tests, and more by name."""
    return {name: os.environ[name] for name in (*KEPT, *more) if name in os.environ}


def run_python(
    args: Sequence[str | Path],
    folder: Path,
    env: dict[str, str],
    *,
    answer: str = "",
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder and an environment, with an answer on its standard input.

    Raises subprocess.TimeoutExpired, when the process has been killed.
    """
    with start_python(args, folder, env, answer=answer) as process:
        try:
            out, error = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def start_python(
    args: Sequence[str | Path],
    folder: Path,
    env: dict[str, str],
    *,
    answer: str = "",
    new_session: bool = False,
) -> subprocess.Popen[str]:
    """Start Python without waiting for it, if asked for in a session and process group of its own."""
    arguments = [str(arg) for arg in args]
    stdin, written = os.pipe()
    os.write(written, answer.encode())
    os.close(written)
    try:
        if can_fork(arguments, folder, env):
            request = {"args": arguments, "folder": str(folder), "env": env, "new": new_session}
            return Forked(request, stdin)
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=new_session,
        )
    finally:
        os.close(stdin)


class Forked(subprocess.Popen[str]):
    """A forked process as `subprocess` has it, though it is the child of another."""

    def __init__(self, request: dict[str, object], stdin: int) -> None:
        """Ask for a process; do not call the base class, which would start an interpreter."""
        self.args = [sys.executable, *cast("list[str]", request["args"])]
        self.returncode: int | None = None
        self.stdin = None
        pipes = [os.pipe() for _ in range(3)]
        ends = array.array("i", [stdin, *(write for _, write in pipes)])
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)
        server().sendmsg([json.dumps(request).encode()], [rights])
        for _, write in pipes:
            os.close(write)
        out, error, status = (os.fdopen(read) for read, _ in pipes)
        self.stdout, self.stderr, self.status = out, error, status
        self.pid = int(status.readline())

    def poll(self) -> int | None:
        """Return the exit code, and None as long as there is none."""
        if self.returncode is None and select([self.status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self.status.readline())
            self.status.close()
        return self.returncode

    def communicate(
        self, input: str | None = None, timeout: float | None = None
    ) -> tuple[str, str]:
        """Read both outputs to their ends, and wait. Raises subprocess.TimeoutExpired."""
        assert input is None
        assert self.stdout is not None and self.stderr is not None
        with ThreadPoolExecutor() as threads:
            read = [threads.submit(file.read) for file in (self.stdout, self.stderr)]
            if wait(read, timeout).not_done:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return read[0].result(), read[1].result()

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def __del__(self) -> None:
        """Do without the base class's watch over children, of which this is none."""
        for name in ("stdout", "stderr", "status"):
            if file := getattr(self, name, None):
                file.close()


def can_fork(args: list[str], folder: Path, env: dict[str, str]) -> bool:
    """Tell whether a fork does what a new interpreter would do."""
    if args[0] not in {"-m", "-c"} or any(word in args[1] for word in HIDES):
        return False
    if sys.platform != "linux" or os.environ.get("TEST_NEW_PROCESSES"):
        return False
    if at_start(env) != at_start(kept_environment()):
        return False
    hidden = {name.partition(".")[0] for name in IMPORTED} | {"sitecustomize", "usercustomize"}
    return not any(
        (place / f"{name}{end}").exists()
        for place in (folder, *python_path(folder, env))
        for name in hidden
        for end in ("", ".py")
    )


def at_start(env: dict[str, str]) -> dict[str, str]:
    """Return what an interpreter reads at its start, but for what a fork can be told."""
    told = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH"}
    return {
        name: value for name, value in env.items() if name.startswith(AT_START) and name not in told
    }


def python_path(folder: Path, env: dict[str, str]) -> list[Path]:
    """Return the folders of PYTHONPATH."""
    return [folder / path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]


@cache
def server() -> socket.socket:
    """Start the process that forks, which ends with this one; return the socket of its requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__],
            env=kept_environment(),
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.terminate()
        process.wait()

    atexit.register(end)
    return ours


def serve() -> None:
    """Fork a process for each request on the standard input, until that is closed."""
    for name in IMPORTED:
        with suppress(ImportError):  # there are no async drivers without greenlet
            import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    requests = socket.socket(fileno=os.dup(0))
    while True:
        message, ancillary, _, _ = requests.recvmsg(1 << 20, socket.CMSG_SPACE(64))
        if not message:
            return
        files = array.array("i")
        files.frombytes(ancillary[0][2])
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if child := os.fork():
                report(child, list(files))
            end_with(partial(become, json.loads(message), list(files)))
        for file in files:
            os.close(file)


def report(child: int, files: list[int]) -> None:
    """Write the number of a process, and its exit code when it has ended; end as well."""
    os.write(files[3], f"{child}\n".encode())
    for file in files[:3]:
        os.close(file)
    _, status = os.waitpid(child, 0)
    os.write(files[3], f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def end_with(program: Callable[[], None]) -> NoReturn:
    """Run a program and end as an interpreter does, but leave its memory to the system.

    To take apart all that was imported for it takes several times as long as a command.
    """
    code = 0
    try:
        program()
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT
    except BaseException:  # noqa: BLE001 - whatever a program ends with
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as the end does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 255)


def become(request: dict[str, object], files: list[int]) -> None:
    """Be the interpreter that was asked for, from its first line to its exit."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    folder, env, args = request["folder"], request["env"], request["args"]
    assert isinstance(folder, str) and isinstance(env, dict) and isinstance(args, list)
    if request["new"]:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    main = sys.modules["__main__"] = ModuleType("__main__")
    kind, what, *more = args
    sys.argv = [kind, *more]
    sys.path[0] = folder if kind == "-m" else ""
    sys.path[1:1] = map(str, python_path(Path(folder), env))
    if kind == "-m":
        runpy._run_module_as_main(what)  # type: ignore[attr-defined] # as -m does
    else:
        main.__dict__["__builtins__"] = __builtins__
        exec(compile(what, "<string>", "exec"), main.__dict__)  # noqa: S102 - as -c does


if __name__ == "__main__":
    serve()
