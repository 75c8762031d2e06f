"""The built-in proposer: tries values of the kernel's `SPACE` in its `CONFIG`."""

from __future__ import annotations

from ..errors import Refused
from .literals import literal, rewrite
from .proposer import Edit, Situation, Try
from .search import Search
from .space import Space


class Tuner:
    """An iterated local search over the configurations that the kernel file itself declares."""

    def __init__(self, text: str, seed: int) -> None:
        config, declared = literal(text, "CONFIG"), literal(text, "SPACE")
        for name, value in (("CONFIG", config), ("SPACE", declared)):
            if not isinstance(value, dict):
                raise Refused(
                    f"the tuner needs a dictionary literal {name} in the kernel file, found "
                    f"{value!r}: declare CONFIG = {{...}} and SPACE = {{axis: [values], ...}}"
                )
        self._space = Space.of(declared, config)
        self._search = Search(self._space, self._space.point(config), seed)
        self._text = text

    def ask(self, situation: Situation) -> Edit | None:
        point = self._search.ask()
        if point is None:
            return None
        old, new = literal(self._text, "CONFIG"), self._space.values(point)
        changes = {name: value for name, value in new.items() if repr(value) != repr(old[name])}
        description = ", ".join(f"{name} {old[name]} -> {value}" for name, value in changes.items())
        return Edit(rewrite(self._text, "CONFIG", changes), description)

    def tell(self, tried: Try) -> None:
        speedup = tried.speedup.ratio if tried.verdict == "PASS" and tried.speedup else None
        point = self._space.point(literal(tried.text, "CONFIG"))
        self._search.tell(point, tried.kept, speedup)
        if tried.kept:
            self._text = tried.text
