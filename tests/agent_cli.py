"""`autokernel` as a process, in a user's repository and with the scripted judge for pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import agent_fakes
from .agent_repository import BARE


class Cli:
    """Runs the command line in `repo`. `folder` takes what the scripted judge needs."""

    def __init__(self, repo: Path, folder: Path) -> None:
        self.repo = repo
        self.log = folder / "calls.jsonl"
        stand_in = folder / "path"
        stand_in.mkdir()
        (stand_in / "pytest.py").write_text(Path(agent_fakes.__file__).read_text())
        path = os.pathsep.join(filter(None, [str(stand_in), os.environ.get("PYTHONPATH")]))
        ours = {"PYTHONPATH": path, "FAKE_LOG": str(self.log), "COLUMNS": "140"}
        self.env = {**os.environ, **BARE, **ours}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "autokernel_agent", *words]

    def __call__(
        self, *words: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=cwd or self.repo,
            env={**self.env, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )


def gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def soon(true: Callable[[], bool]) -> bool:
    """Whether something becomes true within ten seconds."""
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()
