"""When to stop working on a kernel. Rules are values and join: `seconds(60) | experiments(20)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import Refused
from .usage import Usage, reckoned


@dataclass(frozen=True)
class Progress:
    """What a rule may look at, of this visit to one kernel: the experiments finished, the
    seconds since it began, what an experiment has taken on average, how many in a row were not
    kept, how much faster the kernel has become, percent of its roof, why the proposals since the
    last experiment came to nothing, and what each of all took."""

    experiments: int = 0
    elapsed_s: float = 0.0
    mean_s: float = 0.0
    reverts: int = 0
    gained: float = 1.0
    pct_roof: float | None = None
    failed: tuple[str, ...] = ()
    usages: tuple[Usage, ...] = ()


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
        if progress.experiments == 0 and not progress.failed:
            return None
        next_s = progress.mean_s if progress.experiments > 1 else 0.0
        return "the budget is spent" if progress.elapsed_s + next_s > budget_s else None

    return Stop(why)


def minutes(most: float) -> Stop:
    """On one kernel: its own clock, which ends no experiment that has begun."""
    return Stop(lambda p: f"{most:g} minutes are over" if p.elapsed_s >= 60 * most else None)


def plateau(most: float) -> Stop:
    return Stop(lambda p: f"{p.reverts} in a row were not kept" if p.reverts >= most else None)


def near_peak(share: float) -> Stop:
    def why(progress: Progress) -> str | None:
        pct = progress.pct_roof
        near = pct is not None and pct >= 100 * share
        return f"it is at {pct:.0f} % of its roof" if near else None

    return Stop(why)


def speedup(enough: float) -> Stop:
    return Stop(lambda p: f"it is {p.gained:.2f}x as fast" if p.gained >= enough else None)


def failures(most: int) -> Stop:
    """Stop a proposer that gives nothing any more; without its key, say, each call fails."""

    def why(progress: Progress) -> str | None:
        if len(progress.failed) < most:
            return None
        return f"{most} proposals in a row came to nothing, the last: {progress.failed[-1]}"

    return Stop(why)


def cost(most_usd: float, before: Sequence[Usage] = ()) -> Stop:
    """Stop before the next proposal once so much is spent, with what was `before` this visit, or
    if nobody says how much is. A proposal that was ended in its middle says nothing, and counts
    as the dearest."""

    def why(progress: Progress) -> str | None:
        spent = reckoned(usage.cost_usd for usage in (*before, *progress.usages))
        if spent is None:
            return "what it costs is not known, so --max-cost cannot hold: give --price too"
        return f"${spent:.4g} of ${most_usd:.4g} are spent" if spent >= most_usd else None

    return Stop(why)


def tokens(most: int, before: Sequence[Usage] = ()) -> Stop:
    """The same for tokens, read and written together."""

    def why(progress: Progress) -> str | None:
        spent = reckoned(usage.tokens for usage in (*before, *progress.usages))
        if spent is None:
            return "the proposer does not say what tokens it took, so --max-tokens cannot hold"
        return f"{spent:,} of {most:,} tokens are spent" if spent >= most else None

    return Stop(why)


RULES: dict[str, Callable[[float], Stop]] = {
    "plateau": plateau,
    "near_peak": near_peak,
    "minutes": minutes,
    "speedup": speedup,
}
MOVE_ON = "plateau(5) | near_peak(0.9) | minutes(120) | speedup(2.0)"


def parse(text: str) -> Stop:
    """Rules as they are written: `plateau(5) | minutes(120)`. Raises Refused."""
    found = never()
    for part in text.split("|"):
        match = re.fullmatch(r"\s*(\w+)\((\d+(?:\.\d+)?)\)\s*", part)
        if match is None or match[1] not in RULES:
            raise Refused(
                f"expected rules such as {MOVE_ON!r}, of {', '.join(RULES)}, got {part.strip()!r}"
            )
        found |= RULES[match[1]](float(match[2]))
    return found
