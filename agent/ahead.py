"""Kernels' binaries, compiled on the CPU while the GPU measures something else.

What a digest says is its kernel's own word: by it a candidate is skipped, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from .errors import JudgeFailed
from .report import Report


class Ahead:
    """Asks for the binary of a text, and may be told of one before it is needed."""

    def __init__(self, ask: Callable[[str], Future[Report]]) -> None:
        self._ask = ask
        self._begun: dict[str, Future[Report]] = {}
        self._broken = False

    def begin(self, text: str) -> None:
        """Have it compiled while the caller does something else."""
        if not self._broken and text not in self._begun:
            self._begun[text] = self._ask(text)

    def of(self, text: str) -> Report | None:
        """What there is to know of it. None once that has failed: a run goes on without."""
        self.begin(text)
        try:
            return None if self._broken else self._begun.pop(text).result()
        except JudgeFailed:
            self._broken = True
            return None
