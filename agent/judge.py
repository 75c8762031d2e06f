"""The oracle: pytest in a process of its own, asked about one kernel file at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from .errors import JudgeFailed
from .lifeline import PARENT
from .report import Report

Effort = Literal["quick", "normal"]

# -P: a folder of the user's repository must not stand in for an installed package.
PYTEST = (sys.executable, "-P", "-m", "pytest", "-p", f"{__package__}.lifeline")

# The judge limits each of its items by itself: a whole call that takes longer hangs.
LIMIT_S: Mapping[Effort, float] = {"quick": 900, "normal": 3600}
GRACE_S = 5.0


class Judge(Protocol):
    """Judges texts of one kernel file. Raises JudgeFailed when it breaks down itself."""

    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        """A few cases, and its speed, against `baseline` where there is one."""

    def verify(self, text: str, seed: int) -> Report:
        """Every case of every stage; no timing."""


class PytestJudge:
    """Writes the kernel into `worktree` and runs pytest there on that one file.

    `scratch` is a folder for the baseline, the report and pytest's output.
    """

    def __init__(
        self,
        worktree: Path,
        kernel: str,
        scratch: Path,
        command: Sequence[str] = PYTEST,
        limit_s: Mapping[Effort, float] = LIMIT_S,
    ) -> None:
        self._worktree = worktree
        self._kernel = kernel
        self._scratch = scratch
        self._command = command
        self._limit_s = limit_s

    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        options: list[str] = []
        if baseline is not None:
            file = self._scratch / "baseline" / Path(self._kernel).name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(baseline.encode())
            options = ["--autokernel-baseline", str(file)]
        return self._judge(text, "quick", seed, options)

    def verify(self, text: str, seed: int) -> Report:
        return self._judge(text, "normal", seed, ["-k", "not roofline"])

    def _judge(self, text: str, effort: Effort, seed: int, options: Sequence[str]) -> Report:
        """One breakdown of the judge is forgiven, a second one ends the run."""
        (self._worktree / self._kernel).write_bytes(text.encode())
        try:
            return self._run(effort, seed, options)
        except JudgeFailed:
            return self._run(effort, seed, options)

    def _run(self, effort: Effort, seed: int, options: Sequence[str]) -> Report:
        self._scratch.mkdir(parents=True, exist_ok=True)
        report, output = self._scratch / "report.json", self._scratch / "output.txt"
        report.unlink(missing_ok=True)
        command = [
            *self._command,
            *("--autokernel", self._kernel, f"--rootdir={self._worktree}", "-o", "addopts="),
            *("--autokernel-json", str(report), "--autokernel-effort", effort),
            *("--autokernel-seed", str(seed), "-p", "no:cacheprovider", "-q"),
            *("-x", "-p", "no:randomly"),  # end at the first no; speed comes last
            *options,
        ]
        code = run(command, self._worktree, output, self._limit_s[effort])
        try:
            return _checked(code, report)
        except JudgeFailed as failure:
            last = "\n".join(output.read_text(errors="replace").splitlines()[-15:])
            raise JudgeFailed(f"{failure}; its last words:\n{last}") from failure


def _checked(code: int, file: Path) -> Report:
    if code not in (0, 1):
        raise JudgeFailed(f"expected pytest to exit with 0 or 1, got {code}")
    try:
        raw = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise JudgeFailed(
            f"expected a report, pytest exited with {code} and wrote none: {error}"
        ) from error
    report = Report.parse(raw)
    if (report.verdict in ("PASS", "SKIP")) != (code == 0):
        raise JudgeFailed(
            f"the judge contradicts itself: verdict {report.verdict}, exit code {code}"
        )
    return report


def run(command: Sequence[str], cwd: Path, output: Path, limit_s: float) -> int:
    """The exit code of a command, run in a session of its own. However this call ends, by
    the limit or by Ctrl-C too, nothing of that session's process group is left."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    with output.open("wb") as words:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**env, PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise JudgeFailed(
                f"the judge did not end within {limit_s:g} s and was killed"
            ) from None
        finally:
            _end(process)


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
