"""Child processes that answer messages: started, asked with a time limit, killed with all that
they started. The comparison and the nursery are spawned; workers are forks of the nursery."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pytest_autokernel import strays
from pytest_autokernel.channel import Channel, ChannelError
from pytest_autokernel.sandbox import Confinement, SandboxError

PACKAGE = Path(__file__).resolve().parent
OUTPUT_KEPT = 4096  # bytes of a child's last words, for the report
NURSERY_TIMEOUT_S = 120.0  # its start, with torch's and Triton's import on a busy machine


class Died(Exception):
    """The process ended in the middle of a request."""


class TimedOut(Exception):
    """The process gave no answer in time and was killed."""


class Child(Protocol):
    """A process of ours, as far as its life goes."""

    pid: int

    def poll(self, timeout_s: float = 0.0) -> int | None:
        """Its exit status once it has ended (a signal's number, negated), else None."""

    def kill(self) -> None:
        """End it and its group, and wait until it is gone."""


class Process:
    """A child with a message channel.

    Its standard output and error (`output`, a descriptor) are read and dropped but for the last
    words, so that a flood fills neither a pipe nor a disk.
    """

    def __init__(self, child: Child, channel: Channel, output: int) -> None:
        self._child, self._channel, self._output = child, channel, output
        self._leash: socket.socket | None = None
        self._mark: int | None = None
        self._ended: str | None = None
        self._words: deque[bytes] = deque(maxlen=2)
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        self._ending = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._ended is None and self._child.poll() is None

    def ask(
        self, message: dict[str, Any], fds: tuple[int, ...] = (), timeout_s: float | None = None
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Send a request and wait for its answer. Raises Died or TimedOut, the process then
        being dead."""
        if self._ended:
            raise Died(self._ended)
        try:
            self._channel.send(message, fds)
            return self._channel.receive(timeout_s)
        except TimeoutError:
            self._end(f"gave no answer within {timeout_s:g} s and was killed")
            raise TimedOut(self._ended) from None
        except ChannelError:
            self._end(self._cause())
            raise Died(self._ended) from None

    def tie(self, message: dict[str, Any], system: Confinement) -> None:
        """Have the process confine itself as `message` says, and hold what all that it will start
        can be ended by (strays.py). Raises SandboxError, the process then being dead."""
        leash, theirs = socket.socketpair()
        with theirs:
            try:
                reply, _ = self.ask(message, (theirs.fileno(),), NURSERY_TIMEOUT_S)
            except (Died, TimedOut) as error:
                reply = {"error": {"message": str(error)}}
        if "error" in reply:
            leash.close()
            self.close()
            raise SandboxError(f"the sandbox could not be set up: {reply['error']['message']}")
        if reply["warded"]:
            self._leash = leash
        else:
            leash.close()
        self._mark = strays.mark(self._child.pid) if system.namespaces else None

    def finish(self, timeout_s: float) -> None:
        """Let the process end by itself, as it does when nobody can ask any more; then `close`."""
        self._channel.close()
        self._child.poll(timeout_s)
        self.close()

    def close(self) -> None:
        """Kill the process and its group, and wait until it is gone. From any thread: one that
        waits for an answer is told that there is none."""
        self._end(self._ended or "was closed")

    def _end(self, why: str) -> None:
        with self._ending:
            if self._output >= 0:  # else it is gone, and its number may be another's
                self._kill(why)

    def _kill(self, why: str) -> None:
        self._ended = why
        leash, mark = self._leash, self._mark
        self._leash = self._mark = None
        if leash is not None:
            strays.call_warden(leash)
        self._child.kill()
        if mark is not None:
            strays.kill_strays(mark)
        self._reader.join(timeout=1)
        self._channel.close()
        with contextlib.suppress(OSError):
            os.close(self._output)
        self._output = -1

    def _cause(self) -> str:
        code = self._child.poll(timeout_s=5)
        if code is None:
            return "closed its channel while still running"
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        else:
            how = f"exited by itself with code {code}"
        self._reader.join(timeout=1)
        last = b"".join(self._words)[-OUTPUT_KEPT:].decode(errors="replace").strip()
        return f"{how}; its last words: {last.splitlines()[-1]:.300}" if last else how

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._output, OUTPUT_KEPT):
                self._words.append(chunk)


# Runs a module of this very package, wherever it was imported from and whatever is installed
# beside it: `python -I` sees neither PYTHONPATH nor what a test put on sys.path.
START = """
import importlib.util, runpy, sys
package, module, *sys.argv[1:] = sys.argv[1:]
spec = importlib.util.spec_from_file_location(
    "pytest_autokernel", f"{package}/__init__.py", submodule_search_locations=[package]
)
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def command_of(module: str, fd: int) -> list[str]:
    """`python -I`, running `module` with a descriptor for argument. It runs our own code alone,
    and so may write bytecode: without it torch takes twice as long to import, in every process."""
    return [sys.executable, "-I", "-c", START, str(PACKAGE), module, str(fd)]


def spawn(module: str, env: Mapping[str, str], cwd: Path) -> Process:
    """A process that runs `module`, in a session of its own."""
    ours, theirs = socket.socketpair()
    with theirs:
        popen = subprocess.Popen(
            command_of(module, theirs.fileno()),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    assert popen.stdout is not None
    output = os.dup(popen.stdout.fileno())
    popen.stdout.close()
    return Process(Spawned(popen), Channel(ours), output)


class Spawned:
    """A child of this process."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen, self.pid = popen, popen.pid

    def poll(self, timeout_s: float = 0.0) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(timeout_s)
        return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


def launch(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, system: Confinement | None
) -> Process:
    """A process inside the program `command`; launcher.py says what it may be asked, and what
    `system` leaves to it. Raises SandboxError."""
    process = spawn("pytest_autokernel.launcher", env, cwd)
    message = {"do": "launch", "command": list(command), "system": system and asdict(system)}
    process.tie(message, system or Confinement())
    return process


class Nursery:
    """A process that has imported torch, and Triton where it is installed, and nothing of any
    candidate. Its forks are the workers: fresh, and there in milliseconds (nursery.py).

    It is started by `start`, which does not wait for it.
    """

    def __init__(self, env: Mapping[str, str], cwd: Path) -> None:
        self._env, self._cwd = env, cwd
        self._process: Process | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            self._started()

    def fork(self, env: Mapping[str, str], cwd: Path, cell: Cell | None) -> Process:
        """A new worker in `cwd`, with `env` on top of the nursery's environment, confined to
        `cell` before it hears of anything else. Raises SandboxError."""
        ours, theirs = socket.socketpair()
        output, written = os.pipe()
        message = {"do": "fork", "env": dict(env), "cwd": str(cwd)}
        with theirs:
            reply = self.ask(message, (theirs.fileno(), written))
            os.close(written)
        process = Process(Forked(self, reply["pid"]), Channel(ours), output)
        if cell is not None:
            process.tie(cell.message(), cell.system)
        return process

    def ask(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """One request at a time. Raises Died or TimedOut; the workers die with the nursery."""
        with self._lock:
            return self._started().ask(message, fds, NURSERY_TIMEOUT_S)[0]

    def _started(self) -> Process:
        if self._process is None or not self._process.alive:
            self.close()
            self._process = spawn("pytest_autokernel.nursery", self._env, self._cwd)
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.close()


@dataclass(frozen=True)
class Cell:
    """What a worker is confined to: see sandbox.confine for each."""

    system: Confinement
    folder: Path
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    gpu: bool

    def message(self) -> dict[str, Any]:
        return {
            "do": "confine",
            "system": asdict(self.system),
            "folder": str(self.folder),
            "readable": [str(path) for path in self.readable],
            "writable": [str(path) for path in self.writable],
            "gpu": self.gpu,
        }


class Forked:
    """A child of the nursery, which alone can wait for it: until then its number is its own."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None
        self._gone = False

    def poll(self, timeout_s: float = 0.0) -> int | None:
        if self._status is None and self._has_ended(timeout_s):
            self._status = self._nursery.ask({"do": "status", "pid": self.pid})["status"]
        return self._status

    def _has_ended(self, timeout_s: float) -> bool:
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def kill(self) -> None:
        if self._gone:
            return
        self._gone = True
        with contextlib.suppress(Died, TimedOut):  # then it died with the nursery
            self._status = self._nursery.ask({"do": "end", "pid": self.pid})["status"]
        os.close(self._pidfd)
