"""What the user settles of proposers; the tuner needs none of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Nothing yet."""
