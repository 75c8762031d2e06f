"""What a run shows while it runs: a line for every experiment and, on a terminal, a live last
line with what is tried, the best so far, kept, reverted, and the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from .records import Experiment, Proposal, one_line
from .report import ratio
from .roster import Place

STYLES = {"KEEP": "bold green", "starter": "bold", "REVERT": "dim", "UNDECIDED": "yellow"}
REASON_WIDTH = 100


def word(experiment: Experiment) -> str:
    """An experiment in one word: the decision, or the verdict where it decided."""
    if experiment.verdict != "PASS":
        return experiment.verdict
    return experiment.decision or "starter"


def line(experiment: Experiment) -> Text:
    """` 12  KEEP       1.41x [1.36, 1.46]    width 1 -> 8`"""
    what = word(experiment)
    speedup = str(experiment.speedup) if experiment.speedup and experiment.verdict == "PASS" else ""
    text = Text(f"{experiment.experiment:>4}  ")
    text.append(f"{what:<9}", STYLES.get(what, "red"))
    text.append(f"  {speedup:<22}  {experiment.description}")
    if experiment.verdict != "PASS":
        text.append(f": {short(experiment.reason)}", "red")
    return text


def short(reason: str | None) -> str:
    words = one_line(reason or "no reason given")
    return words if len(words) <= REASON_WIDTH else words[: REASON_WIDTH - 1] + "…"


@dataclass
class Status:
    """The live last line, and below it one for each worker where there are several. `ends` is on
    the clock of `time.monotonic`."""

    begins: float
    ends: float | None
    workers: Callable[[], Sequence[Place]] = tuple
    trying: dict[int, str] = field(default_factory=dict)
    kept: int = 0
    reverted: int = 0
    best: float = 1.0
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def count(self, experiment: Experiment) -> None:
        self.trying.pop(experiment.experiment, None)
        if experiment.kept and experiment.speedup:
            self.kept += 1
            self.best *= experiment.speedup.ratio
        elif not experiment.starter:
            self.reverted += 1

    def __rich__(self) -> RenderableType:
        figures = f"best {ratio(self.best)}x   kept {self.kept}   reverted {self.reverted}"
        words = "  ".join(f"{number}: {what}" for number, what in self.trying.items())
        trying = Text(words, no_wrap=True, overflow="ellipsis")  # gives way on narrow ones
        row: list[RenderableType] = [self.spinner, trying, Text(figures)]
        if self.ends is not None:
            left_s = max(0.0, self.ends - time.monotonic())
            total_s = self.ends - self.begins
            row += [
                ProgressBar(total=total_s, completed=total_s - left_s, width=10),
                Text(f"{clock(left_s)} left"),
            ]
        table = Table.grid(padding=(0, 2, 0, 0))
        for column in row:
            table.add_column(no_wrap=column is not trying)
        table.add_row(*row)
        places = self.workers()
        return Group(table, workers_table(places)) if len(places) > 1 else table


def workers_table(places: Sequence[Place]) -> Table:
    """A row for each worker: where it is, what it judges and for how long."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("worker", "judged", "for", "what it judges now"):
        table.add_column(column, justify="right" if column in ("judged", "for") else "left")
    for number, place in enumerate(places):
        since, now = _now(place)
        named = Text(f"{number}  {place.where}".rstrip())
        table.add_row(named, str(place.judged), since, Text(now, "red" if place.gone else ""))
        if place.lost and not place.gone:
            lost = f"{len(place.lost)} lost here, the last: {short(place.lost[-1])}"
            table.add_row("", "", "", Text(lost, "yellow"))
    return table


def _now(place: Place) -> tuple[str, str]:
    """For how long, and what."""
    if place.gone:
        return "", f"gone: {short(place.gone)}"
    if place.kernel:
        return clock(max(0.0, time.time() - place.since)), f"{place.kernel}, {place.what}"
    return "", "waits" if place.where else "is not there yet"


def clock(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


class ConsoleDisplay:
    """Shows the run on one kernel, and what its workers are at. `past` are the experiments that it
    had before."""

    def __init__(
        self,
        console: Console,
        past: list[Experiment],
        budget_s: float | None,
        workers: Callable[[], Sequence[Place]],
    ) -> None:
        now = time.monotonic()
        self._console = console
        self._status = Status(now, None if budget_s is None else now + budget_s, workers)
        for experiment in past:
            self._status.count(experiment)

    def live(self) -> AbstractContextManager[object]:
        """The live line, while in this context; nothing where there is no terminal."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(self._status, console=self._console, refresh_per_second=4, transient=True)

    def trying(self, experiment: int, what: str) -> None:
        self._status.trying[experiment] = what

    def finished(self, experiment: Experiment) -> None:
        self._status.count(experiment)
        self._console.print(line(experiment), soft_wrap=True, highlight=False)

    def failed(self, proposal: Proposal) -> None:
        """Not counted among the reverted: there was nothing to revert."""
        text = Text(f"{proposal.experiment:>4}  no edit    {short(proposal.failure)}", "yellow")
        self._console.print(text, soft_wrap=True, highlight=False)
