"""The private work tree of a coding agent: the one kernel file, and context to read.

It lies outside of the user's repository, so that nothing above it is the user's, and is a git
repository of its own, because some agents want one. What was changed is found by reading all
files again, and never by asking that git, whose settings the agent can write.
"""

from __future__ import annotations

import ast
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 200_000  # of a kernel file; the longest of ours has 12,000
MOST_FILES = 10_000
GIT = (
    *("git", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgsign=false"),
    *("-c", "user.name=autokernel", "-c", "user.email=autokernel@localhost"),
)


class Unusable(Exception):
    """What an agent left is no edit of the kernel file alone. The message says why."""


@dataclass(frozen=True)
class Workspace:
    """`tree` holds `kernel` and what was laid beside it."""

    tree: Path
    kernel: str
    before: Mapping[str, bytes]

    def edited(self) -> str:
        """The kernel's new text. Raises Unusable unless it, and nothing else, was changed."""
        after = dict(_files(self.tree, self.before))
        changed = {path for path, _ in {*after.items()} ^ {*self.before.items()}}
        if others := changed - {self.kernel}:
            few = ", ".join(sorted(others)[:5]) + (", ..." if len(others) > 5 else "")
            raise Unusable(f"expected {self.kernel} alone to be changed, found also: {few}")
        if not changed:
            raise Unusable(f"{self.kernel} was not changed")
        return _source(self.kernel, after.get(self.kernel))


def lay_out(tree: Path, kernel: str, text: str, context: Mapping[str, str]) -> Workspace:
    """Make the work tree in `tree`, an empty folder."""
    texts = {kernel: text, **context}
    for path, content in texts.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content.encode())
    for path in context:
        (tree / path).chmod(0o444)
    for words in (
        ("init", "--quiet", "--template=", "--initial-branch=main"),
        ("add", "--all"),
        ("commit", "--quiet", "--message=start"),
    ):
        bare = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        env = {"PATH": os.environ.get("PATH", os.defpath), **bare}
        subprocess.run([*GIT, *words], cwd=tree, env=env, check=True, capture_output=True)
    return Workspace(tree, kernel, {path: content.encode() for path, content in texts.items()})


def _files(tree: Path, known: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | None]]:
    """Every file but git's own, with its content: None for what is no plain file, or has grown
    beyond any use. Links are not followed: they may lead anywhere. What was not there before is
    not read."""
    count = 0
    for folder, folders, names in os.walk(tree):
        if Path(folder) == tree and ".git" in folders:
            folders.remove(".git")
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in (*names, *links):
            count += 1
            if count > MOST_FILES:
                raise Unusable(f"more than {MOST_FILES:,} files were left")
            file = Path(folder, name)
            path = file.relative_to(tree).as_posix()
            yield path, _content(file) if path in known else None


def _content(file: Path) -> bytes | None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
        return None
    return file.read_bytes()


def _source(kernel: str, content: bytes | None) -> str:
    if content is None:
        raise Unusable(f"{kernel} is gone, is no plain file, or is over {MOST_BYTES:,} bytes")
    return checked(kernel, content)


def checked(kernel: str, content: bytes) -> str:
    """A kernel file's text. Raises Unusable for what is no Python."""
    try:
        text = content.decode()
        ast.parse(text)
    except SyntaxError as error:
        where = f"in line {error.lineno}: {error.msg}"
        raise Unusable(f"{kernel} has a syntax error {where}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unusable(f"{kernel} is not Python source: {error}") from error
    return text
