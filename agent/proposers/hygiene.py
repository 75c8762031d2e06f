"""What strangers say and write, before it is shown, kept or judged. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..records import one_line

SHORTEST_SECRET = 8  # what is shorter, such as a flag, is found everywhere
MOST_WORDS = 200


@dataclass(frozen=True)
class Secrets:
    """Variables, by name, that a stranger was given."""

    variables: Mapping[str, str]

    def clean(self, words: str) -> str:
        """In one line, without a secret, and with nothing that a terminal obeys."""
        for value in self._values.values():
            words = words.replace(value, "***")
        printable = "".join(c if c.isprintable() else " " for c in words)
        return one_line(printable)[:MOST_WORDS]

    def found_in(self, text: str) -> str | None:
        """Which of them a kernel file would carry into its own process."""
        return next((name for name, value in self._values.items() if value in text), None)

    @property
    def _values(self) -> dict[str, str]:
        return {n: value for n, value in self.variables.items() if len(value) >= SHORTEST_SECRET}
