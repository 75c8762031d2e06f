"""Work on one kernel: measure it as it was found, experiment, and measure what that came to."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from .errors import JudgeFailed, Refused
from .proposers import PROPOSERS, Proposer, Try
from .records import Closing
from .report import judge_starter
from .stop import Stop
from .visit import Visit
from .work import Watch, Work, judge_seed


class Loop(Work):
    def start(self) -> None:
        """Measure the kernel as it was found, unless that was done before. Raises Refused for one
        that cannot be worked on."""
        if self.ledger.of(self.kernel):
            return
        watch, text, number = Watch(), self.text(self.base), len(self.ledger.experiments)
        PROPOSERS[self.proposer](text, self.seed, self.settings)  # refuses what it cannot edit
        self.display.trying(number, "starter")
        seed = judge_seed(self.seed, number)
        asked = self.crew.ask(self.kernel, "starter", lambda j: j.compare(text, None, seed))
        report = asked.result()
        if report.verdict == "SKIP":
            raise Refused(f"{self.kernel} cannot be judged on this machine: {report.reason}")
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
                binary = self.crew.binary(self.kernel, text).result()
        judgement = judge_starter(report)
        found = self.experiment(number, "starter", self.parent, judgement, [report], binary)
        found = replace(found, started=watch.started, seconds=watch.seconds)
        self.record(replace(found, commit=found.parent))

    def run(self, stop: Stop) -> str:
        """Experiment until `stop` or the proposer ends it. Returns why it ended."""
        proposer, history = self._taken_up()
        return Visit(self, proposer, history).run(stop)

    def _taken_up(self) -> tuple[Proposer, list[Try]]:
        """The proposer, told of all that was tried before."""
        self.start()
        starter, *past = self.ledger.of(self.kernel)
        proposer = PROPOSERS[self.proposer](self.text(starter.commit), self.seed, self.settings)
        history = [self.tried(experiment) for experiment in past]
        for tried in history:
            proposer.tell(tried)
        return proposer, history

    def close(self) -> Closing | None:
        """Measure the incumbent against the starter, both afresh; None if nothing was kept."""
        starter, *later = self.ledger.of(self.kernel)
        kept = [experiment for experiment in later if experiment.kept]
        if not kept:
            return None
        watch, last = Watch(), kept[-1]
        seed = judge_seed(self.seed, f"closing {last.experiment}")
        text, before = self.text(last.commit), self.text(starter.commit)
        self.display.trying(last.experiment, "against the starter, measured afresh")
        what = f"experiment {last.experiment}, against the starter"
        asked = self.crew.ask(self.kernel, what, lambda judge: judge.compare(text, before, seed))
        report = asked.result()
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
