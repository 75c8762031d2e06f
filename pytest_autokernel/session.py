"""Samples of a kernel beside others: all in turn, in one go, on the same inputs.

Each contender runs in a process of its own; they take turns in short bursts under this
side's command. A block is one fresh layout of buffers in all of them; blocks are spread over
rounds, and each round starts fresh processes on fresh data.

Not covered: what the samples mean (timing.py).
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pytest_autokernel import baselines, decide, gpu, plan
from pytest_autokernel.channel import close
from pytest_autokernel.clock import Reading
from pytest_autokernel.figures import Comparison
from pytest_autokernel.judge import HandedOver, Judge, derived_seed
from pytest_autokernel.op import ITEMSIZE, Case, Op
from pytest_autokernel.subjects import Subject
from pytest_autokernel.verdict import CandidateError, JudgeError, Verdict
from pytest_autokernel.witness import Witness

BLOCKS_PER_ROUND = 6  # twice as many later on: starting processes costs seconds
BURSTS = 4
PRINTED_CONFIDENCE = 0.95  # of comparisons that nothing hangs on; six blocks are enough for it
SAMPLES_PER_BURST = 3
# On a GPU, of one sample: short kernels are called so often that the events' own noise (0.1 us on
# an H200) is small beside it, and each time on other buffers, which averages out where they lie.
SAMPLE_US, MOST_CALLS, MOST_BYTES = 100, 32, 2**30
HOST_SAMPLE_US, HOST_CALLS = 1000, 100  # by the host's clock, whose wait for the GPU takes some us
FLOORS = 3  # of an empty pair of events, that a sample has to last
MOST_TRIES = 20  # of a block on a GPU that is throttled
KERNEL = "kernel"  # the contender under examination; the others are named after what they are
# Above this share of the measured roof work is skipped or the clock is wrong. Not 1: a copy and
# a sum by PyTorch find the roof itself to some 10 % only.
MEASURED_LIMIT = 1.3

T = TypeVar("T")


class TooShort(Exception):
    """There is no telling how long a kernel takes."""


@dataclass
class Samples:
    """Samples by contender and block, and what the kernel's benches said of themselves."""

    blocks: list[dict[str, list[float]]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def against(self, other: str) -> list[decide.Block]:
        return [(block[other], block[KERNEL]) for block in self.blocks if other in block]


class Session:
    """The contenders for one case, without the baselines that have `failed` and why, and the
    rounds that are measured of them. With `host`, calls on a GPU are timed as Python sees them:
    launches included, without a graph, the L2 cache warm."""

    def __init__(
        self,
        judge: Judge,
        subject: Subject,
        op: Op,
        case: Case,
        failed: Mapping[str, str] | None = None,
        host: bool = False,
    ) -> None:
        self.host = host
        self.judge, self.subject, self.op, self.case = judge, subject, op, case
        self.cost = op.cost(case.dims, ITEMSIZE[case.dtype])
        rivals = baselines.rivals(judge, subject, op, failed or {})
        self.others, self.missing = rivals.makers, rivals.missing
        self.named = baselines.USERS in self.others
        self.question, cases = judge.settings.ask, plan.timed_cases(op, subject.target)
        self.rule = decide.rule_for(self.question, subject.device == "cuda", len(cases) or 1)
        self.judged_by = decide.JUDGES[self.question]
        on_gpu = subject.device == "cuda"
        self.l2 = "warm" if host else l2_of(judge, subject)
        self.clear_bytes = judge.hardware.clear_bytes if on_gpu and self.l2 == "cold" else 0
        self.floor_us = judge.hardware.floor_us if on_gpu else None
        self.clock = judge.hardware.clock if on_gpu else None
        self.readings: list[Reading] = []
        self.dropped = 0
        self.calls = 0 if on_gpu else 1  # of a sample; a CPU's bench finds its own
        self.rounds = 0
        self.random = random.Random(derived_seed(judge.settings.seed, "timing", case.id))
        self.witness = Witness(judge, op, subject.device, self._seed)

    def tried(self) -> tuple[decide.Trial, Samples]:
        """The kernel against the user's baseline until the rule is satisfied. The op's own
        baselines take part in the first round after the glance, and in none of a screen."""
        trial, samples = decide.Trial(self.rule, self.judged_by), Samples()
        while need := trial.need:
            taken = len(samples.blocks)
            everyone = taken == self.rule.glance and self.question != "screen"
            for blocks in _rounds(need.blocks, first=not samples.blocks):
                self._round(samples, blocks, list(self.others) if everyone else [baselines.USERS])
                everyone = False
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

    def resolve(self, time_us: float) -> None:
        """Raises TooShort for a time that events can hardly tell from none."""
        sample_us = time_us * self.calls
        if self.floor_us is not None and sample_us < FLOORS * self.floor_us:
            raise TooShort(
                f"too short to resolve: a sample lasts {sample_us:.2g} us, expected at least "
                f"{FLOORS} times the {self.floor_us:.2g} us that an empty pair of events reads"
            )

    def facts(self, samples: Samples) -> dict[str, Any]:
        """What the figures were measured with."""
        mhz = [reading.sm_mhz for reading in self.readings]
        return {
            **samples.facts,
            "resources": self.witness.resources,
            "floor_us": self.floor_us,
            "sm_mhz": statistics.median(mhz) if mhz else None,
            "throttled": self.dropped if mhz else None,
        }

    def roofline(self, time_us: float) -> gpu.Roofline:
        """The share of the measured roof. What cannot be is looked at again, not believed."""
        nbytes = int(self.cost.bytes)
        for again in (False, True, True, True):
            ceilings = self.judge.hardware.ceilings(
                self.subject.device, nbytes, self.case.dtype, again
            )
            found = self._against(ceilings, time_us)
            if found.pct <= 100 * MEASURED_LIMIT:
                break
        return found

    def sheet(self, time_us: float) -> gpu.Roofline | None:
        """The share of the data sheet's roof, where there is one for this device."""
        spec = self.judge.hardware.spec if self.subject.device == "cuda" else None
        return self._against(spec.ceilings(), time_us) if spec and not spec.measured else None

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
            self.calls = self.calls or self._calls_per_sample(contenders, call, options)
            for _ in range(blocks):
                order = _rotated(list(contenders), len(samples.blocks))
                in_turn = {name: contenders[name] for name in order}
                samples.facts = self._prepared(in_turn, call, options, self.calls)[KERNEL]
                self.witness.prepared(samples.facts, self.calls if self.clear_bytes else 1)
                samples.blocks.append(self._block(in_turn))
            self.witness.examine(contenders[KERNEL], statistics.median(samples.blocks[-1][KERNEL]))

    def _prepared(
        self,
        contenders: Mapping[str, Subject],
        call: HandedOver,
        options: Mapping[str, Any],
        calls: int,
    ) -> dict[str, dict[str, Any]]:
        """Fresh layouts of the contenders' buffers, and what their benches say of themselves. The
        processes with a GPU do it side by side: most of it is the host's work. On a CPU they take
        turns, since a bench finds by the clock how many calls make a sample."""
        common = {
            "do": "prepare",
            **call.message,
            "options": options,
            "clear_bytes": self.clear_bytes,
            "calls": calls,
            "host": self.host,
        }
        messages = {name: {**common, "padding": self.random.getrandbits(32)} for name in contenders}
        with ThreadPoolExecutor(len(contenders)) as pool:
            awaited = {
                name: pool.submit(contender.ask, messages[name], call.fds)
                for name, contender in contenders.items()
                if self.subject.device == "cuda" and contender.file
            }
            facts = {}
            for name, contender in contenders.items():
                asked = awaited.get(name)
                reply, out = asked.result() if asked else contender.ask(messages[name], call.fds)
                close(out)
                known = {"calls": calls} if self.subject.device == "cuda" else {}
                facts[name] = _facts(reply) | known
        return facts

    def _calls_per_sample(
        self, contenders: Mapping[str, Subject], call: HandedOver, options: Mapping[str, Any]
    ) -> int:
        """How many calls make a sample: enough for the fastest, and the same for all."""
        fastest = math.inf
        self._prepared(contenders, call, options, 1)
        for contender in contenders.values():
            request = {"do": "burst", "count": SAMPLES_PER_BURST, "seed": self._seed()}
            fastest = min(fastest, *_samples(contender.ask(request)[0]))
        if self.host:
            return max(1, min(HOST_CALLS, math.ceil(HOST_SAMPLE_US / fastest)))
        most = min(MOST_CALLS, int(MOST_BYTES / max(1, self.cost.bytes)))
        return max(1, min(most, math.ceil(SAMPLE_US / fastest)))

    def _block(self, contenders: Mapping[str, Subject]) -> dict[str, list[float]]:
        """Bursts in turn, the order rotated and reversed. Who comes first in a block is a little
        slower in all of it (2 % on a CPU), so that blocks begin with each in turn. What was taken
        while the GPU was throttled is dropped, for all of them."""
        names = list(contenders)
        for _ in range(MOST_TRIES):
            taken: dict[str, list[float]] = {name: [] for name in contenders}
            for burst in range(BURSTS):
                order = _rotated(names, burst // 2)
                found = self._turn(contenders, order if burst % 2 == 0 else order[::-1])
                for name, samples in found.items():
                    taken[name] += samples
            if taken[KERNEL]:
                return taken
        raise JudgeError(f"nothing can be timed: {self.readings[-1].throttled} holds the GPU back")

    def _turn(self, contenders: Mapping[str, Subject], order: list[str]) -> dict[str, list[float]]:
        """A burst of each; of none where the GPU was throttled."""
        taken = {}
        before = len(self.readings)
        for name in order:
            seed = self._seed()
            request = {"do": "burst", "count": SAMPLES_PER_BURST, "seed": seed}
            start = time.perf_counter()
            taken[name] = samples = _samples(contenders[name].ask(request)[0])
            if name == KERNEL:
                self.witness.saw(seed, samples, (time.perf_counter() - start) * 1e6)
            if self.clock is not None:
                self.readings.append(self.clock.read())
        if not any(reading.throttled for reading in self.readings[before:]):
            return taken
        self.dropped += SAMPLES_PER_BURST
        return {}

    def _seed(self) -> int:
        return self.random.getrandbits(48)

    @contextlib.contextmanager
    def _contenders(self, others: Sequence[str]) -> Iterator[dict[str, Subject]]:
        """All in fresh processes, started side by side. Who starts first in one round does not in
        the next: in 16 comparisons of a sum with its copy on H200s the one that always did was the
        slower one by 0.26 % on average (standard error 0.06)."""
        contenders = {KERNEL: self.subject.fresh()} | {name: self.others[name]() for name in others}
        in_turn = _rotated(list(contenders.values()), self.rounds)
        try:
            for contender in in_turn:
                contender.start()
            with ThreadPoolExecutor(len(contenders)) as pool:
                for loaded in [pool.submit(contender.load) for contender in in_turn]:
                    loaded.result()
            yield contenders
        finally:
            for contender in contenders.values():
                contender.close()


def l2_of(judge: Judge, subject: Subject) -> str:
    """How timed calls find the cache: a CPU's is always warm."""
    return judge.settings.l2 if subject.device == "cuda" else "warm"


def _rounds(blocks: int, first: bool) -> Iterator[int]:
    """`blocks` in rounds. The first blocks come from two at least; then they may be larger."""
    size = BLOCKS_PER_ROUND if first else 2 * BLOCKS_PER_ROUND
    while blocks > 0:
        yield min(size, blocks)
        blocks -= size


def _rotated(several: list[T], by: int) -> list[T]:
    shift = by % len(several)
    return several[shift:] + several[:shift]


def _facts(reply: Mapping[str, Any]) -> dict[str, Any]:
    """What a bench says of itself, as far as it is of the right kind."""
    facts: dict[str, Any] = {"captured": reply.get("captured") is True}
    for name in ("calls", "peak_bytes"):
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
