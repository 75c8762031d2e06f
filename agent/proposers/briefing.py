"""What a coding agent or a model is told of the situation. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from ..display import short
from .proposer import Edit, Situation, Try

MOST_TRIES = 40  # told in a line each, the last ones
MOST_DIFFS = 4  # of the last tries that were not kept
DIFF_LINES = 80


def situation_text(situation: Situation) -> str:
    """How fast the kernel is, against what, and what was tried, as Markdown."""
    return "\n".join(
        [
            f"# {situation.kernel}: op {situation.op}",
            "",
            *_measured(situation),
            *_history(situation.history),
            *_pending(situation.pending),
            *_failed(situation.failed),
            *_diffs(situation),
        ]
    )


def _measured(situation: Situation) -> Iterator[str]:
    raw = situation.report.raw
    kernel = raw["kernels"][0]
    known = {"backend": kernel.get("backend"), "runs on": kernel.get("device")}
    yield "## The device"
    yield ""
    for name, value in {**known, **raw["environment"]}.items():
        yield from _figures(name, value)
    yield ""
    yield "## The kernel as it is, measured"
    for timing in kernel["timings"]:
        yield ""
        yield f"### {timing['case']}"
        yield ""
        rest = {name: value for name, value in timing.items() if name not in ("case", "name")}
        for name, comparison in rest.pop("comparisons").items():
            if name != "baseline":
                yield f"- {comparison['ratio']:.3f}x the speed of {name}"
        for name, value in rest.items():
            yield from _figures(name, value)
    for line in situation.report.not_passed:
        yield f"- {short(line)}"
    yield ""


def _figures(name: str, value: Any) -> Iterator[str]:
    """Whatever figures a report has: a new one needs no word here to be told."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _figures(f"{name}.{key}", inner)
    elif isinstance(value, list):
        yield f"- {name}: {', '.join(map(str, value))}"
    elif value is not None and value != "":
        yield f"- {name}: {value:.6g}" if isinstance(value, float) else f"- {name}: {value}"


def _history(history: Sequence[Try]) -> Iterator[str]:
    yield "## What was tried, oldest first"
    yield ""
    if not history:
        yield "Nothing yet."
    for number, tried in list(enumerate(history, start=1))[-MOST_TRIES:]:
        yield f"{number}. {_line(tried)}"
    yield ""


def _line(tried: Try) -> str:
    """One try: what became of it, and why."""
    if tried.verdict != "PASS":
        return f"{tried.verdict}: {tried.description}: {short(tried.reason)}"
    speed = f" {tried.speedup} the speed before it" if tried.speedup else ""
    return f"{tried.decision}{speed}: {tried.description}"


def _pending(pending: Sequence[Edit]) -> Iterator[str]:
    if pending:
        yield "## What is being judged at the moment: propose something else"
        yield ""
        yield from (f"- {short(edit.description)}" for edit in pending)
        yield ""


def _failed(failed: Sequence[str]) -> Iterator[str]:
    if failed:
        yield "## Your last answers could not be used"
        yield ""
        yield from (f"- {short(reason)}" for reason in failed)
        yield ""


def _diffs(situation: Situation) -> Iterator[str]:
    """The last tries that were not kept, as they differ from the kernel as it is."""
    tried = [t for t in situation.history if not t.kept and t.text != situation.text]
    for t in tried[-MOST_DIFFS:]:
        lines = difflib.unified_diff(
            situation.text.splitlines(), t.text.splitlines(), "as it is", "tried", lineterm="", n=1
        )
        yield f"## Not kept: {_line(t)}"
        yield ""
        yield "```diff"
        yield from list(lines)[:DIFF_LINES]
        yield "```"
        yield ""
