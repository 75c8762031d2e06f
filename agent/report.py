"""The judge's JSON report as values, and what the agent decides from it. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .errors import JudgeFailed

SCHEMA = 1

Verdict = Literal["PASS", "FAIL", "TIMEOUT", "CRASH", "SKIP"]
Decision = Literal["KEEP", "REVERT", "UNDECIDED"]
Prospect = Literal["PROMISING", "REVERT", "UNDECIDED"]  # a screen's, which keeps nothing


@dataclass(frozen=True)
class Speedup:
    """The other kernel's time over this one's, with its confidence interval: > 1 is faster."""

    ratio: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{ratio(self.ratio)}x [{ratio(self.low)}, {ratio(self.high)}]"


def ratio(value: float) -> str:
    """A tenth of a percent is worth telling near 1, and is noise far from it."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _log_ratio(theirs_us: float, ours_us: float) -> float:
    return math.log(theirs_us / ours_us)


@dataclass(frozen=True)
class Comparison:
    speedup: Speedup
    decision: Decision | Prospect
    confirmed: bool
    blocks: Sequence[Sequence[Sequence[float]]]  # [[other us...], [this us...]] of each block

    @property
    def ratios(self) -> tuple[float, ...]:
        """Of each block what the judge decides by (pytest_autokernel/decide.py): the median of its
        pairs' ratios. That of two medians may be far from it where the clock moves."""
        return tuple(
            math.exp(statistics.median(map(_log_ratio, theirs, ours)))
            for theirs, ours in self.blocks
        )


@dataclass(frozen=True)
class Whole:
    """What all timed cases come to, against the baseline."""

    speedup: Speedup
    decision: Decision | Prospect


@dataclass(frozen=True)
class Timing:
    """One timed case: microseconds, TFLOP/s, GB/s, percent of the roof, MB."""

    case: str
    time_us: float
    tflops: float | None
    gb_s: float | None
    pct_roof: float | None
    peak_mb: float | None
    comparisons: Mapping[str, Comparison]


@dataclass(frozen=True)
class Report:
    """What one call of the judge says of one kernel. `raw` is the whole JSON. `binary` is a digest
    of what it does where it is timed, if that was asked and can be known without running it."""

    op: str | None
    verdict: Verdict
    reason: str | None
    timings: tuple[Timing, ...]
    whole: Whole | None
    binary: str | None
    raw: Mapping[str, Any]

    @staticmethod
    def parse(raw: Mapping[str, Any]) -> Report:
        """Raises JudgeFailed for anything but a report of our schema on exactly one kernel."""
        try:
            if raw["schema"] != SCHEMA:
                raise JudgeFailed(f"expected a report of schema {SCHEMA}, got {raw['schema']!r}")
            (kernel,) = raw["kernels"]
            return Report(
                op=kernel.get("op"),
                verdict=kernel["verdict"],
                reason=kernel["reason"],
                timings=tuple(_timing(timing) for timing in kernel["timings"]),
                whole=_whole(kernel.get("overall")),
                binary=kernel.get("binary"),
                raw=raw,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise JudgeFailed(f"the judge's report is not as agreed: {error!r}") from error

    @property
    def device(self) -> str:
        """Where it was judged: `cuda` or `cpu`."""
        (kernel,) = self.raw["kernels"]
        return str(kernel.get("device"))

    @property
    def on_gpu(self) -> bool:
        """Whether compiling is in nobody's way: what is timed runs elsewhere."""
        return bool(self.raw["kernels"][0].get("device") == "cuda")

    @property
    def compiles(self) -> bool:
        """Whether compiling it alone tells what it does where it is timed."""
        backend = self.raw["kernels"][0].get("backend")
        return backend == "cpp" or (self.on_gpu and backend in ("triton", "cuda"))

    @property
    def unfit(self) -> bool:
        """Whether compiling it alone has shown that the GPU would refuse it."""
        items = self.raw["kernels"][0]["items"]
        return any(i["stage"] == "binary" and i["verdict"] == "FAIL" for i in items)

    @property
    def local_bytes(self) -> int | None:
        """The most that a thread of its GPU kernels keeps outside of registers; None where that is
        not known."""
        kernels = self.raw["kernels"][0].get("resources") or ()
        return max((kernel["local_bytes"] for kernel in kernels), default=None)

    @property
    def not_passed(self) -> list[str]:
        """A line for each item that failed or was skipped."""
        items = self.raw["kernels"][0]["items"]
        return [
            f"{i['id']}: {i['verdict']}: {i['reason']}" for i in items if i["verdict"] != "PASS"
        ]


def _whole(raw: Mapping[str, Any] | None) -> Whole | None:
    return Whole(_speedup(raw), raw["decision"]) if raw else None


def _speedup(raw: Mapping[str, Any]) -> Speedup:
    return Speedup(raw["ratio"], raw["low"], raw["high"], raw["confidence"])


def _timing(raw: Mapping[str, Any]) -> Timing:
    figures = {
        name: raw[name] for name in ("case", "time_us", "tflops", "gb_s", "pct_roof", "peak_mb")
    }
    return Timing(
        **figures,
        comparisons={
            name: Comparison(_speedup(c), c["decision"], c["confirmed"], c["blocks"])
            for name, c in raw["comparisons"].items()
        },
    )


@dataclass(frozen=True)
class Judgement:
    """What the agent makes of the reports on one candidate. `speedup` is over the incumbent,
    None where nothing was timed; `decision` is None for a starter, which competes with none.
    `put_off` says that it was not judged yet."""

    verdict: Verdict
    decision: Decision | None
    reason: str | None
    speedup: Speedup | None
    put_off: bool = False


def judge_starter(report: Report) -> Judgement:
    return Judgement(report.verdict, None, report.reason, None)


def promising(screen: Report) -> bool:
    """Whether a candidate is worth the whole judgement, without which nothing is kept."""
    return screen.verdict == "PASS" and _answer(screen) == "PROMISING"


def judge_candidate(screen: Report, full: Report | None) -> Judgement:
    """What the first no of the cascade says, or the whole judgement. `speedup` is of the last
    report that has one."""
    if promising(screen) != (full is not None):
        raise ValueError("the promising candidates, and they alone, need the whole judgement")
    last = full or screen
    whole = last.whole or screen.whole
    decision = decide(last) if full else _ended(screen)
    return Judgement(
        verdict=last.verdict,
        decision=decision if last.verdict == "PASS" else "REVERT",
        reason=last.reason,
        speedup=whole.speedup if whole else None,
    )


def decide(report: Report) -> Decision:
    """A whole judgement's decision over all timed cases; nothing is kept that was not compared on
    each. Raises JudgeFailed for an answer to another question."""
    answer = _answer(report)
    if answer == "PROMISING":
        raise JudgeFailed("expected a decision, got a screen's answer, by which nothing is kept")
    return answer


def _ended(screen: Report) -> Decision:
    """What it means that a screen ended a candidate."""
    return "UNDECIDED" if _answer(screen) == "UNDECIDED" else "REVERT"


def _answer(report: Report) -> Decision | Prospect:
    return report.whole.decision if report.whole else "REVERT"
