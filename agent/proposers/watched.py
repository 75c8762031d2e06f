"""A coding agent's process, watched from outside: how long it takes, how long it is silent, how
much it says. It runs under the judge's keeper, which ends all that it started."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# -P: a folder of the user's repository must not stand in for an installed package.
KEEPER = (sys.executable, "-P", "-m", "pytest_autokernel.keeper")
# What the keeper may know of our environment, which a program beside it may be able to read.
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
CHUNK = 65_536
LONGEST_LINE = 4_000_000  # bytes; an event may hold a whole file
LAST_WORDS = 2_000
GRACE_S = 20.0  # for the keeper to end all, which gives up itself after 10


@dataclass(frozen=True)
class Limits:
    """For one run, for a silence within it, and for what it says."""

    run_s: float
    silence_s: float
    output_bytes: int = 64_000_000


@dataclass(frozen=True)
class Program:
    """What to run where, and what of the files is left to it."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    confined: bool
    readable: Sequence[Path]
    writable: Sequence[Path]


@dataclass(frozen=True)
class Ending:
    """How it ended, in words, and the last that it said. Neither tells whether it did its work."""

    how: str
    last_words: str


def run(program: Program, limits: Limits, tell: Callable[[str], None]) -> Ending:
    """Run it to its end, or end it; `tell` gets each line that it prints, and errors too. When
    this returns, by an exception too, nothing that it started is left."""
    process = subprocess.Popen(
        KEEPER,
        env={name: os.environ[name] for name in KEPT if name in os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _order(process, program)
        lines = Lines(tell)
        how = _watch(process, limits, lines)
        return Ending(how or f"it exited with {process.wait(GRACE_S)}", lines.last_words())
    finally:
        _end(process)


def _order(process: subprocess.Popen[bytes], program: Program) -> None:
    """By standard input: a command line can be read by everybody on the machine."""
    order = {
        "argv": list(program.argv),
        "env": dict(program.env),
        "cwd": str(program.cwd),
        "parent": os.getpid(),
        "confined": program.confined,
        "readable": [str(path) for path in program.readable],
        "writable": [str(path) for path in program.writable],
    }
    assert process.stdin is not None
    with process.stdin, suppress(BrokenPipeError):  # then it says by itself what is wrong
        process.stdin.write(json.dumps(order).encode())


def _watch(process: subprocess.Popen[bytes], limits: Limits, lines: Lines) -> str | None:
    """Read until all of it has ended, or say why it has to."""
    assert process.stdout is not None
    output, total = process.stdout.fileno(), 0
    began = heard = time.monotonic()
    while True:
        left_s = min(began + limits.run_s, heard + limits.silence_s) - time.monotonic()
        if not select.select([output], [], [], max(0.0, left_s))[0]:
            over = time.monotonic() >= began + limits.run_s
            words = f"took over {limits.run_s:g} s" if over else "was silent for "
            return f"it {words if over else words + f'{limits.silence_s:g} s'} and was ended"
        chunk = os.read(output, CHUNK)
        if not chunk:
            return None
        lines.add(chunk)
        heard, total = time.monotonic(), total + len(chunk)
        if total > limits.output_bytes:
            return f"it said over {limits.output_bytes:,} bytes and was ended"
        if heard > began + limits.run_s:
            return f"it took over {limits.run_s:g} s and was ended"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the keeper, which ends the rest first."""
    try:
        with suppress(subprocess.TimeoutExpired):
            process.send_signal(signal.SIGTERM)
            process.wait(GRACE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


class Lines:
    """Bytes into lines. What is too long for one is dropped."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._rest = b""
        self._last = b""

    def add(self, chunk: bytes) -> None:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            self._tell(line.decode(errors="replace"))
        self._last = (self._last + chunk)[-LAST_WORDS:]
        if len(self._rest) > LONGEST_LINE:
            self._rest = b""

    def last_words(self) -> str:
        """The last line that says anything."""
        if self._rest:
            self._tell(self._rest.decode(errors="replace"))
        words = self._last.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(words) if line.strip()), "")
