"""What proposals take: tokens, and money where somebody says how much. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Usage:
    """Tokens and US dollars. None is unknown, which is not nothing."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None

    @property
    def tokens(self) -> int | None:
        return _add(self.input_tokens, self.output_tokens)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            _add(self.input_tokens, other.input_tokens),
            _add(self.output_tokens, other.output_tokens),
            _add(self.cost_usd, other.cost_usd),
        )

    def __str__(self) -> str:
        tokens = "tokens unknown" if self.tokens is None else f"{self.tokens:,} tokens"
        if self.cost_usd is None:
            return tokens
        few = 0 < self.cost_usd < 0.1
        return f"{tokens}, ${self.cost_usd:.2g}" if few else f"{tokens}, ${self.cost_usd:,.2f}"


NOTHING = Usage(0, 0, 0.0)


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens read, and for a million written."""

    input_usd: float
    output_usd: float

    def of(self, usage: Usage) -> Usage:
        """The same with its cost, if nobody else said what that is."""
        if usage.cost_usd is not None or usage.input_tokens is None or usage.output_tokens is None:
            return usage
        read, written = usage.input_tokens * self.input_usd, usage.output_tokens * self.output_usd
        return Usage(usage.input_tokens, usage.output_tokens, (read + written) / 1e6)


def reckoned(parts: Iterable[Number | None]) -> Number | None:
    """The sum for a limit to hold: what is not known counts as the largest part that is. None
    where nothing is known."""
    parts = list(parts)
    known = [part for part in parts if part is not None]
    if parts and not known:
        return None
    return sum(known) + (len(parts) - len(known)) * max(known, default=0)


def total(usages: Iterable[Usage]) -> Usage:
    """Unknown as soon as one part of it is."""
    return sum(usages, NOTHING)


def _add(one: Number | None, other: Number | None) -> Number | None:
    return None if one is None or other is None else one + other
