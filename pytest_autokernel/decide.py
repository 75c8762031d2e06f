"""Samples of two kernels -> a decision about their speed. Pure: values in, values out.

The unit of inference is the block: interleaved samples of both kernels under one fresh layout of
their buffers. Samples within a layout agree far better than layouts do, so a thousand of them are
still one observation of where the buffers happened to lie. The caller spreads the blocks of a
phase over several processes; the interval takes blocks for independent, and
benchmarks/decisions.py says what an offset that is shared by a process does to the error rates.

Not covered: how samples are taken (session.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from statistics import median
from typing import Literal

Block = tuple[Sequence[float], Sequence[float]]
"""(the other kernel's times, the candidate's times) in microseconds: pairs, by their index."""


class Decision(StrEnum):
    """The agent's: is the candidate to replace the incumbent?"""

    KEEP = "KEEP"
    REVERT = "REVERT"
    UNDECIDED = "UNDECIDED"


class Change(StrEnum):
    """A gate's: what did a change do to the speed?"""

    FASTER = "FASTER"
    SAME = "SAME"
    SLOWER = "SLOWER"
    UNDECIDED = "UNDECIDED"


class Prospect(StrEnum):
    """A screen's: is the candidate worth a whole judgement, by which alone it can be kept?"""

    PROMISING = "PROMISING"
    REVERT = "REVERT"
    UNDECIDED = "UNDECIDED"


Question = Literal["screen", "keep", "change"]
Answer = Decision | Change | Prospect

# Said only when a second, fresh set of blocks says it too.
CLAIMS = frozenset({Decision.KEEP, Change.FASTER, Change.SLOWER})


@dataclass(frozen=True)
class Rule:
    """When a comparison may stop, and what it then says.

    Effects are relative times. `threshold`: what a claim must exceed. `margin`: what still counts
    as no change. `looks`: the numbers of blocks at which the first phase may stop; the error of
    1 - `confidence` is split evenly over them (Bonferroni), so looking often costs width and
    never truth. `glance`: the number of blocks (0: none) at which a first phase ends that shows a
    loss beyond the margin; ending there can lose a gain, and never claim one. The default is the
    agent's.
    """

    threshold: float = 0.01
    margin: float = 0.01
    confidence: float = 0.99
    looks: tuple[int, ...] = (12, 24, 48)
    glance: int = 6

    @property
    def look_confidence(self) -> float:
        """The confidence of each look of the first phase."""
        return 1 - (1 - self.confidence) / len(self.looks)

    def over(self, cases: int) -> Rule:
        """This rule for each of `cases` comparisons, the confidence being that of all together."""
        return replace(self, confidence=1 - (1 - self.confidence) / cases)


# A gate is to find a slowdown of 1 %, by an interval that is itself 0.5 % wide on either side.
GATE = Rule(threshold=0.003, looks=(12, 24, 48, 96), glance=0)
# On a CPU one of 10 %: equal kernels differ by 2 % from process to process there.
CPU_GATE = Rule(threshold=0.03, margin=0.03, looks=(24, 48, 96), glance=0)
# A screen keeps nothing, so that its interval may be narrow: it has 95 % at each look.
SCREEN = Rule(confidence=0.9, looks=(12, 24))
GLANCE_CONFIDENCE = 0.95  # six blocks are enough for it


def rule_for(question: Question, on_gpu: bool, cases: int = 1) -> Rule:
    """For each of so many cases: an edit loop asks what is worth a judgement (`screen`) and what
    to `keep`, a gate what a `change` did to the speed."""
    gate = GATE if on_gpu else CPU_GATE
    return {"screen": SCREEN, "keep": Rule(), "change": gate}[question].over(cases)


@dataclass(frozen=True)
class Estimate:
    """The other kernel's time over the candidate's (above 1: the candidate is faster), and the
    interval that holds the true ratio with probability `confidence`: (0, inf) while there are
    too few blocks for it."""

    ratio: float
    low: float
    high: float
    confidence: float
    blocks: int


NOTHING = Estimate(math.nan, 0.0, math.inf, 1.0, 0)  # what no blocks say


def estimate(blocks: Sequence[Block], confidence: float) -> Estimate:
    """The ratio of two kernels' times, by Wilcoxon's signed ranks over the blocks' log ratios.

    The estimate is the median of the means of all pairs of blocks (Hodges and Lehmann 1963); two
    of those means bound the interval, chosen by the exact distribution of the signed-rank
    statistic (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, section 3.3). It
    assumes that a block errs up as easily as down, which holds where two equal kernels are
    exchanged, and no shape of the noise. An interval by order statistics would not even assume
    that, but is a quarter wider, which costs 1.6 times the blocks (normal noise, 24 blocks). No
    sample is dropped. Wild blocks widen the interval on their side from the third in 24 on.
    """
    logs = [_log_ratio(block) for block in blocks]
    if not logs:
        return NOTHING
    means = sorted((a + b) / 2 for i, a in enumerate(logs) for b in logs[i:])
    outside = _outside(len(logs), confidence)
    bounds = (0.0, math.inf)
    if outside is not None:
        bounds = (math.exp(means[outside]), math.exp(means[-1 - outside]))
    return Estimate(math.exp(median(means)), *bounds, confidence, len(logs))


def _log_ratio(block: Block) -> float:
    """The median over pairs of log(other / candidate).

    Of pairs, and not the ratio of two medians: within a run the clock moves by 12 %, the two
    samples of a pair see the same clock, and the two medians may lie far apart in time.
    """
    other, candidate = block
    if len(other) != len(candidate) or not other:
        raise ValueError(
            f"block: expected pairs of samples, found other={len(other)} candidate={len(candidate)}"
        )
    for time_us in (*other, *candidate):
        if not 1e-6 < time_us < 1e12:
            raise ValueError(f"block: expected a time in microseconds, found time_us={time_us}")
    return median(math.log(a / b) for a, b in zip(other, candidate, strict=True))


@lru_cache
def _outside(blocks: int, confidence: float) -> int | None:
    """How many of the sorted means lie below the interval, and as many above: the largest c with
    P(W <= c) <= (1 - confidence) / 2, where W sums those of the ranks 1..blocks whose signs are
    positive. None where even c = 0 is likelier."""
    ways = [1] + [0] * (blocks * (blocks + 1) // 2)
    for rank in range(1, blocks + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    allowed, below = (1 - confidence) / 2 * 2**blocks, 0
    for total, count in enumerate(ways):
        below += count
        if below > allowed:
            return total - 1 if total else None
    raise ValueError(f"confidence: expected 0 < confidence < 1, found confidence={confidence}")


def decide(found: Estimate, rule: Rule) -> Decision:
    """KEEP or REVERT where all of the interval lies on one side of the threshold."""
    if found.low > 1 + rule.threshold:
        return Decision.KEEP
    return Decision.REVERT if found.high < 1 + rule.threshold else Decision.UNDECIDED


def screen(found: Estimate, rule: Rule) -> Prospect:
    """PROMISING or REVERT where all of the interval lies on one side of the threshold."""
    return _prospect(decide(found, rule))


def judge_change(found: Estimate, rule: Rule) -> Change:
    """FASTER or SLOWER where all of the interval lies beyond the threshold, SAME where all of it
    lies within the margin. A slowdown of 1 % is a time of 1.01, so a ratio of 1 / 1.01."""
    if found.low > 1 + rule.threshold:
        return Change.FASTER
    if found.high < 1 / (1 + rule.threshold):
        return Change.SLOWER
    same = 1 / (1 + rule.margin) < found.low and found.high < 1 + rule.margin
    return Change.SAME if same else Change.UNDECIDED


JUDGES: Mapping[Question, Callable[[Estimate, Rule], Answer]] = {
    "screen": screen,
    "keep": decide,
    "change": judge_change,
}


def _prospect(decision: Decision) -> Prospect:
    return Prospect.PROMISING if decision is Decision.KEEP else Prospect(decision.value)


def answer_cases(
    question: Question,
    found: Mapping[str, Estimate],
    rule: Rule,
    weights: Mapping[str, float],
    critical: Collection[str] = (),
) -> Answer:
    """One answer from the estimates of several cases."""
    if question == "change":
        return judge_cases(found, rule)
    decision = decide_cases(found, rule, weights, critical)
    return decision if question == "keep" else _prospect(decision)


def decide_cases(
    found: Mapping[str, Estimate],
    rule: Rule,
    weights: Mapping[str, float],
    critical: Collection[str] = (),
) -> Decision:
    """One decision from the published estimates of several cases, each under `rule.over(n)`.

    The weighted geometric mean of the ratios must exceed the threshold, and no case may pay for
    it: each must be shown to lose no more than the margin, and of a critical one no loss may be
    shown at all.
    """
    lost = any(judge_change(e, rule) is Change.SLOWER for e in found.values())
    if lost or any(found[name].high < 1 for name in critical):
        return Decision.REVERT
    whole = decide(overall(found, weights), rule)
    harmless = all(e.low > 1 / (1 + rule.margin) for e in found.values())
    return whole if harmless or whole is Decision.REVERT else Decision.UNDECIDED


def judge_cases(found: Mapping[str, Estimate], rule: Rule) -> Change:
    """What a change did to several cases: SLOWER where it did so to one, whatever it gained."""
    said = {judge_change(e, rule) for e in found.values()}
    order = (Change.SLOWER, Change.UNDECIDED, Change.FASTER)
    return next((change for change in order if change in said), Change.SAME)


def overall(found: Mapping[str, Estimate], weights: Mapping[str, float]) -> Estimate:
    """The weighted geometric mean of the ratios. Its bounds are those of all cases at once: wider
    than need be, never too narrow."""
    total = sum(weights[name] for name in found)

    def mean(of: Callable[[Estimate], float]) -> float:
        return float(math.prod(of(e) ** (weights[name] / total) for name, e in found.items()))

    return Estimate(
        ratio=mean(lambda e: e.ratio),
        low=mean(lambda e: e.low),
        high=mean(lambda e: e.high),
        confidence=1 - sum(1 - e.confidence for e in found.values()),
        blocks=min(e.blocks for e in found.values()),
    )


@dataclass(frozen=True)
class Need:
    """What a trial asks for: so many more blocks; from processes started for them if `fresh`."""

    blocks: int
    fresh: bool


@dataclass(frozen=True)
class Trial:
    """A comparison in progress; `judge` is one of JUDGES.

        trial = Trial(rule)
        while need := trial.need:
            trial = trial.add(take(need))
        trial.answer, trial.estimate

    The first phase takes blocks until a look is decisive. A claim then needs a confirmation, by
    twice as many fresh blocks (at most the last look): the first phase stopped when luck was with
    it, so that the same number would fail many an honest small win. Its size is fixed before it
    starts, so its estimate owes nothing to that luck, and is the one to publish. Where the rule
    has a glance, the first phase may end there.
    """

    rule: Rule
    judge: Callable[[Estimate, Rule], Answer] = decide
    first: tuple[Block, ...] = ()
    confirmation: tuple[Block, ...] = ()

    @property
    def need(self) -> Need | None:
        """What to sample next; None at the end."""
        if self._hopeless:
            return None
        count, looks = len(self.first), self.rule.looks
        look = next((n for n in (self.rule.glance, *looks) if n > count), None)
        if look and (count not in looks or self._first_answer == "UNDECIDED"):
            return Need(look - count, fresh=count == 0)
        missing = min(2 * count, looks[-1]) - len(self.confirmation)
        if self._first_answer in CLAIMS and missing:
            return Need(missing, fresh=not self.confirmation)
        return None

    def add(self, blocks: Sequence[Block]) -> Trial:
        """The trial with these blocks: as many as it needs, or fewer."""
        most = self.need.blocks if self.need else 0
        if len(blocks) > most:
            raise ValueError(f"blocks: expected at most {most}, found {len(blocks)}")
        if len(self.first) in self.rule.looks and self._first_answer in CLAIMS:
            return replace(self, confirmation=(*self.confirmation, *blocks))
        return replace(self, first=(*self.first, *blocks))

    @property
    def estimate(self) -> Estimate:
        """What to publish: once there is a confirmation, its estimate alone."""
        if self.confirmation:
            return estimate(self.confirmation, self.rule.confidence)
        if self._hopeless:
            return estimate(self.first, GLANCE_CONFIDENCE)
        return estimate(self.first, self.rule.look_confidence)

    @property
    def answer(self) -> Answer:
        """What `judge` says in the end. UNDECIDED before, and where one phase alone makes a
        claim."""
        last = self.judge(NOTHING if self.need else self.estimate, self.rule)
        agreed = last not in CLAIMS or last == self._first_answer
        return last if agreed else self.judge(NOTHING, self.rule)

    @cached_property
    def _hopeless(self) -> bool:
        """Whether the first phase has ended at its glance."""
        glance, lost = self.rule.glance, 1 / (1 + self.rule.margin)
        at_glance = 0 < glance == len(self.first)
        return at_glance and estimate(self.first, GLANCE_CONFIDENCE).high < lost

    @cached_property
    def _first_answer(self) -> Answer:
        return self.judge(estimate(self.first, self.rule.look_confidence), self.rule)
