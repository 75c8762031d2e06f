"""A run of the agent from the command to its last word: set up, work, tell, clean up."""

from __future__ import annotations

import math
import shlex
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from . import stop
from .display import ConsoleDisplay
from .errors import JudgeFailed, Refused
from .judge import PytestJudge
from .ledger import Ledger, open_ledger
from .loop import Loop
from .proposers import Settings, shortcomings
from .repository import Repository
from .tables import closing_line, kept_table, proposals_line
from .usage import Usage, reckoned

PATIENCE = 5  # proposals in a row that come to nothing


@dataclass(frozen=True)
class Options:
    """What was asked for. The limits are for all kernels together."""

    files: tuple[Path, ...]
    tag: str
    budget_s: float | None
    experiments: int | None
    seed: int
    proposer: str
    settings: Settings
    max_cost_usd: float | None
    max_tokens: int | None


def optimize(options: Options, console: Console) -> None:
    """Work on one kernel after the other. Ctrl-C and a broken judge end it between two
    experiments: what was recorded stays, and is shown, before the exception goes on."""
    with closing(Repository(Path.cwd())) as repository:
        base = repository.head()
        kernels = [*dict.fromkeys(map(repository.committed, options.files))]
        with open_ledger(repository, options.tag) as ledger:
            for kernel in kernels:
                _check_unchanged(ledger, kernel, base)
            try:
                _work(options, kernels, base, ledger, console)
            except (KeyboardInterrupt, JudgeFailed):
                ledger.heal()
                _summarise(kernels, ledger, console)
                again = shlex.join([*map(str, options.files), "--tag", options.tag])
                again += "" if options.proposer == "tuner" else ", with the same options"
                _print(console, f"stopped before its end; to go on: autokernel optimize {again}")
                raise
            _summarise(kernels, ledger, console)


def _check_unchanged(ledger: Ledger, kernel: str, base: str) -> None:
    """A tag is one line of work: the kernel in HEAD has to be a step of it."""
    text = ledger.repository.text
    steps = [e.commit for e in ledger.of(kernel) if e.kept or e.starter] or [ledger.tip or base]
    if text(base, kernel) not in [text(step, kernel) for step in steps]:
        raise Refused(
            f"{kernel} in HEAD is neither the starter of tag {ledger.tag!r} nor any kernel that it "
            "kept: choose another --tag for the changed file"
        )


def _work(
    options: Options, kernels: Sequence[str], base: str, ledger: Ledger, console: Console
) -> None:
    """Each kernel gets its share of what the ones before it have left."""
    began, before, paid = time.monotonic(), _tried(ledger), len(ledger.proposals)
    scratch = ledger.folder / "scratch"
    with ledger.repository.worktree(ledger.folder / "worktree", ledger.tip or base) as worktree:
        for left, kernel in zip(range(len(kernels), 0, -1), kernels, strict=True):
            budget_s = _share(options.budget_s, time.monotonic() - began, left)
            most = _share(options.experiments, _tried(ledger) - before, left)
            rules = stop.never() if budget_s is None else stop.seconds(budget_s)
            rules |= stop.never() if most is None else stop.experiments(math.ceil(most))
            rules |= stop.failures(PATIENCE)
            rules |= _spending(options, [p.usage for p in ledger.proposals[paid:]], left)
            display = ConsoleDisplay(console, ledger.of(kernel), budget_s)
            judge = PytestJudge(worktree, kernel, scratch)
            who, settings = options.proposer, options.settings
            loop = Loop(kernel, base, judge, ledger, display, who, options.seed, settings)
            _print(console, f"{kernel}: tag {options.tag}, {loop.by}, seed {options.seed}")
            for lack in shortcomings(who, settings):
                _print(console, f"the agent's sandbox lacks: {lack}", style="yellow")
            with display.live():
                why = loop.run(rules)
                loop.close()
            _print(console, f"{kernel}: {why}")
    shutil.rmtree(scratch, ignore_errors=True)


def _spending(options: Options, usages: Sequence[Usage], left: int) -> stop.Stop:
    """What the kernels before this one left of the limits."""
    rules = stop.never()
    if options.max_cost_usd is not None:
        cost_usd = reckoned(usage.cost_usd for usage in usages) or 0
        rules |= stop.cost((options.max_cost_usd - cost_usd) / left)
    if options.max_tokens is not None:
        tokens = reckoned(usage.tokens for usage in usages) or 0
        rules |= stop.tokens((options.max_tokens - tokens) // left)
    return rules


def _share(total: float | None, spent: float, left: int) -> float | None:
    return None if total is None else (total - spent) / left


def _tried(ledger: Ledger) -> int:
    return sum(not experiment.starter for experiment in ledger.experiments)


def _summarise(kernels: Sequence[str], ledger: Ledger, console: Console) -> None:
    for kernel in kernels:
        tried = [experiment for experiment in ledger.of(kernel) if not experiment.starter]
        kept = [experiment for experiment in tried if experiment.kept]
        _print(console, f"\n{kernel}: kept {len(kept)} of {len(tried)} experiments")
        if proposals := [p for p in ledger.proposals if p.kernel == kernel]:
            _print(console, proposals_line(proposals))
        if kept:
            console.print(kept_table(kept))
            _print(console, closing_line(ledger.closing(kernel), kept[-1].commit), style="bold")
    if ledger.tip:
        _print(console, f"\nresults  {ledger.results.relative_to(ledger.repository.root)}")
        _print(console, f"branch   autokernel/{ledger.tag}")
        for commit in ledger.repository.log(ledger.experiments[0].commit, ledger.tip).splitlines():
            _print(console, f"  {commit}")


def _print(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)
