"""A worker inside another program, which starts it and looks into it: compute-sanitizer.

Such a program loads itself into the worker's process, and has threads there before any code of
ours runs; what a process then takes from itself does not hold for them. So this module runs three
times, and each time becomes something else by `exec`. `launch` enters a network of its own and
becomes the program. The program starts `confine`, which gives up what a candidate must not reach
and becomes itself anew: all threads from before have ended, and those to come are confined.
`serve` is then a worker like any other.

Started by process.spawn, with a descriptor of its channel for argument; each request is one step.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_autokernel import nursery, sandbox, strays
from pytest_autokernel.channel import Channel, close
from pytest_autokernel.process import command_of
from pytest_autokernel.sandbox import Confinement, SandboxError
from pytest_autokernel.strays import StraysError
from pytest_autokernel.worker import Worker, describe

MODULE = "pytest_autokernel.launcher"


def launch(channel: Channel, message: dict[str, Any], fds: Sequence[int]) -> None:
    """Become the program that starts this module again. `fds` is the leash."""
    warded = False
    if message["system"]:
        system = Confinement(**message["system"])
        sandbox.leave_namespaces(loopback=True)
        warded = system.landlock >= sandbox.SIGNALS_FROM_ABI
        if warded:
            sandbox.scope_signals()
            strays.leave_warden(system, socket.socket(fileno=os.dup(fds[0])))
    close(fds)
    nursery.die_with_parent()  # new credentials end that
    channel.send({"warded": warded})
    command = [*message["command"], *command_of(MODULE, channel.sock.fileno())]
    os.execv(command[0], command)


def confine(channel: Channel, message: dict[str, Any], fds: Sequence[int]) -> None:
    """Give up what a candidate must not reach, and become a process without other threads."""
    readable, writable = ([Path(p) for p in message[k]] for k in ("readable", "writable"))
    sandbox.confine(
        Confinement(**message["system"]),
        Path(message["folder"]),
        readable=[*readable, *_injected()],
        writable=writable,
        gpu=message["gpu"],
        left=True,
    )
    _pass_on(channel.sock.fileno())
    channel.send({"ok": True})
    command = command_of(MODULE, channel.sock.fileno())
    os.execv(command[0], command)


def serve(channel: Channel, message: dict[str, Any], fds: Sequence[int]) -> None:
    """Be a worker, and then end as a program does: the tool's last words are said at its exit."""
    channel.send({"ok": True})
    Worker().serve(channel)


def _injected() -> Iterator[Path]:
    """Where the libraries lie that the program puts into this process. They take themselves out
    of LD_PRELOAD as Python sees it, and see to it that the next image has them again."""
    for name in os.environ.get("LD_PRELOAD", "").split(":"):
        if name.startswith("/"):
            yield Path(name).parent
    for name in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if name.startswith("/"):
            yield Path(name)


def _pass_on(channel: int) -> None:
    """Have the next image find the channel; what the permissions for /proc hang on, which nobody
    may let go of (sandbox.py); and the pipes by which the program knows this process, which the
    next image can open anyway. Nothing else: the program's log is no candidate's to write."""
    for path in list(Path("/proc/self/fd").iterdir()):
        fd = int(path.name)
        with contextlib.suppress(OSError):  # the listing's own, which is closed by now
            whose, mode = path.readlink(), os.fstat(fd).st_mode
            kept = fd in (0, 1, 2, channel) or whose.is_relative_to("/proc") or stat.S_ISFIFO(mode)
            os.set_inheritable(fd, kept)


def main() -> None:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    message, fds = channel.receive()
    steps = {"launch": launch, "confine": confine, "serve": serve}
    try:
        steps[message["do"]](channel, message, fds)
    except (SandboxError, StraysError, OSError) as error:
        channel.send({"error": describe(error, "")})


if __name__ == "__main__":
    main()
