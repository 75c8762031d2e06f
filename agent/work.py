"""What there is to do on one kernel, and the ledger's words for it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from . import schedule
from .crew import Crew
from .ledger import Ledger
from .proposers import Settings, Try
from .records import Experiment, Proposal
from .report import Judgement, Report, Speedup


class Display(Protocol):
    """Is told what happens, while it happens."""

    def trying(self, experiment: int, what: str) -> None: ...

    def finished(self, experiment: Experiment) -> None: ...

    def failed(self, proposal: Proposal) -> None: ...


def judge_seed(seed: int, what: object) -> int:
    """Every experiment is judged on inputs of its own, which can be drawn again."""
    return random.Random(f"{seed}/{what}").getrandbits(32)


class Watch:
    """Knows when something started, and how long ago."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


@dataclass(frozen=True)
class Work:
    """On `kernel`, a path in the repository. `base` is where its first run starts from."""

    kernel: str
    base: str
    crew: Crew
    ledger: Ledger
    display: Display
    proposer: str
    seed: int
    settings: Settings = field(default_factory=lambda: Settings({}))

    @property
    def by(self) -> str:
        """Who proposes, as the ledger names it: `tuner`, `command claude`."""
        return " ".join([self.proposer, *self.settings.names])

    @property
    def parent(self) -> str:
        """The commit of the incumbent."""
        return self.ledger.tip or self.base

    def text(self, commit: str) -> str:
        return self.ledger.repository.text(commit, self.kernel)

    def experiment(
        self,
        number: int,
        description: str,
        parent: str,
        judgement: Judgement,
        reports: Sequence[Report],
        binary: Report | None,
    ) -> Experiment:
        """A line of the ledger, but for its commit, whose message tells of it, and its time."""
        return Experiment(
            experiment=number,
            kernel=self.kernel,
            kernel_type=reports[0].op or "",
            description=description,
            proposer=self.by,
            seed=judge_seed(self.seed, number),
            parent=parent,
            commit="",
            verdict=judgement.verdict,
            decision=judgement.decision,
            reason=judgement.reason,
            speedup=judgement.speedup,
            started="",
            seconds=0.0,
            reports=tuple(report.raw for report in reports),
            binary=binary.binary if binary else None,
            local_bytes=binary.local_bytes if binary else None,
            put_off=judgement.put_off,
        )

    def record(self, experiment: Experiment) -> None:
        self.ledger.append(experiment)
        self.display.finished(experiment)

    def tried(self, e: Experiment) -> Try:
        """What a proposer is told of an experiment. Its speedup is over the incumbent of that
        moment, also where it was compared with the one before."""
        text = self.text(e.commit)
        found = Try(text, e.description, e.verdict, e.decision, e.reason, e.speedup, e.put_off)
        gained = self._gained_since(e)
        if found.speedup is None or gained == 1.0:
            return found
        s = found.speedup
        scaled = Speedup(s.ratio / gained, s.low / gained, s.high / gained, s.confidence)
        return replace(found, speedup=scaled)

    def _gained_since(self, e: Experiment) -> float:
        """By what was kept between the incumbent that an experiment was compared with and it."""
        before = (x.experiment for x in self.ledger.experiments if x.commit == e.parent)
        at = next(before, -1)
        return schedule.gained(
            [x for x in self.ledger.of(self.kernel) if at < x.experiment < e.experiment]
        )
