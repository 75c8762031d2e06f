"""Where edits come from: a small file for each proposer, and an entry in `PROPOSERS`."""

from __future__ import annotations

from collections.abc import Callable

from .proposer import Edit, Proposer
from .tuner import Tuner

# Each is opened with the text of the kernel to start from, and a seed.
PROPOSERS: dict[str, Callable[[str, int], Proposer]] = {"tuner": Tuner}

__all__ = ["PROPOSERS", "Edit", "Proposer"]
