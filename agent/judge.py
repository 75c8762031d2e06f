"""The oracle: pytest, asked about one kernel file at a time.

An experiment is a cascade that ends at the first no. What does the same as an earlier candidate,
where it is timed, is not judged again (ahead.py). The screen is a pytest that stays: the smoke
stage, then a first look at the speed beside the incumbent's. What it lets through a fresh pytest
judges wholly, from all stages to the confirmed decision, by which alone something is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from .errors import JudgeFailed
from .process import PYTEST, Processes, Standing, run
from .report import Judgement, Report, judge_candidate, promising

Effort = Literal["quick", "normal"]

# The judge limits each of its items by itself: a whole call that takes longer hangs.
LIMIT_S: Mapping[Effort, float] = {"quick": 900, "normal": 3600}


class Judge(Protocol):
    """Judges texts of one kernel file. Raises JudgeFailed when it breaks down itself."""

    def binary(self, text: str) -> Report:
        """What a kernel does where it is timed, by compiling it alone. May be asked from another
        thread, beside all other questions."""

    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        """The least that tells what is not worth a judgement. It keeps nothing."""

    def judge(self, text: str, incumbent: str, seed: int) -> Report:
        """Every case of every stage, and whether it is to replace the incumbent."""

    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        """A few cases, and its speed, against `baseline` where there is one."""


def experiment(
    judge: Judge, text: str, incumbent: str, seed: int
) -> tuple[Judgement, list[Report]]:
    """What becomes of a candidate, and the judge's reports, the screen's first."""
    screen = judge.screen(text, incumbent, seed)
    full = judge.judge(text, incumbent, seed) if promising(screen) else None
    return judge_candidate(screen, full), [screen, full] if full else [screen]


class PytestJudge:
    """Writes the kernel into `worktree` and runs pytest there on that one file.

    `scratch` is a folder for the baseline, the report and pytest's output; `standing` the pytest
    that stays, `command` starts one that does not, among `processes`, and `compiling` is another
    that stays, for what needs no GPU.
    """

    def __init__(
        self,
        worktree: Path,
        kernel: str,
        scratch: Path,
        standing: Standing,
        compiling: Standing,
        command: Sequence[str] = PYTEST,
        limit_s: Mapping[Effort, float] = LIMIT_S,
        processes: Processes | None = None,
    ) -> None:
        self._worktree = worktree
        self._kernel = kernel
        self._scratch = scratch
        self._standing, self._compiling = standing, compiling
        self._command = command
        self._limit_s = limit_s
        self._processes = processes or Processes()

    def binary(self, text: str) -> Report:
        file, report = (self._scratch / "compiling" / name for name in ("kernel.py", "report.json"))
        file.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        file.write_bytes(text.encode())
        words = [*self._words(str(file), report, "quick"), "--autokernel-ask", "binary"]
        return _checked(self._compiling.ask(words, self._limit_s["quick"]), report)

    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        options = [*self._beside(incumbent), "--autokernel-ask", "screen"]
        return self._judge(text, "quick", seed, options, stays=True)

    def judge(self, text: str, incumbent: str, seed: int) -> Report:
        options = [*self._beside(incumbent), "--autokernel-ask", "keep"]
        return self._judge(text, "normal", seed, options)

    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        if baseline is None:
            return self._judge(text, "quick", seed, [], stays=True)
        return self._judge(text, "quick", seed, self._beside(baseline))

    def _beside(self, baseline: str) -> list[str]:
        file = self._scratch / "baseline" / Path(self._kernel).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(baseline.encode())
        return ["--autokernel-baseline", str(file)]

    def _judge(
        self, text: str, effort: Effort, seed: int, options: Sequence[str], stays: bool = False
    ) -> Report:
        """One breakdown of the judge is forgiven, a second one ends the run."""
        (self._worktree / self._kernel).write_bytes(text.encode())
        try:
            return self._run(effort, seed, options, stays)
        except JudgeFailed:
            self._standing.close()
            return self._run(effort, seed, options, stays)

    def _run(self, effort: Effort, seed: int, options: Sequence[str], stays: bool) -> Report:
        self._scratch.mkdir(parents=True, exist_ok=True)
        report, output = self._scratch / "report.json", self._scratch / "output.txt"
        report.unlink(missing_ok=True)
        words = [*self._words(self._kernel, report, effort), "--autokernel-seed", str(seed)]
        words += options
        limit_s = self._limit_s[effort]
        try:
            if stays:
                output = self._standing.output
                code = self._standing.ask(words, limit_s)
            else:
                command = [*self._command, *words]
                code = run(command, self._worktree, output, limit_s, self._processes)
            return _checked(code, report)
        except JudgeFailed as failure:
            last = "\n".join(output.read_text(errors="replace").splitlines()[-15:])
            raise JudgeFailed(f"{failure}; its last words:\n{last}") from failure

    def _words(self, kernel: str, report: Path, effort: Effort) -> list[str]:
        return [
            *("--autokernel", kernel, f"--rootdir={self._worktree}", "-o", "addopts="),
            *("--autokernel-json", str(report), "--autokernel-effort", effort),
            *("-p", "no:cacheprovider", "-q"),
            *("-x", "-p", "no:randomly"),  # end at the first no; speed comes last
        ]


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
