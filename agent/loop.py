"""Propose, judge, keep or revert: the experiments on one kernel."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from . import schedule
from .errors import Refused
from .judge import Judge
from .ledger import Ledger
from .proposers import PROPOSERS, Edit, Proposer
from .records import Closing, Experiment, commit_message
from .report import Judgement, Report, judge_candidate, judge_starter, promising
from .stop import Progress, Stop


class Display(Protocol):
    """Is told what happens, while it happens."""

    def trying(self, experiment: int, what: str) -> None: ...

    def finished(self, experiment: Experiment) -> None: ...


def judge_seed(seed: int, what: object) -> int:
    """Every experiment is judged on inputs of its own, which can be drawn again."""
    return random.Random(f"{seed}/{what}").getrandbits(32)


@dataclass(frozen=True)
class Loop:
    """Works on `kernel`, a path in the repository. `base` is where its first run starts from."""

    kernel: str
    base: str
    judge: Judge
    ledger: Ledger
    display: Display
    proposer: str
    seed: int

    def run(self, stop: Stop) -> str:
        """Experiment until `stop` or the proposer ends it. Returns why it ended."""
        watch = Watch()
        proposer = self._taken_up()
        done: list[Experiment] = []
        while True:
            if why := stop.why(self._progress(done, watch.seconds)):
                return why
            edit = proposer.ask()
            if edit is None:
                return "nothing is left to try"
            experiment = self._try(edit)
            self._tell(proposer, experiment)
            done.append(experiment)

    def _progress(self, done: Sequence[Experiment], elapsed_s: float) -> Progress:
        return Progress(
            experiments=len(done),
            elapsed_s=elapsed_s,
            mean_s=statistics.fmean(e.seconds for e in done) if done else 0.0,
            reverts=schedule.reverts(done),
            gained=schedule.gained(done),
            pct_roof=schedule.pct_roof(self.ledger.of(self.kernel)),
        )

    def close(self) -> Closing | None:
        """Measure the incumbent against the starter, both afresh; None if nothing was kept."""
        starter, *later = self.ledger.of(self.kernel)
        kept = [experiment for experiment in later if experiment.kept]
        if not kept:
            return None
        watch, last = Watch(), kept[-1]
        seed = judge_seed(self.seed, f"closing {last.experiment}")
        self.display.trying(last.experiment, "against the starter, measured afresh")
        report = self.judge.compare(self._text(last.commit), self._text(starter.commit), seed)
        closing = Closing(
            kernel=self.kernel,
            starter=starter.commit,
            commit=last.commit,
            seed=seed,
            verdict=report.verdict,
            reason=report.reason,
            speedup=report.whole.speedup if report.whole else None,
            started=watch.started,
            seconds=watch.seconds,
            reports=(report.raw,),
        )
        self.ledger.append(closing)
        return closing

    def _taken_up(self) -> Proposer:
        """The proposer, told of all that was tried before."""
        self.start()
        starter, *past = self.ledger.of(self.kernel)
        proposer = PROPOSERS[self.proposer](self._text(starter.commit), self.seed)
        for experiment in past:
            self._tell(proposer, experiment)
        return proposer

    def _tell(self, proposer: Proposer, experiment: Experiment) -> None:
        right = experiment.verdict == "PASS" and experiment.speedup is not None
        speedup = experiment.speedup.ratio if right and experiment.speedup else None
        proposer.tell(self._text(experiment.commit), experiment.kept, speedup)

    def start(self) -> None:
        """Measure the kernel as it was found, unless that was done before. Raises Refused for one
        that cannot be worked on."""
        if self.ledger.of(self.kernel):
            return
        watch, text = Watch(), self._text(self.base)
        PROPOSERS[self.proposer](text, self.seed)  # refuses what it cannot edit
        self.display.trying(self._next, "starter")
        report = self.judge.compare(text, None, judge_seed(self.seed, self._next))
        if report.verdict != "PASS":
            raise Refused(
                f"{self.kernel} is not right as it is: {report.verdict}: {report.reason}: "
                "repair it, see `pytest --autokernel`, then commit it"
            )
        if not report.timings:
            why = "; ".join(report.not_passed) or "the judge gives no reason"
            raise Refused(f"{self.kernel} was not timed, so nothing can be optimised here: {why}")
        experiment = self._experiment("starter", watch, judge_starter(report), [report])
        self._record(dataclasses.replace(experiment, commit=experiment.parent))

    def _try(self, edit: Edit) -> Experiment:
        watch = Watch()
        self.display.trying(self._next, edit.description)
        seed = judge_seed(self.seed, self._next)
        quick = self.judge.compare(edit.text, self._text(self._parent), seed)
        full = self.judge.verify(edit.text, seed) if promising(quick) else None
        judgement = judge_candidate(quick, full)
        reports = [quick, full] if full else [quick]
        experiment = self._experiment(edit.description, watch, judgement, reports)
        commit = self.ledger.repository.commit(
            experiment.parent, self.kernel, edit.text, commit_message(experiment, self.ledger.tag)
        )
        experiment = dataclasses.replace(experiment, commit=commit)
        self._record(experiment)
        return experiment

    def _experiment(
        self, description: str, watch: Watch, judgement: Judgement, reports: Sequence[Report]
    ) -> Experiment:
        """The next line of the ledger, but for its commit, whose message tells of it."""
        return Experiment(
            experiment=self._next,
            kernel=self.kernel,
            kernel_type=reports[0].op or "",
            description=description,
            proposer=self.proposer,
            seed=judge_seed(self.seed, self._next),
            parent=self._parent,
            commit="",
            verdict=judgement.verdict,
            decision=judgement.decision,
            reason=judgement.reason,
            speedup=judgement.speedup,
            started=watch.started,
            seconds=watch.seconds,
            reports=tuple(report.raw for report in reports),
        )

    def _record(self, experiment: Experiment) -> None:
        self.ledger.append(experiment)
        self.display.finished(experiment)

    @property
    def _next(self) -> int:
        return len(self.ledger.experiments)

    @property
    def _parent(self) -> str:
        return self.ledger.tip or self.base

    def _text(self, commit: str) -> str:
        return self.ledger.repository.text(commit, self.kernel)


class Watch:
    """Knows when something started, and how long ago."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
