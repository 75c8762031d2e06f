"""The configurations that a kernel file allows: its `SPACE`, less what its rules forbid.

A configuration is handled as a point: the index of its value on every axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Refused
from .rules import compile_rule

Point = tuple[int, ...]

MOST = 500_000  # points before the rules; more take seconds and hundreds of MB to enumerate


@dataclass(frozen=True)
class Space:
    """`axes` name the values that may be tried, in the file's order; `valid` are the points
    that all rules allow, in lexicographic order."""

    axes: Mapping[str, tuple[Any, ...]]
    valid: tuple[Point, ...]

    @staticmethod
    def of(declared: Mapping[str, Any], config: Mapping[str, Any]) -> Space:
        """The space around `config`, whose other keys are constants to the rules."""
        axes = {name: tuple(values) for name, values in declared.items() if name != "rules"}
        _check(axes, config)
        rules = [compile_rule(rule, frozenset(config)) for rule in declared.get("rules", ())]
        space = Space(axes, ())
        points = itertools.product(*(range(len(values)) for values in axes.values()))
        allowed = (p for p in points if all(rule({**config, **space.values(p)}) for rule in rules))
        space = Space(axes, tuple(allowed))
        if space.point(config) not in space.valid:
            raise Refused(
                f"CONFIG breaks a rule of SPACE: {dict(config)}; change the one or the other"
            )
        return space

    def values(self, point: Point) -> dict[str, Any]:
        pairs = zip(self.axes.items(), point, strict=True)
        return {name: values[index] for (name, values), index in pairs}

    def point(self, config: Mapping[str, Any]) -> Point:
        return tuple(_index(values, config[name]) for name, values in self.axes.items())

    def has(self, config: Mapping[str, Any]) -> bool:
        """Whether the values of a configuration are all on the axes."""
        return all(
            name in config and any(_same(value, config[name]) for value in values)
            for name, values in self.axes.items()
        )

    def ordered(self, axis: int) -> bool:
        """Whether an axis' values have an order: numbers have one, names and flags have none."""
        values = list(self.axes.values())[axis]
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)

    def neighbours(self, point: Point, axis: int) -> Iterator[Point]:
        """One step up and down on an ordered axis, every other value on an unordered one."""
        size = len(list(self.axes.values())[axis])
        near = (point[axis] + 1, point[axis] - 1) if self.ordered(axis) else range(size)
        for index in near:
            if 0 <= index < size and index != point[axis]:
                yield moved(point, axis, index)


def moved(point: Point, axis: int, index: int) -> Point:
    return (*point[:axis], index, *point[axis + 1 :])


def _index(values: tuple[Any, ...], value: Any) -> int:
    return next(index for index, known in enumerate(values) if _same(known, value))


def _same(one: Any, other: Any) -> bool:
    """`True == 1`, but they are different configurations: compare the types too."""
    return bool(one == other and type(one) is type(other))


def _check(axes: Mapping[str, tuple[Any, ...]], config: Mapping[str, Any]) -> None:
    for name, values in axes.items():
        if name not in config:
            raise Refused(f"SPACE has the axis {name!r}, CONFIG does not: add its present value")
        if not any(_same(value, config[name]) for value in values):
            raise Refused(
                f"CONFIG[{name!r}]={config[name]!r} is not in SPACE[{name!r}]={list(values)}"
            )
    if (size := math.prod(len(values) for values in axes.values())) > MOST:
        raise Refused(
            f"SPACE has {size:,} configurations, at most {MOST:,} can be tried: drop values"
        )
