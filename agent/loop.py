"""Propose, judge, keep or revert: the experiments on one kernel."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from . import schedule
from .ahead import Ahead, judge_compiled
from .errors import JudgeFailed, Refused
from .judge import Judge, experiment
from .ledger import Ledger
from .proposers import PROPOSERS, Edit, Foresees, ProposalFailed, Proposer, Settings, Situation, Try
from .proposers.program import reference_text
from .records import Closing, Experiment, Proposal, commit_message
from .report import Judgement, Report, judge_starter
from .stop import Progress, Stop
from .usage import Usage


class Display(Protocol):
    """Is told what happens, while it happens."""

    def trying(self, experiment: int, what: str) -> None: ...

    def finished(self, experiment: Experiment) -> None: ...

    def failed(self, proposal: Proposal) -> None: ...


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
    settings: Settings = field(default_factory=lambda: Settings({}))

    @property
    def by(self) -> str:
        """Who proposes, as the ledger names it: `tuner`, `command claude`."""
        return " ".join([self.proposer, *self.settings.names])

    def run(self, stop: Stop) -> str:
        """Experiment until `stop` or the proposer ends it. Returns why it ended."""
        with closing(Ahead(self.judge.binary)) as ahead:
            return self._run(stop, ahead)

    def _run(self, stop: Stop, ahead: Ahead) -> str:
        watch, done, durations = Watch(), list[Experiment](), list[float]()
        failed, usages = tuple[str, ...](), tuple[Usage, ...]()
        proposer, history = self._taken_up()
        while True:
            progress = self._progress(done, durations, watch.seconds)
            if why := stop.why(replace(progress, failed=failed, usages=usages)):
                return why
            turn = Watch()
            try:
                situation = self._situation(history)
                self.display.trying(self._next, f"{self.by} proposes")
                edit = proposer.ask(situation)
            except ProposalFailed as failure:
                usages += (self._note(turn, str(failure), failure.usage),)
                failed += (str(failure),)
                continue
            if edit is None:
                return "nothing is left to try"
            if edit.usage:
                usages += (self._note(turn, None, edit.usage),)
            done.append(self._try(edit, ahead, proposer, situation))
            history.append(self._tried(done[-1]))
            proposer.tell(history[-1])
            failed = ()
            durations.append(turn.seconds)

    def _progress(
        self, done: Sequence[Experiment], durations: Sequence[float], elapsed_s: float
    ) -> Progress:
        return Progress(
            experiments=len(done),
            elapsed_s=elapsed_s,
            mean_s=statistics.fmean(durations) if durations else 0.0,
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

    def _taken_up(self) -> tuple[Proposer, list[Try]]:
        """The proposer, told of all that was tried before."""
        self.start()
        starter, *past = self.ledger.of(self.kernel)
        proposer = PROPOSERS[self.proposer](self._text(starter.commit), self.seed, self.settings)
        history = [self._tried(experiment) for experiment in past]
        for tried in history:
            proposer.tell(tried)
        return proposer, history

    def _tried(self, experiment: Experiment) -> Try:
        e = experiment
        text = self._text(e.commit)
        return Try(text, e.description, e.verdict, e.decision, e.reason, e.speedup, e.put_off)

    def _situation(self, history: Sequence[Try]) -> Situation:
        steps = [e for e in self.ledger.of(self.kernel) if e.kept or e.starter]
        report = Report.parse(steps[-1].timed)
        proposals = [p for p in self.ledger.proposals if p.kernel == self.kernel]
        failures = [p.failure for p in proposals if p.experiment == self._next]
        return Situation(
            kernel=self.kernel,
            op=report.op or "",
            text=self._text(steps[-1].commit),
            report=report,
            history=tuple(history),
            failed=tuple(filter(None, failures)),
            reference=reference_text(report.op or "", self.ledger.repository.root),
        )

    def _note(self, watch: Watch, failure: str | None, usage: Usage | None) -> Usage:
        """Record what a proposal took. Where it did not come to an end that is unknown."""
        usage = usage or Usage()
        proposal = Proposal(
            experiment=self._next,
            kernel=self.kernel,
            proposer=self.by,
            failure=failure,
            usage=usage,
            started=watch.started,
            seconds=watch.seconds,
        )
        self.ledger.append(proposal)
        if failure:
            self.display.failed(proposal)
        return usage

    def start(self) -> None:
        """Measure the kernel as it was found, unless that was done before. Raises Refused for one
        that cannot be worked on."""
        if self.ledger.of(self.kernel):
            return
        watch, text = Watch(), self._text(self.base)
        PROPOSERS[self.proposer](text, self.seed, self.settings)  # refuses what it cannot edit
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
        binary = None
        if report.compiles:
            with suppress(JudgeFailed):
                binary = self.judge.binary(text)
        found = self._experiment("starter", watch, judge_starter(report), [report], binary)
        self._record(dataclasses.replace(found, commit=found.parent))

    def _try(
        self, edit: Edit, ahead: Ahead, proposer: Proposer, situation: Situation
    ) -> Experiment:
        watch, seed = Watch(), judge_seed(self.seed, self._next)
        self.display.trying(self._next, edit.description)
        binary = ahead.of(edit.text) if self._starter.compiles else None
        orders = proposer if isinstance(proposer, Foresees) else None
        if binary and orders and self._starter.on_gpu:
            foreseen = orders.foresee(edit, situation)
            if foreseen:
                ahead.begin(foreseen.text)
        past = self.ledger.of(self.kernel)
        may_wait = orders is not None and orders.postpones(edit)
        if binary and (known := judge_compiled(binary, past, may_wait)):
            judgement, reports = known, [binary]
        else:
            judgement, reports = experiment(self.judge, edit.text, self._text(self._parent), seed)
        found = self._experiment(edit.description, watch, judgement, reports, binary)
        commit = self.ledger.repository.commit(
            found.parent, self.kernel, edit.text, commit_message(found, self.ledger.tag)
        )
        found = dataclasses.replace(found, commit=commit)
        self._record(found)
        return found

    @property
    def _starter(self) -> Report:
        return Report.parse(self.ledger.of(self.kernel)[0].reports[0])

    def _experiment(
        self,
        description: str,
        watch: Watch,
        judgement: Judgement,
        reports: Sequence[Report],
        binary: Report | None,
    ) -> Experiment:
        """The next line of the ledger, but for its commit, whose message tells of it."""
        return Experiment(
            experiment=self._next,
            kernel=self.kernel,
            kernel_type=reports[0].op or "",
            description=description,
            proposer=self.by,
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
            binary=binary.binary if binary else None,
            local_bytes=binary.local_bytes if binary else None,
            put_off=judgement.put_off,
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
