"""Where edits come from: a small file for each proposer, and an entry in `PROPOSERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .command import Command, probe
from .llm import Llm
from .proposer import Edit, ProposalFailed, Proposer, Situation, Try
from .settings import Settings
from .tuner import Tuner

# Each is opened with the text of the kernel to start from, a seed, and what the user settled.
# Opening raises Refused where a proposer cannot work so.
PROPOSERS: Mapping[str, Callable[[str, int, Settings], Proposer]] = {
    "tuner": lambda text, seed, settings: Tuner(text, seed),
    "command": lambda text, seed, settings: Command(settings),
    "llm": lambda text, seed, settings: Llm(settings),
}


def shortcomings(proposer: str, settings: Settings) -> tuple[str, ...]:
    """What a proposer can do on this system that it should not, in words."""
    confined = proposer == "command" and settings.sandbox != "off"
    return probe().lacks if confined else ()


__all__ = [
    "PROPOSERS",
    "Edit",
    "ProposalFailed",
    "Proposer",
    "Settings",
    "Situation",
    "Try",
    "shortcomings",
]
