"""The experiments of one visit to a kernel: propose, have judged, keep or revert.

Several candidates may be judged at a time. They are recorded, and told to the proposer, in the
order in which they were proposed, and the next is proposed when there is room behind the oldest: so
what is recorded depends on verdicts alone, and not on which worker was faster. Nothing is kept that
was compared with another incumbent than the one it replaces.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from . import schedule
from .ahead import Ahead, judge_compiled
from .judge import Judge, experiment
from .proposers import Edit, Foresees, ProposalFailed, Proposer, Situation, Try
from .proposers.program import reference_text
from .records import Experiment, Proposal, commit_message
from .report import Judgement, Report
from .stop import Progress, Stop
from .usage import Usage
from .work import Watch, Work, judge_seed


@dataclass(frozen=True)
class Judged:
    judgement: Judgement
    reports: Sequence[Report]
    seconds: float


@dataclass(frozen=True)
class Candidate:
    """An edit that was proposed and is not recorded yet. `answer` is on its comparison with the
    incumbent `parent`; None where its binary says enough, or that another candidate does the same,
    whose verdict it waits for. `may_wait`: its proposer asks again if it is put off."""

    number: int
    edit: Edit
    turn: Watch  # since its proposal was asked for
    watch: Watch
    parent: str
    binary: Report | None
    may_wait: bool
    compiling_s: float
    answer: Future[Judged] | None


class Visit:
    """`history` is what was tried before, which the proposer was told."""

    def __init__(self, work: Work, proposer: Proposer, history: list[Try]) -> None:
        self._work, self._proposer, self._history = work, proposer, history
        self._ahead = Ahead(lambda text: work.crew.binary(work.kernel, text))
        self._pending = deque[Candidate]()
        self._done = list[Experiment]()
        self._durations = list[float]()
        self._failed, self._usages = tuple[str, ...](), tuple[Usage, ...]()
        self._starter = Report.parse(work.ledger.of(work.kernel)[0].reports[0])
        self._workers = work.crew.on(self._starter.device)
        # One more for each worker but one, so that none waits for the oldest to be recorded. Where
        # a proposal takes time, what is known by then is worth more.
        self._foresees = proposer if isinstance(proposer, Foresees) else None
        self._room = 2 * self._workers - 1 if self._foresees else self._workers

    def run(self, stop: Stop) -> str:
        """Experiment until `stop` or the proposer ends it. Returns why it ended."""
        watch = Watch()
        while True:
            why = stop.why(self._progress(watch.seconds))
            if why is None and not self._awaits:
                if self._propose():
                    continue
                why = "nothing is left to try"
            if not self._pending:
                return why or ""
            self._settle()

    @property
    def _awaits(self) -> bool:
        """Whether the oldest is to be recorded before anything else is proposed."""
        if not self._pending:
            return False
        oldest = self._pending[0].answer
        if oldest is None or (self._foresees is None and oldest.done()):
            return True
        return sum(candidate.answer is not None for candidate in self._pending) >= self._room

    def _propose(self) -> bool:
        """Have one more edit judged, or record why there is none. False when nothing is left."""
        turn = Watch()
        situation = self._situation()
        self._work.display.trying(self._next, f"{self._work.by} proposes")
        try:
            edit = self._proposer.ask(situation)
        except ProposalFailed as failure:
            self._usages += (self._note(turn, str(failure), failure.usage),)
            self._failed += (str(failure),)
            return True
        if edit is None:
            return False
        if edit.usage:
            self._usages += (self._note(turn, None, edit.usage),)
        self._failed = ()
        self._pending.append(self._handed_out(edit, situation, turn))
        return True

    def _handed_out(self, edit: Edit, situation: Situation, turn: Watch) -> Candidate:
        watch, parent = Watch(), self._work.parent
        self._work.display.trying(self._next, edit.description)
        binary = self._ahead.of(edit.text) if self._starter.compiles else None
        if binary and self._starter.on_gpu:
            self._foresee(edit, situation)
        may_wait = self._foresees is not None and self._foresees.postpones(edit)
        compiling_s = watch.seconds
        waits = self._known(binary, may_wait) is not None or self._doubled(binary)
        answer = None if waits else self._asked(self._next, edit.text, parent)
        return Candidate(
            self._next, edit, turn, watch, parent, binary, may_wait, compiling_s, answer
        )

    def _foresee(self, edit: Edit | None, situation: Situation) -> None:
        """Have compiled what is likely to be proposed next."""
        for _ in range(self._workers):
            if self._foresees is None or edit is None:
                return
            foreseen = self._foresees.foresee(edit, situation)
            if foreseen:
                self._ahead.begin(foreseen.text)
            situation = replace(situation, pending=(*situation.pending, edit))
            edit = foreseen

    def _asked(self, number: int, text: str, parent: str) -> Future[Judged]:
        incumbent, seed = self._work.text(parent), judge_seed(self._work.seed, number)

        def ask(judge: Judge) -> Judged:
            watch = Watch()
            judgement, reports = experiment(judge, text, incumbent, seed)
            return Judged(judgement, reports, watch.seconds)

        return self._work.crew.ask(self._work.kernel, f"experiment {number}", ask)

    def _known(self, binary: Report | None, may_wait: bool) -> Judgement | None:
        """What becomes of a candidate, where its binary says enough by now."""
        past = self._work.ledger.of(self._work.kernel)
        return judge_compiled(binary, past, may_wait) if binary else None

    def _doubled(self, binary: Report | None) -> bool:
        """Whether a candidate that does the same is pending."""
        known = binary.binary if binary else None
        same = (c.binary for c in self._pending if c.binary)
        return known is not None and any(other.binary == known for other in same)

    def _settle(self) -> None:
        """Record the oldest candidate, once it is judged, and tell the proposer."""
        candidate = self._pending[0]
        parent, judged = self._judged(candidate)
        work, c = self._work, candidate
        found = work.experiment(
            c.number, c.edit.description, parent, judged.judgement, judged.reports, c.binary
        )
        seconds = c.compiling_s + judged.seconds
        found = replace(found, started=c.watch.started, seconds=seconds)
        message = commit_message(found, work.ledger.tag)
        commit = work.ledger.repository.commit(parent, work.kernel, c.edit.text, message)
        found = replace(found, commit=commit)
        work.record(found)
        self._pending.popleft()
        self._done.append(found)
        self._durations.append(c.turn.seconds)
        self._history.append(work.tried(found))
        self._proposer.tell(self._history[-1])

    def _judged(self, c: Candidate) -> tuple[str, Judged]:
        """What became of a candidate, and the incumbent that it was compared with."""
        if c.answer:
            judged = c.answer.result()
            now = self._work.parent
            if judged.judgement.decision != "KEEP" or c.parent == now:
                return c.parent, judged
            what = f"{c.edit.description}, again: another was kept meanwhile"
        elif c.binary and (known := self._known(c.binary, c.may_wait)):
            return self._work.parent, Judged(known, [c.binary], 0.0)
        else:
            now, what = self._work.parent, c.edit.description
        self._work.display.trying(c.number, what)
        return now, self._asked(c.number, c.edit.text, now).result()

    def _progress(self, elapsed_s: float) -> Progress:
        done = self._done
        return Progress(
            experiments=len(done) + len(self._pending),
            elapsed_s=elapsed_s,
            mean_s=statistics.fmean(self._durations) if self._durations else 0.0,
            reverts=schedule.reverts(done),
            gained=schedule.gained(done),
            pct_roof=schedule.pct_roof(self._work.ledger.of(self._work.kernel)),
            failed=self._failed,
            usages=self._usages,
        )

    def _situation(self) -> Situation:
        work = self._work
        steps = [e for e in work.ledger.of(work.kernel) if e.kept or e.starter]
        report = Report.parse(steps[-1].timed)
        proposals = [p for p in work.ledger.proposals if p.kernel == work.kernel]
        failures = [p.failure for p in proposals if p.experiment == self._next]
        return Situation(
            kernel=work.kernel,
            op=report.op or "",
            text=work.text(steps[-1].commit),
            report=report,
            history=tuple(self._history),
            failed=tuple(filter(None, failures)),
            reference=reference_text(report.op or "", work.ledger.repository.root),
            pending=tuple(c.edit for c in self._pending),
        )

    def _note(self, watch: Watch, failure: str | None, usage: Usage | None) -> Usage:
        """Record what a proposal took. Where it did not come to an end that is unknown."""
        usage = usage or Usage()
        proposal = Proposal(
            experiment=self._next,
            kernel=self._work.kernel,
            proposer=self._work.by,
            failure=failure,
            usage=usage,
            started=watch.started,
            seconds=watch.seconds,
        )
        self._work.ledger.append(proposal)
        if failure:
            self._work.display.failed(proposal)
        return usage

    @property
    def _next(self) -> int:
        return len(self._work.ledger.experiments) + len(self._pending)
