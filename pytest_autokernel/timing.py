"""Timing a kernel against others: all in turn, in one go, on the same inputs.

Each contender runs in a process of its own; they take turns in short bursts under this
side's command. A block is one fresh layout of buffers in all of them; blocks are spread over
rounds, and each round starts fresh processes on fresh data. decide.py draws the conclusions;
no stored time takes part in one.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_autokernel import baselines, decide, gpu
from pytest_autokernel.baseline_times import BaselineTimes
from pytest_autokernel.channel import close
from pytest_autokernel.figures import Comparison, Timing
from pytest_autokernel.judge import Judge, derived_seed
from pytest_autokernel.op import ITEMSIZE, Case, Op
from pytest_autokernel.subjects import Subject
from pytest_autokernel.verdict import CandidateError, Verdict
from pytest_autokernel.witness import Witness

BLOCKS_PER_ROUND = 6  # twice as many later on: starting processes costs seconds
BURSTS = 4
PRINTED_CONFIDENCE = 0.95  # of comparisons that nothing hangs on; six blocks are enough for it
SAMPLES_PER_BURST = 3
L2 = {"cuda": "cold", "cpu": "warm"}
KERNEL = "kernel"  # the contender under examination; the others are named after what they are
# Above this share of the measured roof work is skipped or the clock is wrong. Not 1: a copy and
# a sum by PyTorch find the roof itself to some 10 % only.
MEASURED_LIMIT = 1.3


@dataclass
class Samples:
    """Samples by contender and block, and what the kernel's benches said of themselves."""

    blocks: list[dict[str, list[float]]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def against(self, other: str) -> list[decide.Block]:
        return [(block[other], block[KERNEL]) for block in self.blocks if other in block]


def measure(judge: Judge, subject: Subject, op: Op, case: Case) -> Timing:
    """Time a case against the user's baseline, which decides how long is measured, and against
    the op's own, which are there to be printed."""
    try:
        session, trial, samples = _measured(judge, subject, op, case)
    except CandidateError as error:
        words = f"{error.verdict}: {error.reason}"
        return Timing(case, [], {}, None, None, {}, L2[subject.device], error.verdict, words)
    comparisons = {name: session.printed(samples.against(name)) for name in session.others}
    times = BaselineTimes(judge, op, case, subject.device, session.l2)
    times.keep({name: c.others_us for name, c in comparisons.items() if name in op.baselines})
    kept = times.kept([n for n in op.baselines if n not in {**comparisons, **session.missing}])
    taken = [us for block in samples.blocks for us in block[KERNEL]]
    time_us = statistics.median(taken)
    roofline, sheet = session.roofline(time_us), session.sheet(time_us)
    fault = _too_fast(roofline, sheet, judge.spec) or session.witness.clock_fault(time_us)
    if trial is not None:
        comparisons[baselines.USERS] = _decided(trial)
        fault = fault or _slower(trial)
    verdict = Verdict.FAIL if fault else Verdict.PASS
    return Timing(
        case,
        taken,
        samples.facts,
        roofline,
        sheet,
        comparisons,
        session.l2,
        verdict,
        fault,
        session.missing,
        kept,
    )


def _measured(
    judge: Judge, subject: Subject, op: Op, case: Case
) -> tuple[Session, decide.Trial | None, Samples]:
    """All is measured afresh without a baseline that fails: it decides nothing, and whom it ran
    beside is then the same in all blocks."""
    failed: dict[str, str] = {}
    while True:
        session = Session(judge, subject, op, case, failed)
        try:
            return session, *(session.tried() if session.named else session.looked_at())
        except baselines.BaselineError as error:
            failed[error.name] = error.reason


def _decided(trial: decide.Trial) -> Comparison:
    blocks = [*(trial.confirmation or trial.first)]
    return Comparison(trial.estimate, trial.answer, bool(trial.confirmation), blocks)


class Session:
    """The contenders for one case, and the rounds that are measured of them."""

    def __init__(
        self, judge: Judge, subject: Subject, op: Op, case: Case, failed: Mapping[str, str]
    ) -> None:
        self.judge, self.subject, self.op, self.case = judge, subject, op, case
        self.cost = op.cost(case.dims, ITEMSIZE[case.dtype])
        rivals = baselines.rivals(judge, subject, op, failed)
        self.others, self.missing = rivals.makers, rivals.missing
        self.named = baselines.USERS in self.others
        # An edit loop asks whether to keep, a gate what a change did to the speed.
        quick = judge.settings.effort == "quick"
        gate = decide.GATE if subject.device == "cuda" else decide.CPU_GATE
        self.rule = decide.Rule() if quick else gate
        self.judged_by = decide.decide if quick else decide.judge_change
        self.l2 = L2[subject.device]
        self.clear_bytes = _clear_bytes(judge) if subject.device == "cuda" else 0
        self.rounds = 0
        self.random = random.Random(derived_seed(judge.settings.seed, "timing", case.id))
        self.witness = Witness(judge, op, subject.device, self._seed)

    def tried(self) -> tuple[decide.Trial, Samples]:
        """The kernel against the user's baseline until the rule is satisfied. The op's own
        baselines take part in the first round only."""
        trial, samples = decide.Trial(self.rule, self.judged_by), Samples()
        while need := trial.need:
            taken = len(samples.blocks)
            for blocks in _rounds(need.blocks, first=not samples.blocks):
                first = not samples.blocks
                self._round(samples, blocks, list(self.others) if first else [baselines.USERS])
            trial = trial.add(samples.against(baselines.USERS)[taken:])
        return trial, samples

    def printed(self, blocks: list[decide.Block]) -> Comparison:
        """A comparison that nothing hangs on: measured once."""
        found = decide.estimate(blocks, PRINTED_CONFIDENCE)
        return Comparison(found, self.judged_by(found, self.rule), False, blocks)

    def looked_at(self) -> tuple[None, Samples]:
        """The kernel beside the op's own baselines, as long as a first look takes."""
        samples = Samples()
        for blocks in _rounds(self.rule.looks[0], first=True):
            self._round(samples, blocks, list(self.others))
        return None, samples

    def roofline(self, time_us: float) -> gpu.Roofline:
        """The share of the measured roof. What cannot be is looked at again, not believed."""
        nbytes = int(self.cost.bytes)
        for again in (False, True, True, True):
            ceilings = self.judge.ceilings(self.subject.device, nbytes, self.case.dtype, again)
            found = self._against(ceilings, time_us)
            if found.pct <= 100 * MEASURED_LIMIT:
                break
        return found

    def sheet(self, time_us: float) -> gpu.Roofline | None:
        """The share of the data sheet's roof, where there is one for this device."""
        spec = self.judge.spec if self.subject.device == "cuda" else None
        return self._against(spec.ceilings(), time_us) if spec else None

    def _against(self, ceilings: gpu.Ceilings, time_us: float) -> gpu.Roofline:
        cost, op = self.cost, self.op
        return gpu.roofline(cost.flops, cost.bytes, op.roof, self.case.dtype, time_us, ceilings)

    def _round(self, samples: Samples, blocks: int, others: Sequence[str]) -> None:
        """Some blocks in fresh processes, on fresh data."""
        self.rounds += 1
        seed = derived_seed(self.judge.settings.seed, "timing", self.case.id, str(self.rounds))
        case = replace(self.case, seed=seed)
        with (
            self._contenders(others) as contenders,
            self.judge.made(self.op, case, self.subject) as (calls, options),
        ):
            call = calls[0]
            baselines.examine(contenders.values(), call, options)
            for _ in range(blocks):
                order = _rotated(list(contenders), len(samples.blocks))
                for name, contender in ((name, contenders[name]) for name in order):
                    message = {
                        "do": "prepare",
                        **call.message,
                        "options": options,
                        "padding": self.random.getrandbits(32),
                        "clear_bytes": self.clear_bytes,
                    }
                    facts, out = contender.ask(message, call.fds)
                    close(out)
                    if name == KERNEL:
                        samples.facts = _facts(facts)
                        self.witness.prepared(samples.facts)
                samples.blocks.append(self._block({name: contenders[name] for name in order}))
            self.witness.examine(contenders[KERNEL], statistics.median(samples.blocks[-1][KERNEL]))

    def _block(self, contenders: Mapping[str, Subject]) -> dict[str, list[float]]:
        """Bursts in turn, the order rotated and reversed. Who comes first in a block is a little
        slower in all of it (2 % on a CPU), so that blocks begin with each in turn."""
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        names = list(contenders)
        for burst in range(BURSTS):
            order = _rotated(names, burst // 2)
            for name in order if burst % 2 == 0 else reversed(order):
                seed = self._seed()
                request = {"do": "burst", "count": SAMPLES_PER_BURST, "seed": seed}
                start = time.perf_counter()
                samples = _samples(contenders[name].ask(request)[0])
                taken[name] += samples
                if name == KERNEL:
                    self.witness.saw(seed, samples, (time.perf_counter() - start) * 1e6)
        return taken

    def _seed(self) -> int:
        return self.random.getrandbits(48)

    @contextlib.contextmanager
    def _contenders(self, others: Sequence[str]) -> Iterator[dict[str, Subject]]:
        """All in fresh processes, started side by side."""
        contenders = {KERNEL: self.subject.fresh()} | {name: self.others[name]() for name in others}
        try:
            for contender in contenders.values():
                contender.start()
            with ThreadPoolExecutor(len(contenders)) as pool:
                for loaded in [pool.submit(c.load) for c in contenders.values()]:
                    loaded.result()
            yield contenders
        finally:
            for contender in contenders.values():
                contender.close()


def _clear_bytes(judge: Judge) -> int:
    """Twice the L2; of the driver's figure and the data sheet's the larger, since ROCm reports one
    die's share of it."""
    sheet = judge.spec.l2_mb * 2**20 if judge.spec else 0
    return 2 * int(max(judge.gpu.l2_bytes if judge.gpu else 0, sheet))


def _rounds(blocks: int, first: bool) -> Iterator[int]:
    """`blocks` in rounds. The first blocks come from two at least; then they may be larger."""
    size = BLOCKS_PER_ROUND if first else 2 * BLOCKS_PER_ROUND
    while blocks > 0:
        yield min(size, blocks)
        blocks -= size


def _rotated(names: list[str], by: int) -> list[str]:
    shift = by % len(names)
    return names[shift:] + names[:shift]


def _facts(reply: Mapping[str, Any]) -> dict[str, Any]:
    """What a bench says of itself, as far as it is of the right kind."""
    facts: dict[str, Any] = {"captured": reply.get("captured") is True}
    for name in ("calls", "peak_bytes", "floor_us"):
        value: Any = reply.get(name)
        facts[name] = value if type(value) in (int, float) and 0 <= value < 1e18 else None
    return facts


def _samples(reply: Mapping[str, Any]) -> list[float]:
    taken = reply.get("samples_us")
    if (
        not isinstance(taken, list)
        or len(taken) != SAMPLES_PER_BURST
        or not all(type(us) in (int, float) and 1e-6 < us < 1e12 for us in taken)
    ):
        raise CandidateError(
            Verdict.FAIL,
            f"{SAMPLES_PER_BURST} positive times were asked for, got {taken!r:.200}",
        )
    return [float(us) for us in taken]


def _too_fast(
    measured: gpu.Roofline, sheet: gpu.Roofline | None, spec: gpu.GpuSpec | None
) -> str | None:
    if sheet and spec and (reason := gpu.beyond_roof(sheet, spec.ceilings())):
        return f"FAIL: {reason}"
    if measured.pct > 100 * MEASURED_LIMIT:
        return (
            f"FAIL: {measured.pct:.0f} % of the measured roof ({measured.bound}): faster than the "
            "device can be; work is skipped or the clock is wrong"
        )
    return None


def _slower(trial: decide.Trial) -> str | None:
    if trial.answer is not decide.Change.SLOWER:
        return None
    found = trial.estimate
    return (
        f"SLOWER: {found.ratio:.3f} times the baseline's speed, {found.confidence:.1%} interval "
        f"[{found.low:.3f}, {found.high:.3f}], threshold {trial.rule.threshold:.1%}"
    )
