"""The built-in proposer: a search over the kernel's `SPACE`, and rewrites of its source.

While values still gain, it tries values. When they no longer do, it tries what the playbook has
for this kernel: a rewrite as it starts, then a few values of what the rewrite opened. What is kept
is where the search goes on, in the wider space.
"""

from __future__ import annotations

import collections
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Refused
from ..report import Speedup
from .literals import literal, rewrite
from .optuna_search import OptunaSearch
from .proposer import Edit, Situation, Try
from .rewrites import REWRITES, rewritten
from .search import Engine, Search
from .space import MOST as MOST_POINTS
from .space import Point, Space

LULL = 6  # experiments without a gain before a rewrite is tried
BETWEEN = 2  # experiments of the search between two rewrites that did not gain
MOST = 4  # experiments for a rewrite: as it starts, and with other values of what it opened
SLOWER = Speedup(0.9, 0.9, 0.9, 0.0)  # what most edits turn out to be

SEARCHES: Mapping[str, Callable[[Space, Point, int], Engine]] = {
    "local": Search,
    "optuna": OptunaSearch,
}


@dataclass
class Walk:
    """A search over some axes of a text, which is its incumbent."""

    text: str
    space: Space
    engine: Engine
    last: tuple[Point, ...] = ()  # what was put off

    def copy(self) -> Walk:
        return replace(self, engine=self.engine.copy())

    def ask(self) -> Edit | None:
        point = self.engine.ask()
        if point is None and self.last:
            point = self.last[0]
        if point is None:
            return None
        old, new = literal(self.text, "CONFIG"), self.space.values(point)
        changes = _changes(old, new)
        words = ", ".join(
            f"{name} {_shown(old[name])} -> {_shown(value)}" for name, value in changes.items()
        )
        return Edit(rewrite(self.text, "CONFIG", changes), words)

    def tell(self, point: Point, tried: Try) -> None:
        self.engine.tell(point, tried.kept, _speedup(tried))
        others = tuple(other for other in self.last if other != point)
        self.last = (*others, point) if tried.put_off else others

    def point_of(self, text: str) -> Point | None:
        """The point of the space that a text is, None if it differs in more than that."""
        try:
            config = literal(text, "CONFIG")
        except Refused:
            return None
        if not isinstance(config, dict) or not self.space.has(config):
            return None
        point = self.space.point(config)
        changes = _changes(literal(self.text, "CONFIG"), self.space.values(point))
        return point if rewrite(self.text, "CONFIG", changes) == text else None


@dataclass
class Trial:
    """A rewrite that is being tried: its walk is over the axes that it opened."""

    name: str
    walk: Walk
    tried: int = 0

    @property
    def over(self) -> bool:
        return self.tried >= MOST or (self.tried > 0 and self.walk.engine.exhausted)

    def copy(self) -> Trial:
        return replace(self, walk=self.walk.copy())

    def ask(self) -> Edit | None:
        if not self.tried:
            return Edit(self.walk.text, f"rewrite: {self.name}")
        edit = self.walk.ask()
        return edit and Edit(edit.text, f"rewrite: {self.name}, {edit.description}")

    def tell(self, point: Point, tried: Try) -> None:
        if self.tried:
            self.walk.tell(point, tried)
        self.tried += 1
        if tried.verdict != "PASS" and self.tried == 1:
            self.tried = MOST  # wrong as it starts: no value mends that


class Tuner:
    """Depends on nothing but what it is told: every choice is made while it is told something."""

    def __init__(self, text: str, seed: int, search: str = "local") -> None:
        self._seed = seed
        self._search = SEARCHES[search]
        self._lull = 0
        self._trial: Trial | None = None
        self._trials: collections.Counter[str] = collections.Counter()
        self._failed: set[tuple[str, str]] = set()  # what did not apply, or gain, and on which text
        self._open(text)
        self._choose()

    def ask(self, situation: Situation) -> Edit | None:
        """The next edit, should those that are pending turn out to be slower."""
        then = self._told(situation.pending) if situation.pending else self
        return (then._trial or then._walk).ask()

    def tell(self, tried: Try) -> None:
        """An edit that is none of the tuner's own, in a tag on which others work too, is where to
        go on from if it was kept, and says nothing of the space if not."""
        point = self._walk.point_of(tried.text)
        if point is not None:
            self._walk.tell(point, tried)
            self._lull += 1
        elif self._trial and (opened := self._trial.walk.point_of(tried.text)) is not None:
            self._trial.tell(opened, tried)
        if tried.kept:
            self._keep(tried.text, same_space=point is not None)
        self._choose()

    def postpones(self, edit: Edit) -> bool:
        point = None if self._trial else self._walk.point_of(edit.text)
        return point is not None and point not in self._walk.last

    def foresee(self, edit: Edit, situation: Situation) -> Edit | None:
        return self.ask(replace(situation, pending=(*situation.pending, edit)))

    def _told(self, edits: Sequence[Edit]) -> Tuner:
        """Another one, which was told that these are slower."""
        then = copy.copy(self)
        then._walk, then._trial = self._walk.copy(), self._trial and self._trial.copy()
        then._trials, then._failed = self._trials.copy(), self._failed.copy()
        for edit in edits:
            then.tell(Try(edit.text, edit.description, "PASS", "REVERT", None, SLOWER))
        return then

    def _keep(self, text: str, same_space: bool) -> None:
        self._lull, self._trial = 0, None
        if same_space:
            self._walk.text = text
        else:
            self._open(text)

    def _open(self, text: str) -> None:
        self._walk = self._opened(text, _axes(text))

    def _opened(self, text: str, axes: Sequence[str]) -> Walk:
        declared, config = literal(text, "SPACE"), literal(text, "CONFIG")
        rules = {"rules": declared["rules"]} if "rules" in declared else {}
        space = Space.of({**{axis: declared[axis] for axis in axes}, **rules}, config)
        return Walk(text, space, self._search(space, space.point(config), self._seed))

    def _choose(self) -> None:
        """End a trial that has nothing left, and begin one when the search needs it."""
        if self._trial and self._trial.over:
            self._failed.add((self._trial.name, self._walk.text))
            self._trial, self._lull = None, LULL - BETWEEN
        if self._trial:
            return
        exhausted = self._walk.engine.exhausted
        if exhausted or self._lull >= LULL:
            self._trial = self._next_trial(again=exhausted)

    def _next_trial(self, again: bool) -> Trial | None:
        """The first rewrite that applies and was not tried yet; or, `again`, was tried least, and
        not on this text."""
        text = self._walk.text
        for name in sorted(REWRITES, key=lambda name: self._trials[name]):
            untried = not self._trials[name] or again
            if not untried or (name, text) in self._failed:
                continue
            changed = rewritten(name, text)
            if changed is None or _size(changed) > MOST_POINTS:
                self._failed.add((name, text))  # asked once for each text
                continue
            self._trials[name] += 1
            new = [axis for axis in _axes(changed) if axis not in _axes(text)]
            return Trial(name, self._opened(changed, new))
        return None


def _axes(text: str) -> list[str]:
    """The axes of a kernel's SPACE."""
    for name in ("CONFIG", "SPACE"):
        value = literal(text, name)
        if not isinstance(value, dict):
            raise Refused(
                f"the tuner needs a dictionary literal {name} in the kernel file, found "
                f"{value!r}: declare CONFIG = {{...}} and SPACE = {{axis: [values], ...}}"
            )
    return [axis for axis in value if axis != "rules"]


def _size(text: str) -> int:
    """How many configurations a SPACE has, rules aside."""
    declared = literal(text, "SPACE")
    return math.prod(len(declared[axis]) for axis in _axes(text))


def _speedup(tried: Try) -> float | None:
    return tried.speedup.ratio if tried.verdict == "PASS" and tried.speedup else None


def _shown(value: object) -> str:
    return "none" if value == "" else str(value)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in new.items() if repr(value) != repr(old[name])}
