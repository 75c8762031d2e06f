"""What a proposer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Edit:
    """A proposed kernel file: its whole text, and in a few words what was changed."""

    text: str
    description: str


class Proposer(Protocol):
    """Proposes edits of one kernel, and learns from what became of them.

    When a run is taken up again, `tell` is first called for every experiment of the ledger, in
    order: what `ask` gives next may depend on nothing but that and the seed.
    """

    def ask(self) -> Edit | None:
        """The next edit of the incumbent, or None when there is nothing left to try."""

    def tell(self, text: str, kept: bool, speedup: float | None) -> None:
        """`text` was judged: whether it was kept, and its speedup over the incumbent of that
        moment, None where it was wrong or not timed."""
