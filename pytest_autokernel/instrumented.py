"""A kernel under one of compute-sanitizer's tools: its process, and what is made of the tool's
words and of its results.

The tool works inside the kernel's own process, where a kernel that sets out to blind it can; it
finds mistakes. What such a kernel can reach is what any other can: launcher.py confines it. Not
confined but for the network is the tool, which reads what its part in that process sends.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pytest_autokernel import process, sanitizer
from pytest_autokernel.candidate import KernelFile
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case, Op
from pytest_autokernel.plan import Tool
from pytest_autokernel.process import Cell, Process
from pytest_autokernel.subjects import (
    START_S,
    Place,
    WorkerSubject,
    nursery_environment,
)
from pytest_autokernel.verdict import CandidateError, Outcome, Verdict

# Times as long as without a tool a call may take. The starters' smallest cases (H200, 2025.3) take
# 5 to 10 s in all, most of it the start of CUDA, which is some 2 s without; a fault takes 5 s more.
SLOWER = 10
END_S = 60.0  # for the tool's last words, once the kernel's process was told to end


class NoFindings(Exception):
    """The tool said nothing about the kernel: its message says why."""


class InstrumentedSubject(WorkerSubject):
    """A kernel file in a worker inside the tool's process. It is started once; `log` is what the
    tool has written when it has ended."""

    exact = True

    def __init__(
        self, judge: Judge, kernel: KernelFile, device: Place, program: Path, tool: Tool
    ) -> None:
        super().__init__(judge, kernel, device)
        self._program, self._tool = program, tool
        self._file: Path | None = None
        self.log = ""

    @property
    def timeout_s(self) -> float:
        return SLOWER * self.judge.settings.timeout_s

    def _begun(self, env: dict[str, str], folder: Path, cell: Cell | None) -> Process:
        if self._file is not None:  # a second process would have a log of its own
            raise CandidateError(Verdict.CRASH, "the kernel's process ended between two calls")
        # Where the kernel's process can neither read nor write.
        self._file = Path(tempfile.mkdtemp(prefix="sanitizer-", dir=self.judge.folder)) / "log"
        return process.launch(
            sanitizer.command(self._program, self._tool, self._file),
            # torch's own allocator would put tensors side by side into one allocation.
            nursery_environment(interpreted=False)
            | {**env, **sanitizer.ENVIRONMENT, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            folder,
            cell.system if cell else None,
        )

    def start(self) -> None:
        super().start()
        if self._cell is not None:
            self._ask(self._cell.message(), (), self.timeout_s + START_S)
        self._ask({"do": "serve"}, (), self.timeout_s + START_S)

    def close(self) -> None:
        """Have the process end by itself, so that the tool says its last words, and read them."""
        if self._process is not None and self._process.alive:
            self._process.finish(END_S)
        super().close()
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError), self._file.open("rb") as file:
                self.log = file.read(sanitizer.MOST_LOG).decode(errors="replace")


def judged(
    judge: Judge, kernel: KernelFile, device: Place, op: Op, cases: Sequence[Case], tool: Tool
) -> Outcome:
    """Judge some cases in one process under the tool. A pass is the tool's word and the
    comparison's: nothing found, and each call completed and right. Raises NoFindings."""
    program = sanitizer.find()
    if program is None:
        raise NoFindings(
            "compute-sanitizer is neither on PATH nor in $CUDA_HOME/bin or /usr/local/cuda/bin"
        )
    if judge.confinement is not None and not judge.confinement.namespaces:
        raise NoFindings(
            "no user namespace: the sockets that compute-sanitizer needs would be open to a kernel"
        )
    with contextlib.closing(
        InstrumentedSubject(judge, kernel, device, program, tool)
    ) as instrumented:
        outcome = _checked(instrumented, op, cases)
    found = sanitizer.read(instrumented.log)
    if found.faulty:
        where = "" if outcome.reason else f" (in one of {len(cases)} cases)"
        return replace(outcome, verdict=Verdict.FAIL, reason=f"{tool}: {found.words}{where}")
    if not found.clean:
        also = f"; {outcome.reason}" if outcome.reason else ""
        raise NoFindings(f"{tool} came to no end: {found.words}{also}")
    return outcome


def _checked(subject: InstrumentedSubject, op: Op, cases: Sequence[Case]) -> Outcome:
    """All of the cases; or the first that did not pass."""
    completed, worst = 0, 0.0
    for case in cases:
        outcome = subject.judge.check(subject, op, case)
        completed, worst = completed + outcome.completed, max(worst, outcome.worst)
        if outcome.verdict is not Verdict.PASS:
            break
    return replace(outcome, completed=completed, worst=worst)
