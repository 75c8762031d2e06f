"""A process that confines itself and tries what a test wants it to try."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Self

import pytest

from pytest_autokernel.sandbox import Confinement, probe
from tests.conftest import ROOT

SYSTEM = probe()
# What each part of a sandbox does alone.
NOTHING = Confinement()
FILES = Confinement(landlock=SYSTEM.landlock)
NAMESPACES = Confinement(namespaces=True)
FILTER = Confinement(filter=True)

needs_files = pytest.mark.skipif(SYSTEM.landlock < 3, reason="Landlock guards files from ABI 3 on")
needs_scopes = pytest.mark.skipif(SYSTEM.landlock < 6, reason="Landlock has scopes from ABI 6 on")
needs_namespaces = pytest.mark.skipif(not SYSTEM.namespaces, reason="no user namespaces here")
needs_filter = pytest.mark.skipif(not SYSTEM.filter, reason="no system-call filter here")

CHILD = """
import ctypes, json, os, resource, signal, socket, subprocess, sys, threading, time
from pathlib import Path
from pytest_autokernel import sandbox, strays
from pytest_autokernel.sandbox import Confinement

def refused(action, *arguments):
    # How it was refused, or None.
    try:
        action(*arguments)
    except OSError as error:
        return type(error).__name__

def tell(**words):
    print(json.dumps(words), flush=True)

folder = Path(sys.argv[1])
outside, package = folder.parent, Path(sandbox.__file__).parent
os.chdir(folder)
"""


class Confined:
    """A Python process that confines itself to the folder `inside` of `tmp_path` as `system` and
    `options` say, and then does what `body` says, in words: `refused(f, *args)`, `tell(key=...)`.
    """

    def __init__(
        self,
        tmp_path: Path,
        body: str,
        system: Confinement = SYSTEM,
        fds: tuple[int, ...] = (),
        options: str = "",
    ) -> None:
        folder = tmp_path / "inside"
        folder.mkdir(exist_ok=True)
        confine = (
            f"system = {system}\nsandbox.confine(system, folder, readable=[package], {options})\n"
        )
        self._popen = subprocess.Popen(
            [sys.executable, "-B", "-c", CHILD + confine + textwrap.dedent(body), str(folder)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder), "HOME": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            start_new_session=True,
        )
        self.pid = self._popen.pid

    def __enter__(self) -> Self:
        return self

    def told(self) -> dict[str, Any]:
        """The next words of the process."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, f"the process said nothing and ended with {self._popen.wait()}"
        words: dict[str, Any] = json.loads(line)
        return words

    def say(self, words: object) -> None:
        """A line for its standard input."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(words) + "\n")
        self._popen.stdin.flush()

    def end(self) -> None:
        """Kill its process group and wait for it."""
        if self._popen.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def __exit__(self, *_: object) -> None:
        self.end()
        for stream in (self._popen.stdin, self._popen.stdout):
            assert stream is not None
            stream.close()
