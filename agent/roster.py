"""The workers of a run, as others may see them while it goes: `workers.json` beside the ledger.

The run writes it at every change and removes it at its end. One that is left behind by a run that
was killed says nothing; whether its writer lives is told by the lock that a run holds (ledger.py).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

SCHEMA = 1


@dataclass(frozen=True)
class Place:
    """Where one worker after another sits. `where` is the present one's GPU and machine, empty
    while none is there; `kernel` and `what` are what it judges, since `since` (seconds since the
    epoch); `lost` says why the ones before it were, `gone` why none follows."""

    where: str = ""
    kernel: str | None = None
    what: str = ""
    since: float = 0.0
    judged: int = 0
    lost: tuple[str, ...] = ()
    gone: str | None = None


class Roster:
    """The file, of the one run that writes it; it ends with the context."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Roster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:  # a thread that still waits for a machine may have a word later
            self._closed = True
            self._file.unlink(missing_ok=True)

    def write(self, places: Sequence[Place]) -> None:
        """Whole at every moment, and not synced: it is worth nothing after a crash."""
        new = self._file.with_name(self._file.name + ".new")
        text = json.dumps({"schema": SCHEMA, "workers": [asdict(place) for place in places]})
        # No run ends because it cannot be watched; the ledger tells of a full disk.
        with self._lock, suppress(OSError):
            if not self._closed:
                new.write_text(text + "\n")
                new.replace(self._file)


def read(file: Path) -> list[Place] | None:
    """None where there is none, or one of another version."""
    try:
        found = json.loads(file.read_text())
        if found["schema"] != SCHEMA:
            return None
        return [Place(**{**place, "lost": (*place["lost"],)}) for place in found["workers"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
