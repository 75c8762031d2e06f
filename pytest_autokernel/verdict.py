"""What can become of a case: the words of the judge's answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pytest_autokernel.op import Case


class Verdict(StrEnum):
    """About correctness."""

    PASS = "PASS"
    FAIL = "FAIL"
    TIMEOUT = "TIMEOUT"
    CRASH = "CRASH"


@dataclass(frozen=True)
class Outcome:
    """What judging a case came to. `worst` is the largest error as a share of its allowance;
    `completed` counts the calls that were made and compared. `hybrid` are the torch operators
    that the kernel called by the user's permission."""

    verdict: Verdict
    case: Case
    completed: int
    worst: float = 0.0
    reason: str | None = None
    hybrid: tuple[str, ...] = ()


class JudgeError(Exception):
    """The judge itself failed: no verdict about any kernel."""


class CandidateError(Exception):
    """The candidate gave no result: a verdict and its reason."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason
