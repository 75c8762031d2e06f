"""The report as Markdown, for a terminal, a file and the text of a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ..records import one_line
from .story import MEANING, Case, KernelStory, Step, Story, Total
from .words import us, visible


def markdown(story: Story) -> str:
    return "\n".join(_story(story)) + "\n"


def plain(text: object) -> str:
    """Somebody else's words, in one line and without a meaning in Markdown or HTML.

    `@name` would notify people, and `#1` and links point elsewhere, in a pull request.
    """
    words = (
        visible(one_line(str(text))).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    words = re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", words)
    return re.sub(r"@(?=\w)|:(?=//)", r"\g<0>&#8203;", words)


def fenced(text: str, language: str) -> str:
    """A code block that nothing inside of `text` ends."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def _story(story: Story) -> Iterator[str]:
    yield f"# autokernel: {plain(story.tag)}"
    if len(story.kernels) > 1:
        yield ""
        yield from (f"- {plain(k.kernel)}: {plain(k.claim)}; {k.tally}" for k in story.kernels)
    for kernel in story.kernels:
        yield from _kernel(kernel)
    yield "\n## Measured with\n"
    for setup in story.setups:
        yield f"{setup.whose}:\n"
        yield from (f"- {name}: {plain(value)}" for name, value in setup.facts.items())
        yield ""
    yield (
        "Each speedup is a ratio of two kernels that were sampled in turn on the same inputs, over "
        "blocks with a fresh layout of buffers, spread over fresh processes. None is a ratio of "
        "times from different runs."
    )


def _kernel(story: KernelStory) -> Iterator[str]:
    yield f"\n## {plain(story.kernel)}\n"
    yield f"**{plain(story.claim)}**\n"
    counts = ", ".join(f"{n} {outcome} ({MEANING[outcome]})" for outcome, n in story.counts.items())
    yield f"{len(story.tried)} experiments{': ' if counts else ''}{counts}."
    if story.took:
        yield f"\n{plain(story.took[0].upper() + story.took[1:])}."
    if story.total:
        yield from _total(story.total)
    if story.kept:
        yield "\n### Kept\n"
        yield from _table(
            ("experiment", "change", "speedup over the kernel before", "confidence"),
            (_kept_row(step) for step in story.kept),
        )
    for step in story.kept:
        yield from _kept(step)
    others = [step for step in story.tried if not step.experiment.kept]
    if others:
        yield f"\n<details><summary>Not kept: {len(others)} experiments</summary>\n"
        yield from _table(
            ("experiment", "outcome", "speedup", "change", "reason"), map(_other_row, others)
        )
        yield "\n</details>"


def _total(total: Total) -> Iterator[str]:
    yield "\n### The whole gain\n"
    yield from _cases(total.cases)
    yield f"\nSeed {total.closing.seed}; {'; '.join(total.checks)}. To measure it again:\n"
    yield fenced("\n".join(total.replay), "sh")


def _kept_row(step: Step) -> Sequence[object]:
    e, speed = step.experiment, step.speedup
    return e.experiment, e.description, speed or "", f"{speed.confidence:g}" if speed else ""


def _other_row(step: Step) -> Sequence[object]:
    e, speed = step.experiment, "" if step.wrong else step.speedup or "not timed"
    taken = f"({step.usage}) " if step.usage else ""
    return e.experiment, step.outcome, speed, e.description, f"{taken}{e.reason or ''}".strip()


def _by(step: Step) -> str:
    """Who proposed it, and what that took."""
    return plain(step.experiment.proposer) + (f" ({plain(step.usage)})" if step.usage else "")


def _kept(step: Step) -> Iterator[str]:
    e = step.experiment
    yield f"\n#### {e.experiment}: {plain(e.description)}\n"
    yield from _cases(step.cases)
    checks = "; ".join(step.checks)
    yield f"\nCommit {e.commit[:12]} by {_by(step)}, seed {e.seed}; {checks}.\n"
    yield fenced(step.diff, "diff")
    yield "\nTo measure it again:\n"
    yield fenced("\n".join(step.replay), "sh")


def _cases(cases: Sequence[Case]) -> Iterator[str]:
    """A row for each timed case."""
    columns = (
        "case",
        "before",
        "after",
        "speedup",
        "samples of each",
        "of the roof",
        "over others",
    )
    yield from _table(columns, map(_case_row, cases))


def _case_row(case: Case) -> Sequence[object]:
    return (
        case.name,
        us(case.before_us),
        us(case.after_us),
        case.speedup,
        f"{case.samples} in {len(case.ratios)} blocks",
        f"{case.pct_roof:.3g} %" if case.pct_roof is not None else "",
        "; ".join(f"{name}: {speedup}" for name, speedup in case.others.items()),
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(map(plain, row))} |"
