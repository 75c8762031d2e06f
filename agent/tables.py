"""What the command line shows of a ledger, when a run has ended and later."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Literal

from rich.table import Table
from rich.text import Text

from . import schedule
from .display import STYLES, short, word
from .records import Closing, Experiment, Proposal
from .report import Judgement, Report, Timing, ratio
from .schedule import Standing
from .usage import Usage, total


def experiments_table(experiments: Sequence[Experiment]) -> Table:
    table = _table("experiment", "kernel", "outcome", "speedup over previous", "change")
    for e in experiments:
        outcome = Text(word(e), STYLES.get(word(e), "red"))
        change = e.description if e.verdict == "PASS" else f"{e.description}: {short(e.reason)}"
        speedup = str(e.speedup) if e.speedup and e.verdict == "PASS" else ""
        table.add_row(str(e.experiment), e.kernel, outcome, speedup, Text(change))
    return table


def kept_table(kept: Sequence[Experiment]) -> Table:
    table = _table("experiment", "kept change", "speedup over previous")
    for e in kept:
        table.add_row(str(e.experiment), Text(e.description), str(e.speedup))
    return table


def replay_table(then: Experiment, now: Judgement) -> Table:
    """An experiment as it was judged, and as it is judged again."""
    table = _table("", "verdict", "decision", "speedup over previous")
    for when, found in (("then", then), ("now", now)):
        decision, speedup = found.decision or "starter", found.speedup
        table.add_row(when, found.verdict, decision, str(speedup) if speedup else "")
    return table


def status_table(standings: Sequence[Standing]) -> Table:
    """The queue: from which kernel most is to be expected comes first."""
    table = _table("kernel", "share", "experiments", "kept", "faster", "of roof", "may yet save")
    for s in sorted(standings, key=lambda s: -s.expected):
        roof = "" if s.pct_roof is None else f"{s.pct_roof:.0f} %"
        figures = f"{s.share:.1%}", str(s.tried), str(s.kept), f"{ratio(s.gained)}x", roof
        table.add_row(s.kernel, *figures, f"{s.expected:.1%}")
    return table


def whole_line(standings: Sequence[Standing]) -> str:
    share = sum(s.share for s in standings)
    return (
        f"the whole, of which these are {share:.0%}: {ratio(schedule.whole(standings))}x by "
        "Amdahl's law, from what was kept"
    )


def run_line(writer: str | None, rostered: bool) -> str:
    """Whether a run is on, in the process `writer`; `rostered` is whether one left word of its
    workers, which it takes away at its end."""
    if writer:
        return f"a run is on, in process {writer}" + ("" if rostered else ": it begins, or ends")
    if rostered:
        return (
            "no run is on: the last one was killed; nothing that was recorded is lost: start it "
            "again to go on"
        )
    return "no run is on"


def closing_line(closing: Closing | None, commit: str) -> str:
    """The whole gain of the kernel in `commit`, in one sentence."""
    if closing is None or closing.commit != commit:
        return "total: not measured, the run ended before that"
    if closing.speedup is None or closing.verdict != "PASS":
        return f"total: not measured: {closing.verdict}: {short(closing.reason)}"
    speed = closing.speedup
    return f"total: {speed} over the starter, measured afresh, confidence {speed.confidence:g}"


def proposals_line(proposals: Sequence[Proposal]) -> str:
    """What the proposals took, those that came to nothing too."""
    failed = sum(proposal.failure is not None for proposal in proposals)
    taken = total(proposal.usage for proposal in proposals)
    return f"proposals: {len(proposals)}, {failed} came to nothing; {taken}"


def details(experiment: Experiment, usage: Usage | None) -> Iterator[str]:
    """All that was measured of one experiment, line by line, and what proposing it took."""
    e = experiment
    yield f"experiment {e.experiment}  {word(e)}  {e.description}"
    yield f"kernel     {e.kernel} ({e.kernel_type})"
    yield f"commit     {e.commit}"
    yield f"compared   with {'nothing: this is the starter' if e.starter else e.parent}"
    yield f"proposer   {e.proposer}, seed {e.seed}, {e.seconds:.1f} s, {e.started}"
    if usage:
        yield f"proposal   {usage}"
    yield f"verdict    {e.verdict}" + (f": {e.reason}" if e.reason else "")
    for raw in e.reports:
        report = Report.parse(raw)
        yield from (f"           {item}" for item in report.not_passed)
        for timing in report.timings:
            whose = "the screen's" if raw["effort"] == "quick" else "the judgement's"
            yield from _timing(timing, "" if e.starter else f" ({whose})")


def _timing(timing: Timing, whose: str) -> Iterator[str]:
    roof = f", {timing.pct_roof:.3g} % of the roof" if timing.pct_roof is not None else ""
    yield f"timing     {timing.case}: {timing.time_us:.6g} us{roof}{whose}"
    for other, comparison in timing.comparisons.items():
        speed, decision = comparison.speedup, comparison.decision
        yield f"           against {other}: {speed}, confidence {speed.confidence:g}, {decision}"
        blocks = zip(comparison.blocks, comparison.ratios, strict=True)
        for number, ((theirs, ours), gain) in enumerate(blocks, start=1):
            before, after = statistics.median(theirs), statistics.median(ours)
            yield (
                f"             block {number}: {before:.6g} us -> {after:.6g} us, {gain:.4g}x "
                f"(medians of {len(theirs)} samples, of as many, and of their pairs' ratios)"
            )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["right", "left"] = "right" if column == "experiment" else "left"
        table.add_column(column, justify=justify, no_wrap=True)
    return table
