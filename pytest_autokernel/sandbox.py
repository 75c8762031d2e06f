"""What a candidate's process can reach, taken away by that process itself before it reads the
candidate: files by Landlock, the network by a namespace, other processes by these and by a filter
of system calls (seccomp.py). Linux alone; needs no root, cannot be undone.

Not covered: how much memory, disk and time a process uses, how many others it starts, and the
GPU's own state.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from pytest_autokernel import seccomp

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
CAPABILITY_VERSION = 0x20080522
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

# linux/landlock.h. The system calls have these numbers on every processor.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
SCOPE_ABSTRACT_SOCKET, SCOPE_SIGNAL = 1, 2
SIGNALS_FROM_ABI = 6  # from here on a sandbox holds signals
RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16, 9: 17}  # how many rights on files, from which ABI on
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = EXECUTE | READ_FILE | READ_DIR
USE = READ_FILE | WRITE_FILE | IOCTL_DEV
ALL = (1 << 17) - 1

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/sys"),
    *("/nix/store", "/gnu/store", "/run/opengl-driver"),
    # Of /etc what libraries read; keys, passwords and tokens lie beside it.
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/localtime"),
    *("/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies", "/etc/OpenCL"),
    # Of /proc nothing that is another process'.
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/vmstat", "/proc/version"),
    *("/proc/filesystems", "/proc/devices", "/proc/modules", "/proc/sys", "/proc/driver"),
)
# What finding and trusting a server takes; keys lie beside it.
ONLINE = (
    *("/etc/resolv.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols"),
    *("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ca-certificates", "/etc/pki/ca-trust"),
    *("/etc/pki/tls/certs", "/etc/pki/tls/cert.pem"),
)
DEVICES = ("null", "zero", "full", "random", "urandom")
GPU_DEVICES = ("nvidia*", "nvidia-caps/*", "nvhost*", "nvmap", "dxg", "dri/*", "kfd")


class SandboxError(Exception):
    """A restriction that this system offers could not be set."""


@dataclass(frozen=True)
class Confinement:
    """What this system offers: Landlock's ABI (0 is none), a user and a network namespace, and
    a filter of system calls."""

    landlock: int = 0
    namespaces: bool = False
    filter: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """What a kernel's process can therefore do, in words for a report's header."""
        lacks = {
            "no Landlock: it can read and write whatever you can": self.landlock < 1,
            "Landlock without ABI 3: it can empty what you can write": 0 < self.landlock < 3,
            "no Landlock ABI 6: it can signal your other processes": self.landlock < 6,
            "no user namespace, no Landlock ABI 6: what it leaves running is not found": (
                not self.namespaces and self.landlock < 6
            ),
            "no system-call filter: it can slow down your other processes": not self.filter,
            "no system-call filter, no Landlock ABI 9: it can talk to services on this machine": (
                not self.filter and self.landlock < 9
            ),
            "neither user namespace nor system-call filter: it can use the network": (
                not self.namespaces and not self.filter
            ),
        }
        return tuple(words for words, lacking in lacks.items() if lacking)


@functools.cache
def probe() -> Confinement:
    """What this system offers, tried by a process of its own (once, about 50 ms)."""
    if sys.platform != "linux":
        return Confinement()
    root = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.append({root!r}); from pytest_autokernel import sandbox; "
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", code + "sys.stdout.write(sandbox.trial())"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        landlock, namespaces, filtered = map(int, done.stdout.split())
    except ValueError:
        raise SandboxError(f"the sandbox's trial broke: {done.stderr.strip()[-300:]}") from None
    return Confinement(landlock, bool(namespaces), bool(filtered))


def trial() -> str:
    """What of `confine` this process can do to itself, in the same order."""

    def works(step: Callable[..., None], *arguments: Any) -> bool:
        try:
            step(*arguments)
        except SandboxError:
            return False
        return True

    abi = max(0, libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1))
    namespaces = works(leave_namespaces)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    landlock = abi if abi and works(_restrict_files, abi, ()) else 0
    found = Confinement(landlock, namespaces, works(_filter_calls, False))
    return " ".join(str(int(value)) for value in astuple(found))


def confine(
    system: Confinement,
    folder: Path,
    *,
    readable: Iterable[Path] = (),
    writable: Iterable[Path] = (),
    gpu: bool = False,
    left: bool = False,
) -> None:
    """Restrict the calling process and all that it will start. It must have one thread, or `exec`
    next, which ends the others.

    Left to it are the system's programs and libraries, its own Python's and `readable` paths, to
    read; `folder`, `writable` paths and with `gpu` the graphics devices, to use; and whatever it
    has open. `system` is what `probe()` found beforehand; `left` says that the process is in
    namespaces of its own by `leave_namespaces`, where it may use TCP. Raises SandboxError where
    something that the system offers cannot be had: the process must not go on then.
    """
    if sys.platform != "linux":
        return
    if system.namespaces and not left:
        leave_namespaces()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if system.landlock:
        _restrict_files(system.landlock, _rules(folder, readable, writable, gpu), tcp=left)
    _drop_capabilities()
    if system.filter:
        _filter_calls(gpu, tcp=left)


def confine_online(abi: int, readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Restrict the calling process' files, and whom it may signal, and leave it the network: for a
    program that talks to a server and has nothing to do with kernels. `abi` is Landlock's.

    Left to it are the system's programs and libraries, what name lookup and TLS read, and
    `readable` paths, to read; `writable` paths, to use. Raises SandboxError.
    """
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    rules = [(Path(path), READ) for path in (*SYSTEM, *ONLINE, "/proc/self")]
    rules += [*((path, READ) for path in readable), *((path, ALL) for path in writable)]
    rules += [(Path("/dev", name), USE) for name in DEVICES]
    _restrict_files(abi, rules, tcp=True)
    _drop_capabilities()


def leave_namespaces(loopback: bool = False) -> None:
    """Into a user namespace with the same user in it, and a network without a single device; or
    with one by which those in it reach each other."""
    user, group = os.geteuid(), os.getegid()
    _check(libc().unshare(CLONE_NEWUSER | CLONE_NEWNET), "get a user and a network namespace")
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as error:
        raise SandboxError(f"cannot stay the same user in a user namespace: {error}") from error
    with contextlib.suppress(OSError):  # the filter refuses it too
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    if loopback:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", IFF_UP))


def _drop_capabilities() -> None:
    """Those of root, and those that one has in a user namespace of one's own. After
    PR_SET_NO_NEW_PRIVS no program brings them back."""
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    _check(libc().capset(header, bytes(24)), "drop capabilities")


def _rules(
    folder: Path, readable: Iterable[Path], writable: Iterable[Path], gpu: bool
) -> Iterator[tuple[Path, int]]:
    """Paths, and what may be done with them and with all below."""
    packages = (p for p in sys.path if Path(p).name in {"site-packages", "dist-packages"})
    yield from ((Path(p), READ) for p in (*SYSTEM, sys.prefix, sys.base_prefix, *packages))
    yield from ((path, READ) for path in readable)
    yield from ((path, ALL) for path in (folder, *writable))
    # The CUDA driver names its threads there, and truncates before it writes.
    yield Path("/proc/self"), READ | WRITE_FILE | TRUNCATE
    for pattern in (*DEVICES, *(GPU_DEVICES if gpu else ())):
        yield from ((path, USE) for path in Path("/dev").glob(pattern))


def _restrict_files(abi: int, rules: Iterable[tuple[Path, int]], tcp: bool = False) -> None:
    handled = (1 << max(count for since, count in RIGHTS.items() if since <= abi)) - 1
    network = 3 if abi >= 4 and not tcp else 0  # to bind and to connect TCP; no rule allows it
    scoped = SCOPE_ABSTRACT_SOCKET | SCOPE_SIGNAL if abi >= 6 else 0
    attributes = struct.pack("=QQQ", handled, network, scoped)
    ruleset = _landlock(CREATE_RULESET, attributes, len(attributes), 0)
    for path, rights in rules:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there, or cannot be named, needs no permission
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= ON_FILES
        _landlock(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights & handled, fd), 0)
        # The kernel forgets an entry of /proc that nobody holds, and makes another one at the
        # next look, which the rule does not cover.
        if path.parts[:2] != ("/", "proc"):
            os.close(fd)
    _landlock(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def scope_signals() -> None:
    """From here on signal only what the calling process itself will start (Landlock ABI 6).

    Any ruleset denies moving files between folders that does not allow it, even one that is
    about no files; so this one allows it everywhere, and leaves that to the sandbox's own."""
    attributes = struct.pack("=QQQ", REFER, 0, SCOPE_SIGNAL)
    ruleset = _landlock(CREATE_RULESET, attributes, len(attributes), 0)
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    _landlock(ADD_RULE, ruleset, 1, struct.pack("=Qi", REFER, root), 0)
    os.close(root)
    _landlock(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _landlock(number: int, *arguments: int | bytes) -> int:
    wide = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _check(libc().syscall(number, *wide), "restrict the use of files")


def _filter_calls(gpu: bool, tcp: bool = False) -> None:
    machine = os.uname().machine
    if machine not in seccomp.AUDIT or sys.maxsize < 2**32:
        raise SandboxError(f"no system-call filter for {machine}")
    code = ctypes.create_string_buffer(seccomp.program(machine, gpu, tcp))
    filtered = struct.pack("@HP", len(code) // 8, ctypes.addressof(code))
    _check(libc().prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), filtered), "filter system calls")


def _prctl(option: int, value: int) -> None:
    rest = [ctypes.c_ulong(0)] * 3
    _check(libc().prctl(option, ctypes.c_ulong(value), *rest), f"set process option {option}")


def _check(result: int, doing: str) -> int:
    if result < 0:
        raise SandboxError(f"cannot {doing}: {os.strerror(ctypes.get_errno())}")
    return result


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
