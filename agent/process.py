"""Processes of pytest: one for a single question, or one that stays and is asked many."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from .errors import JudgeFailed
from .lifeline import PARENT

LIFELINE = ("-p", f"{__package__}.lifeline")
# -P: a folder of the user's repository must not stand in for an installed package.
PYTEST = (sys.executable, "-P", "-m", "pytest", *LIFELINE)
STANDING = ("-p", "pytest_autokernel.standing", "--autokernel-standing")
GRACE_S = 5.0
MOST_SESSIONS = 200  # of one process, which keeps a little of each


class Processes:
    """Those of one worker, with variables of its own. Closed, from whatever thread, they are ended
    and no more of them are started."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._env = env or {}
        self._live: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._lock = threading.Lock()

    def start(
        self, command: Sequence[str], cwd: Path, output: Path, fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """A command in a session of its own, whose output begins anew. Raises JudgeFailed."""
        output.write_bytes(b"")
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        with self._lock, output.open("ab") as words:  # what somebody empties meanwhile begins anew
            if self._closed:
                raise JudgeFailed("the worker was closed")
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**env, **self._env, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=fds,
            )
            self._live.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End one, and all that it has started."""
        _end(process)
        with self._lock:
            self._live.remove(process)

    def close(self) -> None:
        with self._lock:
            self._closed, live = True, [*self._live]
        with ThreadPoolExecutor() as pool:  # each may take its GRACE_S
            list(pool.map(_end, live))


def run(
    command: Sequence[str],
    cwd: Path,
    output: Path,
    limit_s: float,
    processes: Processes | None = None,
) -> int:
    """The exit code of a command, run in a session of its own. However this call ends, by
    the limit or by Ctrl-C too, nothing of that session's process group is left."""
    processes = processes or Processes()
    process = processes.start(command, cwd, output)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise _hangs(limit_s) from None
    finally:
        processes.end(process)


class Standing:
    """A pytest that stays (pytest_autokernel/standing.py). It is started when it is first asked,
    and afresh once it is gone: it ends with the thread that started it. `output` is its last
    session's."""

    def __init__(
        self,
        cwd: Path,
        output: Path,
        command: Sequence[str] = PYTEST,
        processes: Processes | None = None,
    ) -> None:
        self._cwd, self.output, self._command = cwd, output, command
        self._processes = processes or Processes()
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions = 0

    def ask(self, words: Sequence[str], limit_s: float) -> int:
        """The exit code of a session with these words for a command line. Raises JudgeFailed."""
        gone = self._process is None or self._process.poll() is not None
        if gone or self._sessions == MOST_SESSIONS:
            self._start()
        else:
            self.output.write_bytes(b"")
        try:
            self._sessions += 1
            self._socket.settimeout(limit_s)
            self._socket.sendall(json.dumps({"args": [*LIFELINE, *words]}).encode() + b"\n")
            return int(json.loads(self._lines.readline())["code"])
        except TimeoutError:
            self.close()
            raise _hangs(limit_s) from None
        except (OSError, ValueError) as error:  # it is gone
            self.close()
            raise JudgeFailed(f"pytest ended before it had answered: {error}") from error
        except BaseException:  # interrupted: its answer would be taken for the next one's
            self.close()
            raise

    def _start(self) -> None:
        self.close()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        with theirs:
            fd = theirs.fileno()
            # A path, or pytest looks for the user's testpaths, and warns where there are none.
            words = (str(self._cwd), f"--rootdir={self._cwd}", "-o", "addopts=")
            command = [*self._command, *words, *STANDING, str(fd)]
            self._process = self._processes.start(command, self._cwd, self.output, (fd,))

    def close(self) -> None:
        """End it, and all that it has started."""
        process, self._process, self._sessions = self._process, None, 0
        if process is not None:
            self._processes.end(process)  # first: another thread may be waiting for its answer
            self._lines.close()
            self._socket.close()


def _hangs(limit_s: float) -> JudgeFailed:
    return JudgeFailed(f"the judge did not end within {limit_s:g} s and was killed")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask first, so that pytest ends its workers, which live in sessions of their own."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(GRACE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
