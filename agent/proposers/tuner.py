"""The built-in proposer: tries values of the kernel's `SPACE` in its `CONFIG`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ..errors import Refused
from ..report import Speedup
from .literals import literal, rewrite
from .proposer import Edit, Situation, Try
from .search import Search
from .space import Point, Space

SLOWER = Speedup(0.9, 0.9, 0.9, 0.0)  # what most edits turn out to be


class Tuner:
    """An iterated local search over the configurations that the kernel file itself declares."""

    def __init__(self, text: str, seed: int) -> None:
        self._seed = seed
        self._open(text)

    def ask(self, situation: Situation) -> Edit | None:
        point = self._search.ask()
        if point is None:
            return None
        old, new = literal(self._text, "CONFIG"), self._space.values(point)
        changes = _changes(old, new)
        description = ", ".join(f"{name} {old[name]} -> {value}" for name, value in changes.items())
        return Edit(rewrite(self._text, "CONFIG", changes), description)

    def tell(self, tried: Try) -> None:
        """An edit that is none of the tuner's own, in a tag on which others work too, is where to
        go on from if it was kept, and says nothing of the space if not."""
        point = self._point_of(tried.text)
        if point is not None:
            speedup = tried.speedup.ratio if tried.verdict == "PASS" and tried.speedup else None
            self._search.tell(point, tried.kept, speedup)
        if tried.kept and point is not None:
            self._text = tried.text
        elif tried.kept:
            self._open(tried.text)

    def foresee(self, edit: Edit, situation: Situation) -> Edit | None:
        then = copy.copy(self)
        then._search = self._search.copy()
        then.tell(Try(edit.text, edit.description, "PASS", "REVERT", None, SLOWER))
        return then.ask(situation)

    def _open(self, text: str) -> None:
        config, declared = literal(text, "CONFIG"), literal(text, "SPACE")
        for name, value in (("CONFIG", config), ("SPACE", declared)):
            if not isinstance(value, dict):
                raise Refused(
                    f"the tuner needs a dictionary literal {name} in the kernel file, found "
                    f"{value!r}: declare CONFIG = {{...}} and SPACE = {{axis: [values], ...}}"
                )
        self._space = Space.of(declared, config)
        self._search = Search(self._space, self._space.point(config), self._seed)
        self._text = text

    def _point_of(self, text: str) -> Point | None:
        """The point of the space that a text is, None if it differs in more than that."""
        try:
            config = literal(text, "CONFIG")
        except Refused:
            return None
        if not isinstance(config, dict) or not self._space.has(config):
            return None
        point = self._space.point(config)
        changes = _changes(literal(self._text, "CONFIG"), self._space.values(point))
        return point if rewrite(self._text, "CONFIG", changes) == text else None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in new.items() if repr(value) != repr(old[name])}
