"""What a ledger says, arranged for its readers: a story for each kernel, and what measured it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..display import word
from ..errors import Refused
from ..ledger import Ledger
from ..records import Closing, Experiment, Judged, Proposal, reproduce
from ..report import Decision, Prospect, Report, Speedup, Timing
from ..tables import proposals_line
from ..usage import Usage

MEANING = {
    "starter": "what all began with",
    "KEEP": "right, and confirmed to be faster",
    "REVERT": "not faster by enough, or not worth a whole judgement",
    "UNDECIDED": "too noisy to tell, or not measured yet",
    "FAIL": "wrong",
    "CRASH": "crashed",
    "TIMEOUT": "did not end in time",
}


@dataclass(frozen=True)
class Point:
    """Where one kernel stands under the roof with one timed case: FLOP per byte and TFLOP/s.
    `roof` has the device's `gb_s` and `tflops`, where the judge reports them."""

    name: str
    intensity: float
    tflops: float
    roof: Mapping[str, float] | None


@dataclass(frozen=True)
class Case:
    """One timed case, the kernel before and after sampled in turn; times are medians in us.
    `ratios` are what is decided by, of each block the median of its pairs' ratios."""

    name: str
    before_us: float
    after_us: float
    speedup: Speedup
    decision: Decision | Prospect
    confirmed: bool
    ratios: tuple[float, ...]
    samples: int
    others: Mapping[str, Speedup]
    pct_roof: float | None
    point: Point | None
    conditions: str


@dataclass(frozen=True)
class Step:
    """An experiment. `over_starter` multiplies its speedup with those kept before it; it is None
    for what is wrong or was not timed."""

    experiment: Experiment
    outcome: str
    over_starter: Speedup | None
    cases: tuple[Case, ...]
    points: tuple[Point, ...]
    checks: tuple[str, ...]
    diff: str
    usage: Usage | None
    replay: tuple[str, ...]

    @property
    def speedup(self) -> Speedup | None:
        return self.experiment.speedup if self.experiment.verdict == "PASS" else None

    @property
    def wrong(self) -> bool:
        return self.experiment.verdict != "PASS"


@dataclass(frozen=True)
class Total:
    """The kernel as it is now against its starter, measured afresh."""

    closing: Closing
    cases: tuple[Case, ...]
    checks: tuple[str, ...]
    replay: tuple[str, ...]

    @property
    def speedup(self) -> Speedup | None:
        return self.closing.speedup if self.closing.verdict == "PASS" else None


@dataclass(frozen=True)
class KernelStory:
    """All that was tried on one kernel. `total` is None where the run ended before that. Only
    proposers that take tokens or money leave `proposals`."""

    kernel: str
    op: str
    steps: tuple[Step, ...]
    total: Total | None
    proposals: tuple[Proposal, ...]

    @property
    def took(self) -> str | None:
        """What its proposals took, where a proposer said so."""
        return proposals_line(self.proposals) if self.proposals else None

    @property
    def tried(self) -> tuple[Step, ...]:
        return self.steps[1:]

    @property
    def kept(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.experiment.kept)

    @property
    def counts(self) -> dict[str, int]:
        """How many experiments came to which outcome, in the order of MEANING."""
        found = Counter(step.outcome for step in self.tried)
        return {outcome: found[outcome] for outcome in MEANING if found[outcome]}

    @property
    def tally(self) -> str:
        return f"kept {len(self.kept)} of {len(self.tried)} experiments"

    @property
    def claim(self) -> str:
        """The whole gain in one sentence, or why there is none."""
        if not self.kept:
            return "nothing was kept: the kernel is its starter"
        if self.total is None:
            return "the whole gain was not measured: the run ended before that"
        closing, speedup = self.total.closing, self.total.speedup
        if speedup is None:
            return f"the whole gain was not measured: {closing.verdict}: {closing.reason}"
        return f"{speedup} over its starter, measured afresh, confidence {speedup.confidence:g}"


@dataclass(frozen=True)
class Setup:
    """The machine and the versions that some of the records were measured with."""

    whose: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Story:
    tag: str
    began: str
    seconds: float
    kernels: tuple[KernelStory, ...]
    setups: tuple[Setup, ...]


def of(ledger: Ledger) -> Story:
    """The story of a ledger. Raises Refused for one without an experiment."""
    if not ledger.experiments:
        raise Refused(
            f"tag {ledger.tag!r} has no experiments to report: no experiment has ended yet"
        )
    names = [*dict.fromkeys(experiment.kernel for experiment in ledger.experiments)]
    closings = [closing for name in names if (closing := ledger.closing(name))]
    records: list[Judged] = [*ledger.experiments, *closings]
    return Story(
        tag=ledger.tag,
        began=ledger.experiments[0].started,
        seconds=sum(record.seconds for record in records),
        kernels=tuple(_kernel(ledger, name) for name in names),
        setups=tuple(_setups(records)),
    )


def _kernel(ledger: Ledger, name: str) -> KernelStory:
    experiments = ledger.of(name)
    kept = [experiment for experiment in experiments if experiment.kept]
    closing = ledger.closing(name)
    current = closing and kept and closing.commit == kept[-1].commit
    return KernelStory(
        kernel=name,
        op=experiments[0].kernel_type,
        steps=tuple(_steps(ledger, experiments)),
        total=_total(closing) if closing and current else None,
        proposals=tuple(p for p in ledger.proposals if p.kernel == name),
    )


def _steps(ledger: Ledger, experiments: Sequence[Experiment]) -> Iterator[Step]:
    best = 1.0
    for e in experiments:
        right = e.speedup if e.verdict == "PASS" else None
        yield Step(
            experiment=e,
            outcome=word(e),
            over_starter=right and _times(right, best),
            cases=tuple(_cases(e.timed)),
            points=tuple(_points(e.timed)),
            checks=tuple(map(_checks, e.reports)),
            diff=ledger.repository.diff(e.commit, e.kernel) if e.kept else "",
            usage=ledger.usage(e),
            replay=_replay(e.commit, e.kernel, e.parent, e.seed),
        )
        if e.kept and e.speedup:
            best *= e.speedup.ratio


def _total(closing: Closing) -> Total:
    return Total(
        closing=closing,
        cases=tuple(_cases(closing.reports[0])),
        checks=tuple(map(_checks, closing.reports)),
        replay=_replay(closing.commit, closing.kernel, closing.starter, closing.seed),
    )


def _times(speedup: Speedup, factor: float) -> Speedup:
    s = speedup
    return Speedup(s.ratio * factor, s.low * factor, s.high * factor, s.confidence)


def _replay(commit: str, kernel: str, baseline: str, seed: int) -> tuple[str, ...]:
    switch = f"git switch --detach {commit[:12]}"
    return (switch, *reproduce(kernel, baseline[:12], seed))


def _cases(raw: Mapping[str, Any]) -> Iterator[Case]:
    """The timed cases that were compared with the kernel before."""
    facts = raw["kernels"][0]["timings"]
    for timing, fact in zip(Report.parse(raw).timings, facts, strict=True):
        compared = timing.comparisons.get("baseline")
        if compared is None or not compared.blocks:
            continue
        before = [us for theirs, _ in compared.blocks for us in theirs]
        after = [us for _, ours in compared.blocks for us in ours]
        yield Case(
            name=timing.case,
            before_us=statistics.median(before),
            after_us=statistics.median(after),
            speedup=compared.speedup,
            decision=compared.decision,
            confirmed=compared.confirmed,
            ratios=compared.ratios,
            samples=len(after),
            others={n: c.speedup for n, c in timing.comparisons.items() if n != "baseline"},
            pct_roof=timing.pct_roof,
            point=_point(timing, fact),
            conditions=", ".join(_conditions(fact)),
        )


def _points(raw: Mapping[str, Any]) -> Iterator[Point]:
    for timing, fact in zip(Report.parse(raw).timings, raw["kernels"][0]["timings"], strict=True):
        if point := _point(timing, fact):
            yield point


def _point(timing: Timing, fact: Mapping[str, Any]) -> Point | None:
    if not timing.tflops or not timing.gb_s:
        return None
    intensity = timing.tflops * 1e3 / timing.gb_s
    return Point(timing.case, intensity, timing.tflops, fact.get("roof"))


def _conditions(fact: Mapping[str, Any]) -> Iterator[str]:
    """What the samples of a case were taken under, as far as the judge says it."""
    yield f"{fact['l2']} L2"
    if mhz := fact.get("sm_mhz"):
        yield f"SM clock {mhz:.0f} MHz"
    if (throttled := fact.get("throttled")) is not None:
        yield f"{throttled or 'no'} samples dropped for throttling"


def _checks(raw: Mapping[str, Any]) -> str:
    """`effort normal: 117 of 119 checks passed, 2 skipped`"""
    found = Counter(item["verdict"] for item in raw["kernels"][0]["items"])
    skipped = f", {found['SKIP']} skipped" if found["SKIP"] else ""
    return f"effort {raw['effort']}: {found['PASS']} of {found.total()} checks passed{skipped}"


def _setups(records: Sequence[Judged]) -> Iterator[Setup]:
    """One for each machine and set of versions, with the experiments that it measured."""
    whose: dict[tuple[tuple[str, str], ...], list[Judged]] = {}
    for record in records:
        whose.setdefault(tuple(_facts(record.reports[0]).items()), []).append(record)
    for facts, its in whose.items():
        yield Setup("all experiments" if len(whose) == 1 else _names(its), dict(facts))


def _facts(raw: Mapping[str, Any]) -> dict[str, str]:
    environment = raw["environment"]
    found = {
        "device": environment["device"],
        "driver": environment.get("driver"),
        "highest SM clock": (mhz := environment.get("max_sm_mhz")) and f"{mhz:.0f} MHz",
        "CPUs used": environment.get("cpus"),
        "torch": environment["torch"],
        "triton": environment["triton"],
        "Python": environment["python"],
        "judge": f"pytest-autokernel {raw['version']}",
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _names(records: Sequence[Judged]) -> str:
    numbers = [str(r.experiment) for r in records if isinstance(r, Experiment)]
    first = [f"experiments {numbers[0]} to {numbers[-1]} ({len(numbers)})"] if numbers else []
    return " and ".join(
        [*first, *(["the last measurement"] if len(numbers) < len(records) else [])]
    )
