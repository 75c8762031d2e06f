"""A child process that answers messages: started, asked with a time limit, killed with all
that it started. The judge's two helpers, worker and comparison, are such processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_autokernel.channel import Channel, ChannelError

OUTPUT_KEPT = 4096  # bytes of a child's last words, for the report


class Died(Exception):
    """The process ended in the middle of a request."""


class TimedOut(Exception):
    """The process gave no answer in time and was killed."""


class Process:
    """`python -I -m MODULE FD`, in a session of its own, with a message channel.

    A `trusted` one writes bytecode, which the others only read: without it torch takes twice
    as long to import, in every process.

    Its standard output and error are read and dropped but for the last words, so that a
    flood fills neither a pipe nor a disk.
    """

    def __init__(
        self, module: str, env: Mapping[str, str], cwd: Path, trusted: bool = False
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-I" if trusted else "-IB", "-m", module, str(theirs.fileno())],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._channel = Channel(ours)
        self._ended: str | None = None
        self._words: deque[bytes] = deque(maxlen=2)
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

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
            self._ended = f"gave no answer within {timeout_s:g} s and was killed"
            self.close()
            raise TimedOut(self._ended) from None
        except ChannelError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=5)
            self._ended = self._cause()
            self.close()
            raise Died(self._ended) from None

    def close(self) -> None:
        """Kill the process and its group, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._reader.join(timeout=1)
        self._channel.close()
        if self._popen.stdout:
            self._popen.stdout.close()

    def _cause(self) -> str:
        code = self._popen.poll()
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
        assert self._popen.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            while chunk := os.read(self._popen.stdout.fileno(), OUTPUT_KEPT):
                self._words.append(chunk)
