"""Our samples as pytest-benchmark's results, through its public API alone: a timer that plays
back the durations that were measured, two readings a round."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from pytest_autokernel.figures import Timing


class ReplayTimer:
    """A clock that stands still but for the recorded durations, in seconds."""

    def __init__(self) -> None:
        self._now = 0.0
        self._running = False
        self._durations: deque[float] = deque()

    def load(self, durations: Sequence[float]) -> None:
        self._durations = deque(durations)
        self._running = False

    def __call__(self) -> float:
        if self._running and self._durations:
            self._now += self._durations.popleft()
        self._running = not self._running
        return self._now


REPLAY = ReplayTimer()


def feed(benchmark: BenchmarkFixture, timing: Timing, name: str) -> None:
    """Give the benchmark the samples of a timing, and what goes with them. `name` tells the
    kernels apart in its table."""
    benchmark.name = name
    samples = timing.samples_us
    REPLAY.load([us / 1e6 for us in samples])
    benchmark.extra_info.update(timing.summary())
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
