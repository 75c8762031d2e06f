"""What a plot is made of: where each mark stands, in percent of the plot's width and height.

Percentages, and not a view box: a plot fills a phone as it fills a screen, with text of one size
on both. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Ticks = tuple[tuple[float, str], ...]
Legend = tuple[tuple[str, str], ...]  # shapes, and what they stand for


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, in percent from 0 to 100."""

    low: float
    high: float
    log: bool = False

    @staticmethod
    def around(values: Sequence[float], log: bool = False) -> Axis:
        """All the values, with a little room on both sides; the ends of an interval of which the
        samples say nothing, 0 and infinity, are off the axis."""
        known = [value for value in values if 0 < value < math.inf]
        low, high = min(known), max(known)
        if log:
            room = max((high / low) ** 0.06, 1.02)
            return Axis(low / room, high * room, log)
        room = max((high - low) * 0.06, abs(high) * 0.005)
        return Axis(low - room, high + room)

    def at(self, value: float) -> float:
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(100 * (value - low) / (high - low), 2)

    def ticks(self, most: int = 6) -> Ticks:
        """At most `most` round values, each with its words."""
        values = _log_ticks(self.low, self.high, most) if self.log else []
        values = values if len(values) > 2 else linear_ticks(self.low, self.high, most)
        return tuple((self.at(value), f"{value:.6g}") for value in values)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """The finest of even-looking series that is not too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
        values = [step * 10.0**decade for decade in decades[::every] for step in steps]
        values = [value for value in values if low <= value <= high]
        if len(values) <= most:
            break
    return values


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


@dataclass(frozen=True)
class Down:
    """An axis that goes up the page: its low end lies `floor` percent below the top."""

    axis: Axis
    floor: float = 100.0

    def at(self, value: float) -> float:
        return self.at_share(self.axis.at(value))

    def at_share(self, share: float) -> float:
        return round(self.floor * (1 - share / 100), 2)


@dataclass(frozen=True)
class Mark:
    """`low` and `high` are the ends of its interval, where one is drawn; `label` stands beside,
    or `inside`."""

    x: float
    y: float
    shape: str
    title: str
    low: float | None = None
    high: float | None = None
    label: str = ""
    inside: bool = False
    link: int | None = None


@dataclass(frozen=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float
    kind: str
    label: str = ""


@dataclass(frozen=True)
class Plot:
    x_ticks: Ticks
    y_ticks: Ticks
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    legend: Legend
    title: str
    note: str


def spaced(marks: Sequence[Mark], near_x: float, near_y: float) -> tuple[Mark, ...]:
    """The marks, less the labels that would lie over another."""
    found: list[Mark] = []
    for mark in marks:
        if any(
            m.label and abs(m.x - mark.x) < near_x and abs(m.y - mark.y) < near_y for m in found
        ):
            mark = replace(mark, label="")
        found.append(mark)
    return tuple(found)
