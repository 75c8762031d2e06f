"""What must hold of timed calls beside being fast: their results are right for contents that
changed under them, the worker's clock agrees with ours, and what ran is the file's own."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from pytest_autokernel import policy
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Op
from pytest_autokernel.subjects import Answer, Subject
from pytest_autokernel.verdict import CandidateError, Verdict

# A span is so long that this side's wait for an answer, some 0.2 ms, is small beside it.
SPAN_US, MOST_SAMPLES = 10_000, 400
MOST_SPANS = 20
WAIT_US = 500.0
SHARE = 0.8  # of what this side measures that a claimed time has to be at least
# A GPU that waits for Python's launches shows the launches in a span, and not in a sample.
LAUNCH_US = 300.0


class Witness:
    """Beside one kernel while it is timed."""

    def __init__(self, judge: Judge, op: Op, device: str, draw_seed: Callable[[], int]) -> None:
        self.judge, self.op, self.device, self.draw_seed = judge, op, device, draw_seed
        self._least_us = {False: math.inf, True: math.inf}  # of a span's call: full, and empty
        self._shares: list[float] = []
        self._bursts: list[tuple[int, int]] = []
        self._calls, self._sets = 1, 1
        self._captured = device == "cpu"  # there it says the same: a call is all that there is
        self._span_calls = 1
        self.resources: list[dict[str, Any]] = []  # of what a call launched, as the worker says

    def prepared(self, facts: dict[str, Any], sets: int) -> None:
        """The kernel has a fresh layout, with the inputs as they were made, `sets` times."""
        self._bursts = []
        calls = facts["calls"]
        self._calls = int(calls) if calls and 1 <= calls <= 10**7 else 1
        self._sets = sets
        self._captured = facts["captured"] or self.device == "cpu"

    def saw(self, seed: int, samples_us: Sequence[float], wall_us: float) -> None:
        """A burst with this seed was timed, which took this side `wall_us`."""
        calls = len(samples_us) * self._calls
        self._bursts.append((seed, calls))
        if self.device == "cpu":  # where a burst is its calls; a GPU's clears its cache as well
            # and as many calls before it as a sample has
            claimed_us = (sum(samples_us) + statistics.fmean(samples_us)) * self._calls
            self._shares.append((claimed_us + WAIT_US) / wall_us)

    def examine(self, kernel: Subject, claimed_us: float) -> None:
        """Look at the timed calls, at the end of a round. Raises CandidateError."""
        if kernel.device == "cuda":
            self._take_spans(kernel, claimed_us)
        self._look(kernel, {"do": "burst"}, "the result of a timed call is wrong")
        self.judge.ask({"do": "refill", "seed": self.draw_seed()})
        self._bursts = []
        self._look(
            kernel,
            {"do": "burst", "refill": True},
            "the result of a timed call is wrong once the inputs' contents have changed",
        )
        self._look_at_launches(kernel)

    def clock_fault(self, claimed_us: float) -> str | None:
        """What is wrong where the worker's times are below what this side's clock can bear."""
        if self._shares and max(self._shares) < SHARE:
            return (
                "the clock: of the time that a burst takes by this side's clock the kernel's "
                f"process reports {max(self._shares):.0%} at most"
            )
        if self._bearable(claimed_us):
            return None
        return (
            f"the clock: the kernel's process reports {claimed_us:.3g} us a call, where "
            f"this side measured {self._measured_us:.3g} us at least"
        )

    def _look(self, kernel: Subject, request: dict[str, Any], fault: str) -> None:
        """One more timed call, whose result must be right for what its inputs hold by now."""
        seed, which = self.draw_seed(), self.draw_seed() % self._sets
        reply, out = kernel.ask({**request, "count": 1, "seed": seed, "which": which})
        self._bursts.append((seed, self._calls))
        self._compare(Answer.of(reply, out), which, fault)

    def _compare(self, answer: Answer, which: int, fault: str) -> None:
        message = {"do": "poke", "bursts": self._bursts, "sets": self._sets, "which": which}
        self.judge.ask(message)
        found = self.judge.compare(answer, timed=True)
        if not found["ok"]:
            raise CandidateError(Verdict.FAIL, f"{fault}: {found['reason']}")

    def _look_at_launches(self, kernel: Subject) -> None:
        reply, out = kernel.ask({"do": "launched"})
        self._compare(Answer.of(reply, out), 0, "the result of a traced call is wrong")
        if kernel.file is None:
            return
        self.resources = resources_of(reply.get("resources"))
        names = [str(name)[:300] for name in reply.get("launched", ())]
        allowed = self.judge.settings.allow
        if self.device == "cpu":
            operators = [(name, None) for name in names]
            refused = policy.refusal(operators, self.op.library, allowed, kernel.file.path.name)
            if refused:
                raise CandidateError(Verdict.FAIL, f"a timed call {refused}")
            return
        foreign = policy.foreign_launches(names, kernel.file.text, self.op.library, allowed)
        if foreign:
            raise CandidateError(
                Verdict.FAIL,
                f"launches {foreign[0]}, which {kernel.file.path.name} does not define: a kernel "
                f"computes by itself; --autokernel-allow {policy.identifier(foreign[0])} accepts "
                "it as a hybrid",
            )

    def _take_spans(self, kernel: Subject, claimed_us: float) -> None:
        """Time a GPU's calls by this side's clock: with the calls and without, whose difference is
        theirs. On a busy machine a span takes longer, and never less long than it has to: the
        shortest of each kind count, and more are taken while these show too much."""
        sample_us = claimed_us * self._calls
        count = min(MOST_SAMPLES, max(1, math.ceil(SPAN_US / sample_us)))
        self._span_calls = count * self._calls
        for _ in range(MOST_SPANS):
            for empty, least in self._least_us.items():
                taken = _wall_us(kernel, count, empty) / self._span_calls
                self._least_us[empty] = min(least, taken)
            if self._bearable(claimed_us):
                break

    @property
    def _measured_us(self) -> float:
        """A call's time by this side's clock; nothing where no span was taken."""
        full, empty = self._least_us.values()
        return full - empty if full < math.inf else 0.0

    def _bearable(self, claimed_us: float) -> bool:
        """Whether a time that the worker reports can be, beside what this side measured."""
        slack = WAIT_US / self._span_calls if self._captured else LAUNCH_US
        return claimed_us >= SHARE * self._measured_us - slack


def _wall_us(kernel: Subject, count: int, empty: bool) -> float:
    start = time.perf_counter()
    kernel.ask({"do": "span", "count": count, "empty": empty})
    return (time.perf_counter() - start) * 1e6


def resources_of(told: object) -> list[dict[str, Any]]:
    """What a worker says of its kernels, as far as it is of the right kind."""
    counts = ("registers", "local_bytes", "shared_bytes")
    return [
        {"kernel": str(one.get("kernel"))[:200], **{name: one[name] for name in counts}}
        for one in (told if isinstance(told, list) else [])[:20]
        if isinstance(one, dict) and all(type(one.get(name)) is int for name in counts)
    ]
