"""What a confined process leaves behind is ended, and nothing else."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_autokernel import strays
from pytest_autokernel.sandbox import Confinement
from tests.confined import NOTHING, Confined, needs_namespaces, needs_scopes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

# What a process does in a session of its own, before it says who it is and sleeps.
STRAYS = {
    "of a session of its own": "pass",
    "of no parent": "if os.fork(): os._exit(0)",
    "that will not be dumped": "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)",
    "without its first thread": """
        def sleep():
            say_who(); time.sleep(99)
        threading.Thread(target=sleep).start()
        ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
    """,
}
LEAVE = """
reader, writer = os.pipe()
def say_who():
    os.write(writer, str(os.getpid()).encode())
code = json.loads(sys.stdin.readline())
if os.fork() == 0:
    os.setsid()
    exec(code)
    say_who(); time.sleep(99)
tell(stray=int(os.read(reader, 99)))
time.sleep(99)
"""
# It forks and ends, faster than anybody can look; and holds the pipe open meanwhile.
HOPPER = """
if os.fork() == 0:
    os.setsid()
    for _ in range(100_000):
        if os.fork():
            os._exit(0)
time.sleep(0.1)
tell(ready=True)
time.sleep(99)
"""


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the user's that is none of the sandbox's business."""
    with subprocess.Popen(["sleep", "99"], start_new_session=True) as process:
        yield process
        process.kill()


def ends(pid: int) -> bool:
    """Whether `pid` is gone, or a zombie, within 5 s."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "ZX" and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1:
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


@needs_namespaces
@pytest.mark.parametrize("kind", STRAYS)
def test_a_process_left_behind_is_found_and_killed_and_no_other(
    tmp_path: Path, bystander: subprocess.Popen[bytes], kind: str
) -> None:
    with Confined(tmp_path, LEAVE) as child:
        child.say(textwrap.dedent(STRAYS[kind]))
        stray = child.told()["stray"]
        namespace = strays.mark(child.pid)
        assert namespace is not None
        child.end()
        Path(f"/proc/{stray}/cmdline").read_bytes()  # raises if it is gone already
        assert strays.kill_strays(namespace) == 1
    assert ends(stray)
    assert bystander.poll() is None


@needs_namespaces
def test_where_none_is_left_none_is_killed_and_the_mark_is_closed(tmp_path: Path) -> None:
    with Confined(tmp_path, "tell(ready=True); time.sleep(99)") as child:
        child.told()
        namespace = strays.mark(child.pid)
        assert namespace is not None
    assert strays.kill_strays(namespace) == 0
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(namespace)


def test_a_process_in_the_callers_namespace_gets_no_mark(tmp_path: Path) -> None:
    assert strays.mark(os.getpid()) is None
    with Confined(tmp_path, "tell(ready=True); time.sleep(99)", NOTHING) as child:
        child.told()
        assert strays.mark(child.pid) is None
    assert strays.mark(child.pid) is None


def test_nobody_is_killed_in_the_callers_own_namespace(
    bystander: subprocess.Popen[bytes],
) -> None:
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    with pytest.raises(ValueError, match="own namespace"):
        strays.kill_strays(own)
    assert bystander.poll() is None


def call(child: Confined, leash: socket.socket) -> None:
    strays.call_warden(leash)


def kill_first(child: Confined, leash: socket.socket) -> None:
    child.end()
    strays.call_warden(leash)


def die(child: Confined, leash: socket.socket) -> None:
    leash.close()


@needs_scopes
@pytest.mark.parametrize("how", [call, kill_first, die])
def test_a_warden_ends_what_cannot_be_found_and_nothing_else(
    tmp_path: Path, bystander: subprocess.Popen[bytes], how: Callable[..., None]
) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    leave = f"strays.leave_warden(system, socket.socket(fileno={theirs.fileno()}))\n"
    with ours, theirs, Confined(tmp_path, leave + HOPPER, fds=(theirs.fileno(), writer)) as child:
        theirs.close()
        os.close(writer)
        child.told()
        how(child, ours)
        held, _, _ = select.select([reader], [], [], 5)
        assert held, "somebody holds the pipe still"
        assert os.read(reader, 1) == b""
        assert ends(child.pid)
    os.close(reader)
    assert bystander.poll() is None


@needs_scopes
def test_a_warden_is_not_signalled_by_those_it_watches(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    body = f"""
        strays.leave_warden(system, socket.socket(fileno={theirs.fileno()}))
        stray = subprocess.Popen(["sleep", "99"], start_new_session=True)
        os.kill(-1, signal.SIGKILL)
        tell(waited=[stray.wait(), refused(os.wait)])
        stray = subprocess.Popen(["sleep", "99"], start_new_session=True)
        tell(stray=stray.pid)
        time.sleep(99)
    """
    with ours, theirs, Confined(tmp_path, body, fds=(theirs.fileno(),)) as child:
        theirs.close()
        assert child.told() == {"waited": [-9, "ChildProcessError"]}
        stray = child.told()["stray"]
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        strays.call_warden(ours)
        assert ends(stray)


@pytest.mark.parametrize("claimed", [Confinement(), Confinement(landlock=6)])
def test_no_warden_is_left_where_it_could_kill_more_than_the_sandbox(
    monkeypatch: pytest.MonkeyPatch, claimed: Confinement
) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("it forked"))
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(strays.StraysError, match="signals"):
        strays.leave_warden(claimed, theirs)


def test_a_warden_that_is_gone_is_no_error_and_one_that_is_stuck_is() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    strays.call_warden(ours)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(strays.StraysError, match="within"):
        strays.call_warden(ours, patience_s=0.01)
