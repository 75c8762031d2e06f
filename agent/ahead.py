"""Kernels' binaries, compiled on the CPU while the GPU measures something else, and what becomes of
a candidate by what its binary says alone.

That is its kernel's own word: by it a candidate is skipped, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from .errors import JudgeFailed
from .records import Experiment
from .report import Decision, Judgement, Report

# Bytes of a thread. Inductor gives up its own kernels beyond 16 registers of 4 bytes, and no user's
# kernels, some of which are the faster for it (torch/_inductor/runtime/triton_heuristics.py).
SPILLED = 64


class Ahead:
    """Asks for the binary of a text, and may be told of one before it is needed."""

    def __init__(self, ask: Callable[[str], Future[Report]]) -> None:
        self._ask = ask
        self._begun: dict[str, Future[Report]] = {}
        self._broken = False

    def begin(self, text: str) -> None:
        """Have it compiled while the caller does something else."""
        if not self._broken and text not in self._begun:
            self._begun[text] = self._ask(text)

    def of(self, text: str) -> Report | None:
        """What there is to know of it. None once that has failed: a run goes on without."""
        self.begin(text)
        try:
            return None if self._broken else self._begun.pop(text).result()
        except JudgeFailed:
            self._broken = True
            return None


def judge_compiled(binary: Report, past: Sequence[Experiment], may_wait: bool) -> Judgement | None:
    """What becomes of a candidate, where compiling it says enough. `past` are the experiments on
    its kernel; `may_wait` says that it will be proposed again when nothing else is left. Pure."""
    if binary.unfit:
        return Judgement(binary.verdict, "REVERT", binary.reason, None)
    if twin := _twin(binary, past):
        return _duplicate(binary, twin)
    *_, incumbent = (e for e in past if e.kept or e.starter)
    if may_wait and incumbent.local_bytes == 0 and (binary.local_bytes or 0) > SPILLED:
        reason = (
            f"not measured yet: a thread spills {binary.local_bytes:,} bytes, the incumbent's "
            "none; it comes last"
        )
        return Judgement(binary.verdict, "UNDECIDED", reason, None, put_off=True)
    return None


def _twin(binary: Report, past: Sequence[Experiment]) -> Experiment | None:
    """The first experiment that was right, as far as it was judged, and did the same where it is
    timed. One that was wrong may have been so elsewhere, or have been ended by chance."""
    if binary.binary is None:
        return None
    right = (e for e in past if e.verdict == "PASS" and not e.put_off)
    return next((e for e in right if e.binary == binary.binary), None)


def _duplicate(binary: Report, twin: Experiment) -> Judgement:
    """It is no faster; where that could not be told of its twin, it cannot of this one."""
    open_still = twin.decision == "UNDECIDED"
    decision: Decision = "UNDECIDED" if open_still else "REVERT"
    of = f"experiment {twin.experiment}" + (", UNDECIDED" if open_still else "")
    reason = f"duplicate of {of}: the same binary in every timed case"
    return Judgement(binary.verdict, decision, reason, None)
