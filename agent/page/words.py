"""Figures and somebody else's texts as words that a reader can trust."""

from __future__ import annotations

import re

# Controls, and the marks that turn or hide what follows them: a terminal would obey them, and a
# diff would show another text than the compiler reads (Boucher and Anderson, Trojan Source, 2021).
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def visible(text: str) -> str:
    """The text, with what nobody would see in it spelled out: `\\u202e`."""
    return UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def us(value: float) -> str:
    """Microseconds, to a digit that is worth reading."""
    return f"{value:.4g} µs" if value < 1e4 else f"{value:.0f} µs"


def duration(seconds: float) -> str:
    """`1 h 5 min`, `12 min`, `40 s`"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
