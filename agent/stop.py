"""When to stop working on a kernel. Rules are values and join: `seconds(60) | experiments(20)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What a rule may look at, of this run on one kernel: the experiments finished, the
    seconds since it began, and what an experiment has taken on average."""

    experiments: int = 0
    elapsed_s: float = 0.0
    mean_s: float = 0.0


@dataclass(frozen=True)
class Stop:
    """`why(progress)` says why to stop now, or None to go on."""

    why: Callable[[Progress], str | None]

    def __or__(self, other: Stop) -> Stop:
        return Stop(lambda progress: self.why(progress) or other.why(progress))


def never() -> Stop:
    return Stop(lambda progress: None)


def experiments(most: int) -> Stop:
    return Stop(lambda p: f"{most} experiments done" if p.experiments >= most else None)


def seconds(budget_s: float) -> Stop:
    """Stop before an experiment that would not end in time. The first one always runs, and
    the second unless the time is up: one duration alone is too poor a guess."""

    def why(progress: Progress) -> str | None:
        if progress.experiments == 0:
            return None
        next_s = progress.mean_s if progress.experiments > 1 else 0.0
        return "the budget is spent" if progress.elapsed_s + next_s > budget_s else None

    return Stop(why)


def minutes(budget: float) -> Stop:
    return seconds(60 * budget)
