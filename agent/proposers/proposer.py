"""What a proposer is, what it is told, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..report import Decision, Report, Speedup, Verdict
from ..usage import Usage


@dataclass(frozen=True)
class Try:
    """An edit that was judged. `speedup` is over the incumbent of that moment, None where
    nothing was timed; a wrong kernel may have one. `put_off` says that it was not judged."""

    text: str
    description: str
    verdict: Verdict
    decision: Decision | None
    reason: str | None
    speedup: Speedup | None
    put_off: bool = False

    @property
    def kept(self) -> bool:
        return self.decision == "KEEP"


@dataclass(frozen=True)
class Edit:
    """A proposed kernel file: its whole text, in a few words what was changed, and what the
    proposal took, where that is tokens or money."""

    text: str
    description: str
    usage: Usage | None = None


@dataclass(frozen=True)
class Situation:
    """What there is to improve: the incumbent, the report on it with its timings, and what was
    tried on this kernel, oldest first. `failed` says of the proposals since the last try, oldest
    first, why nothing came of them; `reference` is the file that defines the op; `pending` are
    edits that were proposed and are being judged, oldest first."""

    kernel: str
    op: str
    text: str
    report: Report
    history: tuple[Try, ...]
    failed: tuple[str, ...] = ()
    reference: str = ""
    pending: tuple[Edit, ...] = ()


class ProposalFailed(Exception):
    """Nothing came that could be judged. The message says why, to the user and to the proposer's
    next turn; `usage` is what was spent all the same."""

    def __init__(self, reason: str, usage: Usage | None = None) -> None:
        super().__init__(reason)
        self.usage = usage


class Proposer(Protocol):
    """Proposes edits of one kernel, and learns from what became of them.

    When a run is taken up again, `tell` is first called for every experiment of the ledger, in
    order: what `ask` gives next may depend on nothing but that, the situation and, for a proposer
    that searches by itself, the seed. It may be asked for more while edits are pending, and is told
    of each in the order in which it proposed them.
    """

    def ask(self, situation: Situation) -> Edit | None:
        """The next edit of the incumbent, or None when there is nothing left to try. Raises
        ProposalFailed, after which it is asked again; Refused, which ends the run."""

    def tell(self, tried: Try) -> None:
        """What became of an edit."""


@runtime_checkable
class Foresees(Protocol):
    """A proposer with an order of its own: it can say for nothing what it would propose next."""

    def postpones(self, edit: Edit) -> bool:
        """Whether it asks for this edit again, last of all, when it is told that it is put off."""

    def foresee(self, edit: Edit, situation: Situation) -> Edit | None:
        """Its next edit, should this one turn out to be slower."""
