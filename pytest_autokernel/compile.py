"""Compiling the C++ of a kernel file: a string of source becomes a loaded shared object.

Plain C++17 behind a C interface, by the system's own compiler, with no build system between:
well under two seconds, and nothing at all when the same text was compiled before. Torch is not
needed here; a kernel passes `tensor.data_ptr()`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from ctypes import CDLL
from pathlib import Path
from types import FrameType

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
COMPILERS = ("c++", "g++", "clang++")
MESSAGE_LINES = 30
# The lines of /proc/cpuinfo that -march=native depends on: x86's, then Arm's.
CPU_LINES = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU ")

# What this process had compiled, CUDA C++ too: the source, and the file that it became.
built: list[tuple[str, Path]] = []


class CompileError(Exception):
    """Source that does not compile, or no compiler. `line` is the first error's in `file`."""

    def __init__(self, message: str, file: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.line = line


def compile_cpp(
    source: str, *, defines: Mapping[str, int | str] | None = None, flags: Sequence[str] = ()
) -> CDLL:
    """Compile C++17 `source` (functions declared `extern "C"`) and load it.

    `defines` become `-D` macros; `flags` follow the default ones, so that they win. What was
    compiled is kept in `$AUTOKERNEL_CACHE_DIR` (default `~/.cache/autokernel`) under a hash of
    all that decides it. Errors name lines of the kernel file whose text holds `source`.
    Raises CompileError.
    """
    compiler = find_compiler()
    macros = [f"-D{name}={value}" for name, value in (defines or {}).items()]
    command = [*compiler, *FLAGS, *macros, *flags]
    key = "\0".join([source, *command, _version(compiler), _processor()])
    target = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    if not target.exists():
        _build(command, source, target, *origin(source, sys._getframe(1)))
    built.append((source, target))
    return CDLL(str(target))


def find_compiler() -> tuple[str, ...]:
    """The C++ compiler as the start of a command: `$CXX`, else the first one on the path."""
    named = os.environ.get("CXX")
    if named:
        command = tuple(shlex.split(named))
        if shutil.which(command[0]):
            return command
        raise CompileError(
            f"expected a C++ compiler in the environment's CXX, got CXX={named!r}, which is not "
            "on the path: correct CXX, or unset it to use the first of " + ", ".join(COMPILERS)
        )
    for name in COMPILERS:
        if shutil.which(name):
            return (name,)
    raise CompileError(
        f"expected a C++ compiler ({', '.join(COMPILERS)}), found none on PATH="
        f"{os.environ.get('PATH')!r}: install one (apt install g++), or set CXX"
    )


def _build(command: list[str], source: str, target: Path, file: str, first_line: int) -> None:
    """Compile into the cache under a name of its own, then rename: processes may race."""
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-fdiagnostics-color=never", "-x", "c++", "-", "-o", partial],
            input=f'#line {first_line} "{file}"\n{source}',
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise _error(done.stderr, file)
        Path(partial).replace(target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _error(stderr: str, file: str) -> CompileError:
    """The compiler's words from its first error on; warnings before it are left out."""
    lines = stderr.strip().splitlines()
    first = re.compile(rf"{re.escape(file)}:(\d+):.*error:")
    found = [(i, int(match[1])) for i, text in enumerate(lines) if (match := first.match(text))]
    start, line = found[0] if found else (0, None)
    words = "\n".join(lines[start : start + MESSAGE_LINES])
    return CompileError(f"the C++ compiler refused the source:\n{words}", file, line)


def origin(source: str, frame: FrameType | None) -> tuple[str, int]:
    """The file and line at which `source` is written: in the nearest caller whose text has it.

    Text that no caller holds as it stands (it was put together, or has escapes) counts its
    own lines.
    """
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            start = text.find(source)
            if start >= 0:
                return str(path), text.count("\n", 0, start) + 1
        frame = frame.f_back
    return "<source>", 1


def cache_folder() -> Path:
    """Where what was compiled is kept: `$AUTOKERNEL_CACHE_DIR`, default `~/.cache/autokernel`."""
    named = os.environ.get("AUTOKERNEL_CACHE_DIR")
    folder = Path(named) if named else Path.home() / ".cache" / "autokernel"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@functools.cache
def _processor() -> str:
    """Which processor this is, for a cache that several machines share."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    first = text.split("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.startswith(CPU_LINES))
