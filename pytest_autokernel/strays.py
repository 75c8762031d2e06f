"""Ending all that a confined process (sandbox.py) started. Its process group is not all: setsid
leaves it.

Two ways. A warden, left in the sandbox beforehand, kills everything in it at once; it needs
Landlock ABI 6. From outside, whoever is in the namespace is looked for and killed; that needs a
namespace, and does not catch a process that forks and ends faster than /proc is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

from pytest_autokernel.sandbox import Confinement, libc, scope_signals

# System calls, by the same number on every processor. The first takes a descriptor of /proc/PID.
PIDFD_SEND_SIGNAL, CLOSE_RANGE = 424, 436
PEER = struct.Struct("=iII")  # process, user, group


class StraysError(Exception):
    """Processes are left that cannot be ended."""


def leave_warden(system: Confinement, leash: socket.socket) -> None:
    """Start a process that kills all in the sandbox, the caller too, once the other end of
    `leash` (a socketpair of the judge's) is closed. For a confined process with one thread.

    kill(-1) signals at one stroke whom one may signal: inside, under Landlock, that is the
    sandbox. The caller can afterwards not signal the warden. Raises StraysError where the
    sandbox does not hold signals: kill(-1) would reach everything that is the user's.
    """
    if system.landlock < 6 or not _is_out_of_reach(leash):
        raise StraysError("a warden needs a sandbox that holds signals: Landlock ABI 6")
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            _ward(leash.fileno())
        os._exit(0)  # the warden is then nobody's whom the candidate waits for
    os.waitpid(child, 0)
    leash.close()
    scope_signals()


def _is_out_of_reach(leash: socket.socket) -> bool:
    """Whether he who made the socket is the same user and yet cannot be signalled."""
    maker = leash.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    pid, user, _ = PEER.unpack(maker)
    try:
        os.kill(pid, 0)
    except PermissionError:
        return bool(user == os.geteuid())
    return False


def _ward(leash: int) -> None:
    os.setsid()
    libc().syscall(CLOSE_RANGE, 0, leash - 1, 0)
    libc().syscall(CLOSE_RANGE, leash + 1, ctypes.c_uint(-1), 0)
    try:
        while os.read(leash, 1):
            pass
    finally:
        os.kill(-1, SIGKILL)
        os._exit(0)


def call_warden(leash: socket.socket, patience_s: float = 5) -> None:
    """Have the warden at the other end of `leash` kill, and wait until it has. Raises StraysError
    if it does not within `patience_s`. Where it was killed itself it says nothing."""
    with leash:
        leash.settimeout(patience_s)
        try:
            leash.shutdown(socket.SHUT_WR)
            leash.recv(1)
        except TimeoutError:
            raise StraysError(
                f"the sandbox's warden did not end it within {patience_s:g} s"
            ) from None


def mark(pid: int) -> int | None:
    """A descriptor that holds the network namespace of `pid`, a confined process that nobody
    has waited for yet. None where that is the caller's own, or cannot be told: then it does not
    say who belongs to whom."""
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    except OSError:
        return None
    if _is_ours(fd):
        os.close(fd)
        return None
    return fd


def kill_strays(mark: int, patience_s: float = 5) -> int:
    """Kill every process in the marked namespace, close the mark, and say how many there were.

    A confined process cannot leave its namespace. Under the filter it cannot hide it from its
    own user either; without, one that made itself undumpable is seen by root alone. Raises
    StraysError if some are left after `patience_s`.
    """
    try:
        if _is_ours(mark):
            raise ValueError(f"mark={mark} is the caller's own namespace")
        killed: set[int] = set()
        end = time.monotonic() + patience_s
        while found := set(_kill_inhabitants(os.fstat(mark))):
            killed |= found
            if time.monotonic() > end:
                raise StraysError(f"processes outlive being killed: {sorted(found)}")
            time.sleep(0.005)
        return len(killed)
    finally:
        os.close(mark)


def _is_ours(namespace: int) -> bool:
    return os.path.samestat(os.fstat(namespace), Path("/proc/self/ns/net").stat())


def _kill_inhabitants(namespace: os.stat_result) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            # All that follows is about the process of this descriptor, whoever has its number.
            process = os.open(path, os.O_RDONLY)
            try:
                if _inhabits(process, namespace):
                    libc().syscall(PIDFD_SEND_SIGNAL, process, SIGKILL, None, 0)
                    yield int(path.name)
            finally:
                os.close(process)


def _inhabits(process: int, namespace: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat("ns/net", dir_fd=process), namespace)
    except FileNotFoundError:  # its first thread has ended; others may run on
        tasks = os.open("task", os.O_RDONLY, dir_fd=process)
    try:
        with os.scandir(tasks) as entries:
            for task in entries:
                with contextlib.suppress(FileNotFoundError):
                    link = os.stat(f"{task.name}/ns/net", dir_fd=tasks)
                    return os.path.samestat(link, namespace)
    finally:
        os.close(tasks)
    return False
