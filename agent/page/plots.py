"""Progress over the experiments, and the samples of one case, as geometry. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..report import ratio
from .geometry import Axis, Down, Line, Mark, Plot, Ticks, linear_ticks, spaced
from .story import MEANING, Case, KernelStory, Step

SHAPES = {
    "starter": "starter",
    "KEEP": "kept",
    "REVERT": "slower",
    "UNDECIDED": "undecided",
    "FAIL": "wrong",
    "CRASH": "wrong",
    "TIMEOUT": "wrong",
}
FLOOR, LANE = 84.0, 93.0  # what has no speed stands in a lane below the others
NOTE = (
    "The line multiplies the gains kept one after the other; each bar is its own step's interval. "
    "What has no speed stands below: wrong kernels, whose speed means nothing, and those not timed."
)
ON_TOP = ("kept", "total")
LOWEST = 0.5  # what is slower yet would squeeze all others: it stands on the floor


def progress(story: KernelStory) -> Plot:
    """Speedup over the starter, experiment by experiment; what was kept is a line of steps, and
    the last measurement stands behind it."""
    end = len(story.steps) if story.total and story.total.speedup else len(story.steps) - 1
    x = Axis(-0.5, max(end, 1) + 0.5)
    lane = any(step.over_starter is None for step in story.tried)
    y = Down(_speed_axis(story), FLOOR if lane else 100.0)
    marks = [_experiment(step, at, x, y) for at, step in enumerate(story.steps)]
    if story.total and (speed := story.total.speedup):
        title = f"measured afresh: {speed}"
        low, high = y.at(speed.low), y.at(speed.high)
        marks.append(Mark(x.at(end), y.at(speed.ratio), "total", title, low, high))
    last = len(story.steps) - 1
    numbers = [n for n in linear_ticks(0, max(1, last), 8) if n <= last and n == int(n)]
    return Plot(
        x_ticks=tuple((x.at(n), str(story.steps[int(n)].experiment.experiment)) for n in numbers),
        y_ticks=tuple(
            (y.at_share(share), f"{words}\N{MULTIPLICATION SIGN}")
            for share, words in y.axis.ticks(5)
        ),
        lines=tuple(_stairs(story, x, y, end)),
        marks=tuple(sorted(spaced(marks, 5, 6), key=lambda mark: mark.shape in ON_TOP)),
        legend=tuple(_progress_legend(story, marks)),
        title=f"Speedup of {story.kernel} over its starter by experiment: {story.claim}",
        note=NOTE,
    )


def _speed_axis(story: KernelStory) -> Axis:
    """Of all speeds, and of the intervals that are drawn."""
    drawn = [step.over_starter for step in story.kept if step.over_starter]
    drawn += [story.total.speedup] if story.total and story.total.speedup else []
    speeds = [step.over_starter.ratio for step in story.steps if step.over_starter]
    speeds += [value for speed in drawn for value in (speed.low, speed.ratio, speed.high)]
    values = [0.95, 1.05, *(max(LOWEST, value) for value in speeds)]
    return Axis.around(values, log=max(values) > 3)


def _experiment(step: Step, at: int, x: Axis, y: Down) -> Mark:
    e, speed = step.experiment, step.over_starter
    title = f"{e.experiment}: {step.outcome}: {e.description}"
    if step.wrong:
        return Mark(x.at(at), LANE, "wrong", title)
    if speed is None:
        starter = step.outcome == "starter"
        height, shape = (y.at(1.0), "starter") if starter else (LANE, "untimed")
        return Mark(x.at(at), height, shape, title)
    title += f": {e.speedup} over the kernel before, {ratio(speed.ratio)}x over the starter"
    kept = e.kept
    return Mark(
        x.at(at),
        y.at(speed.ratio),
        "below" if speed.ratio < y.axis.low else SHAPES[step.outcome],
        title,
        y.at(speed.low) if kept else None,
        y.at(speed.high) if kept else None,
        label=f"#{e.experiment}" if kept else "",
        link=e.experiment if kept else None,
    )


def _stairs(story: KernelStory, x: Axis, y: Down, end: float) -> Iterator[Line]:
    at, level = 0.0, y.at(1.0)
    for number, step in enumerate(story.steps):
        if step.experiment.kept and step.over_starter:
            up = y.at(step.over_starter.ratio)
            yield Line(x.at(at), level, x.at(number), level, "stair")
            yield Line(x.at(number), level, x.at(number), up, "stair")
            at, level = number, up
    yield Line(x.at(at), level, x.at(end), level, "stair")


def _progress_legend(story: KernelStory, marks: Sequence[Mark]) -> Iterator[tuple[str, str]]:
    for outcome, n in story.counts.items():
        yield SHAPES[outcome], f"{n} {outcome}: {MEANING[outcome]}"
    others = {
        "untimed": "right, but not timed",
        "below": "slower than the plot shows",
        "total": "the whole gain, measured afresh",
    }
    shapes = {mark.shape for mark in marks}
    yield from ((shape, words) for shape, words in others.items() if shape in shapes)


@dataclass(frozen=True)
class Strip:
    """A case's blocks: each block's ratio, the first one on top, the interval, the ratio, and 1,
    which is None where it lies off the axis."""

    dots: tuple[tuple[float, float], ...]
    low: float
    high: float
    ratio: float
    one: float | None
    ticks: Ticks


def strip(case: Case) -> Strip:
    """On an axis as wide as the noise; 1 is on it where that leaves the noise to be seen."""
    speed, last = case.speedup, max(1, len(case.ratios) - 1)
    axis = Axis.around([*case.ratios, speed.low, speed.high])
    if min(abs(axis.low - 1), abs(axis.high - 1)) < 2 * (axis.high - axis.low):
        axis = Axis.around([axis.low, axis.high, 1.0])
    return Strip(
        dots=tuple((axis.at(r), round(14 + 72 * n / last, 1)) for n, r in enumerate(case.ratios)),
        low=axis.at(speed.low),
        high=axis.at(speed.high),
        ratio=axis.at(speed.ratio),
        one=axis.at(1.0) if axis.low <= 1 <= axis.high else None,
        ticks=axis.ticks(6),
    )
