"""Where edits come from: a small file for each proposer, and an entry in `PROPOSERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .agents import AGENTS
from .command import Command, probe
from .llm import Llm
from .proposer import Edit, Foresees, ProposalFailed, Proposer, Situation, Try
from .settings import Settings
from .tuner import SEARCHES, Tuner

# Each is opened with the text of the kernel to start from, a seed, and what the user settled.
# Opening raises Refused where a proposer cannot work so.
PROPOSERS: Mapping[str, Callable[[str, int, Settings], Proposer]] = {
    "tuner": lambda text, seed, settings: Tuner(text, seed, settings.search),
    "command": lambda text, seed, settings: Command(settings),
    "llm": lambda text, seed, settings: Llm(settings),
}


def shortcomings(proposer: str, settings: Settings) -> tuple[str, ...]:
    """What a proposer can do on this system that it should not, in words."""
    confined = proposer == "command" and settings.sandbox != "off"
    return probe().lacks if confined else ()


def secrets(settings: Settings) -> frozenset[str]:
    """The variables that are for proposers alone: neither judge nor kernel is to have them."""
    keys = (key for agent in AGENTS.values() for key in agent.keys)
    return frozenset((settings.key_env, *settings.agent_env, *keys))


__all__ = [
    "PROPOSERS",
    "SEARCHES",
    "Edit",
    "Foresees",
    "ProposalFailed",
    "Proposer",
    "Settings",
    "Situation",
    "Try",
    "secrets",
    "shortcomings",
]
