"""Where workers come from: a process that has imported what a worker needs, and forks.

Nothing of a candidate is ever read here. A fork is as fresh as a new interpreter and is there
in milliseconds, where importing torch takes seconds.

Started by process.spawn, with a descriptor of its channel for argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import mmap
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NoReturn

from pytest_autokernel.channel import Channel, ChannelError

PR_SET_PDEATHSIG = 1
PRELOADED = (
    "pytest_autokernel.candidate",
    "pytest_autokernel.gpu_sampling",
    "pytest_autokernel.handover",
    "pytest_autokernel.sampling",
    "pytest_autokernel.worker",
    "triton",
    "triton.language",
)
MAX_SHIFT_PAGES = 2**18  # 1 GiB of address space


def serve(channel: Channel) -> None:
    """Answer requests until the judge is gone."""
    handlers = {"status": status, "end": end}
    while True:
        try:
            message, fds = channel.receive()
        except ChannelError:
            return
        if message["do"] == "fork":
            reply = fork(message, fds, channel)
        else:
            reply = handlers[message["do"]](message["pid"])
        for fd in fds:
            os.close(fd)
        channel.send(reply)


def fork(message: dict[str, Any], fds: Sequence[int], channel: Channel) -> dict[str, Any]:
    """A worker, with its channel and its output for descriptors."""
    pid = os.fork()
    if pid == 0:
        channel.close()
        become_worker(message, *fds)
    return {"pid": pid}


def become_worker(message: dict[str, Any], channel: int, output: int) -> NoReturn:
    """The fork's life: what it inherited is put right, then it serves until it is killed."""
    from pytest_autokernel.worker import Worker

    os.setsid()
    die_with_parent()
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.chdir(message["cwd"])
    os.environ.update(message["env"])
    tempfile.tempdir = None  # found anew, in the worker's own folder
    random.seed()
    # A fork has its parent's addresses; moving what is mapped from here on lays code and
    # buffers out afresh, as a new process would.
    gap = mmap.mmap(-1, mmap.PAGESIZE * random.randint(1, MAX_SHIFT_PAGES), prot=0)
    Worker().serve(Channel(socket.socket(fileno=channel)))
    gap.close()
    os._exit(0)


def status(pid: int) -> dict[str, Any]:
    """The exit status of a worker that has ended, which keeps its number."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    killed = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
    return {"status": -ended.si_status if killed else ended.si_status}


def end(pid: int) -> dict[str, Any]:
    """Kill a worker with its group, and wait for it."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # it had not come to have a group
        os.killpg(pid, signal.SIGKILL)
    return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def preload() -> None:
    """Import what workers use; nothing that starts a thread or touches a GPU, which forks
    would not survive."""
    from pytest_autokernel import audit

    audit.rehearse()
    for name in PRELOADED:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    if os.environ.get("TRITON_INTERPRET") == "1" and "triton" in sys.modules:
        from pytest_autokernel import interpreter

        interpreter.mend()
    gc.collect()
    gc.freeze()


def die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    die_with_parent()
    preload()
    serve(Channel(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
