"""Runs a program of somebody else's for the agent, and ends it with all that it started.

The program (a coding agent) needs the network, and so is not held as a kernel is: files, and whom
it may signal, are all that is taken from it (sandbox.confine_online). What it starts it cannot
leave behind: whatever loses its parent becomes this process' child, in whichever session it is,
and this process ends only when no child is left. Linux alone.

Started as `python -m pytest_autokernel.keeper`, with an order for standard input (see Order); with
the word `probe`, it prints as JSON what Landlock there is, and what is lacking.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pytest_autokernel import sandbox

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CANNOT_START = 127  # what a shell says
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Order:
    """What to run, where, with which environment, and which files are left to it."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    parent: int
    confined: bool
    readable: list[str]
    writable: list[str]


def lacking(abi: int) -> list[str]:
    """What a program can do here that it should not, in words."""
    lacks = {
        "no Landlock: it can read and write whatever you can": abi < 1,
        "Landlock without ABI 3: it can empty what you can write": 0 < abi < 3,
        "no Landlock ABI 6: it can signal your other processes": abi < sandbox.SIGNALS_FROM_ABI,
    }
    return [words for words, lacking in lacks.items() if lacking]


def keep(order: Order) -> int:
    """The program's exit status (128 and the signal's number, where one ended it), once nothing
    that it started is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _end)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    abi = sandbox.probe().landlock if order.confined else 0
    if os.getppid() != order.parent:
        _end()
    program = os.fork()
    if program == 0:
        _become(order, abi)
    status = _wait_for(program)
    end_children()
    return status


def _become(order: Order, abi: int) -> NoReturn:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.chdir(order.cwd)
        if abi:
            sandbox.confine_online(abi, map(Path, order.readable), map(Path, order.writable))
        os.execvpe(order.argv[0], order.argv, order.env)
    except (OSError, sandbox.SandboxError) as error:
        os.write(2, f"{order.argv[0]} cannot be started: {error}\n".encode())
    finally:
        os._exit(CANNOT_START)


def _wait_for(program: int) -> int:
    """Orphans that end meanwhile are waited for too, or they would fill the process table."""
    while True:
        pid, status = os.wait()
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def end_children() -> None:
    """Kill all descendants until there are none. Raises TimeoutError."""
    end = time.monotonic() + PATIENCE_S
    while _reap():
        if time.monotonic() > end:
            raise TimeoutError(f"processes outlive being killed: {sorted(_descendants())}")
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)


def _reap() -> bool:
    """Whether there are children, after those that have ended were waited for."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _descendants() -> set[int]:
    parents = dict(_parents())
    found, to_do = set[int](), {os.getpid()}
    while to_do:
        to_do = {pid for pid, parent in parents.items() if parent in to_do} - found
        found |= to_do
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold anything: state, then parent.
            parent = path.read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
        yield int(path.parent.name), int(parent)


def _end(*_: Any) -> NoReturn:
    end_children()
    os._exit(128 + signal.SIGTERM)


def main() -> None:
    if sys.argv[1:] == ["probe"]:
        abi = sandbox.probe().landlock
        json.dump({"landlock": abi, "lacks": lacking(abi)}, sys.stdout)
        return
    order = Order(**json.load(sys.stdin))
    with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is wanted, not a file's text
        os.dup2(nothing.fileno(), 0)
    sys.exit(keep(order))


if __name__ == "__main__":
    main()
