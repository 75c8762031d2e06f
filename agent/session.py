"""A run of the agent from the command to its last word: set up, work, tell, clean up."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from . import schedule, stop
from .display import ConsoleDisplay
from .errors import JudgeFailed, Refused
from .judge import experiment
from .ledger import Ledger, open_ledger
from .loop import Loop
from .proposers import Settings, secrets, shortcomings
from .records import Experiment
from .report import Judgement, judge_starter
from .repository import Repository
from .staff import hired
from .tables import closing_line, kept_table, proposals_line
from .worker import Local

PATIENCE = 5  # proposals in a row that come to nothing


@dataclass(frozen=True)
class Options:
    """What was asked for. The limits are for all kernels together; `plan` is a file of their
    shares of the run time, `move_on` when to leave one of several for another, `workers` says who
    judges (staff.py)."""

    files: tuple[Path, ...]
    tag: str
    budget_s: float | None
    experiments: int | None
    seed: int
    proposer: str
    settings: Settings
    max_cost_usd: float | None = None
    max_tokens: int | None = None
    plan: Path | None = None
    move_on: str = stop.MOVE_ON
    workers: str | None = None


def optimize(options: Options, console: Console) -> None:
    """Work on kernels in the order of what is to be expected of them. Ctrl-C and a broken judge end
    it between two experiments: what was recorded stays, and is shown, before the exception goes
    on."""
    move_on = stop.parse(options.move_on)
    with closing(Repository(Path.cwd())) as repository:
        base = repository.head()
        shares = _shares(options, repository)
        kernels = [*shares]
        with open_ledger(repository, options.tag) as ledger:
            for kernel in kernels:
                _check_unchanged(ledger, kernel, base)
            ledger.plan = shares
            try:
                _work(options, move_on, base, ledger, console)
            except (KeyboardInterrupt, JudgeFailed):
                ledger.heal()
                _summarise(kernels, ledger, console)
                words = [*map(str, options.files), "--tag", options.tag]
                words += ["--workers", options.workers] if options.workers else []
                again = shlex.join(words)
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


def _shares(options: Options, repository: Repository) -> dict[str, float]:
    """The kernels, as paths in the repository, and their shares of the run time."""
    if options.plan is None:
        return schedule.equal([*dict.fromkeys(map(repository.committed, options.files))])
    planned = schedule.read_plan(options.plan)
    shares = {repository.committed(Path(name)): share for name, share in planned.items()}
    asked = [*dict.fromkeys(map(repository.committed, options.files))] or [*shares]
    if unknown := [kernel for kernel in asked if kernel not in shares]:
        raise Refused(f"{options.plan}: expected a share for {', '.join(unknown)}, found none")
    return {kernel: shares[kernel] for kernel in asked}


def _work(
    options: Options, move_on: stop.Stop, base: str, ledger: Ledger, console: Console
) -> None:
    """Measure all starters, then visit kernels until the limits are reached or none has anything
    left; and measure what all that came to."""
    limits = _Limits(options, ledger)
    named, seed, settings = options.proposer, options.seed, options.settings
    repository, folder, commit = ledger.repository, ledger.folder, ledger.tip or base
    warn = partial(_print, console, style="yellow")
    with hired(options.workers, repository, commit, folder, secrets(settings), warn) as crew:

        def loop(kernel: str) -> tuple[Loop, ConsoleDisplay]:
            display = ConsoleDisplay(console, ledger.of(kernel), limits.left_s, lambda: crew.places)
            return Loop(kernel, base, crew, ledger, display, named, seed, settings), display

        kernels = [*ledger.plan]
        for lack in shortcomings(options.proposer, options.settings):
            warn(f"the agent's sandbox lacks: {lack}")
        for kernel in kernels:
            starting, display = loop(kernel)
            _print(console, f"{kernel}: tag {options.tag}, {starting.by}, seed {options.seed}")
            with display.live():
                starting.start()
        over: set[str] = set()
        while (chosen := schedule.choose(ledger.standings, over)) and not limits.reached:
            alone, before = len(over) == len(kernels) - 1, limits.tried
            if len(kernels) > 1:
                _print(console, f"{chosen.kernel}: may yet save {chosen.expected:.1%} of the time")
            visiting, display = loop(chosen.kernel)
            with display.live():
                why = visiting.run(limits.rule if alone else limits.rule | move_on)
            _print(console, f"{chosen.kernel}: {why}")
            # Without an experiment it is near its roof, or there is nothing left to try.
            over |= {chosen.kernel} if alone or limits.tried == before else set()
        for kernel in kernels:
            ending, display = loop(kernel)
            with display.live():
                ending.close()
    shutil.rmtree(folder / "scratch", ignore_errors=True)


class _Limits:
    """What all visits of a run may take together."""

    def __init__(self, options: Options, ledger: Ledger) -> None:
        self._options, self._ledger = options, ledger
        self._began, self._before = time.monotonic(), _tried(ledger)
        self._paid = len(ledger.proposals)

    @property
    def tried(self) -> int:
        return _tried(self._ledger) - self._before

    @property
    def left_s(self) -> float | None:
        budget_s = self._options.budget_s
        return None if budget_s is None else budget_s - (time.monotonic() - self._began)

    @property
    def rule(self) -> stop.Stop:
        """For the next visit."""
        left_s, most = self.left_s, self._options.experiments
        rule = stop.never() if left_s is None else stop.seconds(left_s)
        rule |= stop.never() if most is None else stop.experiments(most - self.tried)
        return rule | stop.failures(PATIENCE) | self._spending

    @property
    def _spending(self) -> stop.Stop:
        rule, options = stop.never(), self._options
        before = [proposal.usage for proposal in self._ledger.proposals[self._paid :]]
        if options.max_cost_usd is not None:
            rule |= stop.cost(options.max_cost_usd, before)
        if options.max_tokens is not None:
            rule |= stop.tokens(options.max_tokens, before)
        return rule

    @property
    def reached(self) -> bool:
        """The first visit always begins: a budget allows one experiment at least."""
        return self.tried > 0 and (
            self.tried == self._options.experiments or (self.left_s or 1.0) <= 0
        )


def _tried(ledger: Ledger) -> int:
    return sum(not experiment.starter for experiment in ledger.experiments)


def replay(ledger: Ledger, then: Experiment) -> Judgement:
    """Judge an experiment's text once more, with its seed, against the one it was compared with."""
    repository, folder = ledger.repository, ledger.folder / f"replay-{then.experiment}"
    text = repository.text(then.commit, then.kernel)
    try:
        with (
            repository.worktree(folder / "worktree", then.commit) as worktree,
            closing(Local(worktree, folder / "scratch")) as worker,
        ):
            judge = worker.judge(then.kernel)
            if then.starter:
                return judge_starter(judge.compare(text, None, then.seed))
            incumbent = repository.text(then.parent, then.kernel)
            return experiment(judge, text, incumbent, then.seed)[0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
