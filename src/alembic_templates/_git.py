"""What git knows of the main branch, from its own command."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_REMOTE = ["refs/remotes/*/main", "refs/remotes/*/master"]
_LOCAL = ["refs/heads/main", "refs/heads/master"]


def on_main(paths: Sequence[Path]) -> Iterator[set[Path]]:
    """Give those of the files that the main branch has: the remote's alone, then also the local.

    The local one may have what was merged into it and not pushed, and the remote's may be old. A
    file that is not committed is on neither. Nothing is given where there is no repository, no such
    branch or no git.
    """
    remote, local = _refs(paths[0].parent, _REMOTE), _refs(paths[0].parent, _LOCAL)
    for refs in (remote, remote + local):
        if refs:
            yield {path for ref in refs for path in _in(ref, paths)}


def _refs(folder: Path, patterns: Sequence[str]) -> list[str]:
    return _git(folder, "for-each-ref", "--format=%(refname)", *patterns).split()


def _in(ref: str, paths: Sequence[Path]) -> Iterator[Path]:
    """Give those of the files that a commit has at the same place."""
    found: dict[Path, set[str]] = {}
    for path in paths:
        folder = path.resolve().parent
        if folder not in found:  # the names are those from this folder on
            found[folder] = set(_git(folder, "ls-tree", "-z", "--name-only", ref).split("\0"))
        if path.name in found[folder]:
            yield path


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints in a folder, and nothing where it fails."""
    # A hook of git's runs with GIT_DIR and others, which name places from where it began.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except OSError:  # there is no git
        return ""
    return done.stdout if done.returncode == 0 else ""
