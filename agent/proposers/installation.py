"""Which files a program is made of, so that it can be left them where its user's are not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path


def installation(program: Path, path: str) -> Iterator[Path]:
    """What `program` needs beside the system's: its file, the packages that it is part of, and
    the interpreter that its first line names, looked for on `path`. What a wrapper starts in turn
    cannot be seen here."""
    file = program.resolve()
    yield file
    yield from _packages(file)
    for executable in (program, *_interpreters(file, path)):
        # An interpreter inside an environment is a link to one outside; it needs both.
        yield from _prefix(executable)
        yield from _prefix(executable.resolve())


def _packages(file: Path) -> Iterator[Path]:
    """The outermost `node_modules`: packages use what lies beside them."""
    found = [folder for folder in file.parents if folder.name == "node_modules"]
    yield from found[-1:]


def _interpreters(file: Path, path: str) -> Iterator[Path]:
    with file.open("rb") as stream:
        first = stream.read(512)
    if not first.startswith(b"#!"):
        return
    words = first[2:].split(b"\n")[0].decode(errors="replace").split()
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    found = shutil.which(words[0], path=path) if words else None
    if found:
        yield Path(found)


def _prefix(executable: Path) -> Iterator[Path]:
    """What is in a Python environment, and a Python itself, need what lies beside their `bin`;
    other interpreters are one file."""
    yield executable
    prefix = executable.parent.parent
    if (prefix / "pyvenv.cfg").exists():
        yield prefix
    elif executable.name.startswith("python"):
        yield from (prefix / "bin", prefix / "lib")
