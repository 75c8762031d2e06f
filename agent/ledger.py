"""The ledger of a tag: every finished experiment, in order.

`experiments.jsonl` is the truth: a line for each record, appended and synced. The references
in git and `results.tsv` follow from it, and are brought up to it after every line and at the
start of every run: a crash between the two loses nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from . import schedule
from .errors import Refused
from .records import Closing, Experiment, Proposal, Record, from_line, results_tsv, to_line
from .repository import Repository
from .schedule import Standing
from .usage import Usage, total

LOCK = "lock"
HOME = ".autokernel"
PATIENCE_S = 0.5  # for those who look whether a run holds the lock, and hold it a moment


class Ledger:
    """The ledger of `tag`. To write to it, get it from `open_ledger`."""

    def __init__(self, repository: Repository, tag: str) -> None:
        self.repository = repository
        self.tag = tag
        self.folder = repository.root / HOME / tag
        self.journal = self.folder / "experiments.jsonl"
        self.results = self.folder / "results.tsv"
        self._plan = self.folder / "plan.json"
        self.branch = f"refs/heads/autokernel/{tag}"
        self._records = _read(self.journal)

    @property
    def experiments(self) -> list[Experiment]:
        return [record for record in self._records if isinstance(record, Experiment)]

    @property
    def proposals(self) -> list[Proposal]:
        """What proposals took, and those that came to nothing."""
        return [record for record in self._records if isinstance(record, Proposal)]

    def usage(self, experiment: Experiment) -> Usage | None:
        """What proposing an experiment took, with the proposals before it that came to nothing;
        None of a proposer that takes nothing, such as the tuner."""
        number, kernel = experiment.experiment, experiment.kernel
        taken = [p.usage for p in self.proposals if (p.experiment, p.kernel) == (number, kernel)]
        return total(taken) if taken else None

    def of(self, kernel: str) -> list[Experiment]:
        """The experiments on one kernel, its starter first."""
        return [experiment for experiment in self.experiments if experiment.kernel == kernel]

    @property
    def plan(self) -> dict[str, float]:
        """The kernels that are worked on, and their shares of the run time."""
        if self._plan.exists():
            return schedule.read_plan(self._plan)
        return schedule.equal([*dict.fromkeys(e.kernel for e in self.experiments)])

    @plan.setter
    def plan(self, shares: Mapping[str, float]) -> None:
        _replace(self._plan, json.dumps(schedule.to_json(shares)) + "\n")

    @property
    def standings(self) -> list[Standing]:
        """Where each kernel of the plan stands."""
        return [schedule.standing(k, share, self.of(k)) for k, share in self.plan.items()]

    def closing(self, kernel: str) -> Closing | None:
        """The last measurement of a kernel against its starter."""
        found = [r for r in self._records if isinstance(r, Closing) and r.kernel == kernel]
        return found[-1] if found else None

    @property
    def writer(self) -> str | None:
        """The process of the run that is on; None where there is none."""
        try:
            with (self.folder / LOCK).open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return lock.read().strip()
        except FileNotFoundError:
            pass
        return None

    @property
    def tip(self) -> str | None:
        """The commit where the branch belongs; None before the first experiment."""
        steps = [e.commit for e in self.experiments if e.kept or e.starter]
        return steps[-1] if steps else None

    def append(self, record: Record) -> None:
        """Record what happened. From the moment its line is on disk it has happened."""
        with self.journal.open("ab") as file:
            file.write(to_line(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._records.append(record)
        self._settle()

    def heal(self) -> None:
        """Make whole what an interruption left behind: half a line, references not yet moved."""
        _cut_half_line(self.journal)
        self._records = _read(self.journal)
        if not self.experiments:
            self._expect_no_branch()
            return
        self._settle()

    def _settle(self) -> None:
        last, tip = self.experiments[-1], self.tip
        assert tip is not None
        self.repository.point(f"refs/autokernel/{self.tag}/{last.experiment}", last.commit)
        self.repository.move(self.branch, tip, last.parent if len(self.experiments) > 1 else None)
        _replace(self.results, results_tsv(self.experiments))

    def _expect_no_branch(self) -> None:
        if at := self.repository.resolve(self.branch):
            raise Refused(
                f"the branch autokernel/{self.tag} exists (at {at[:12]}), its ledger "
                f"{self.journal} does not: choose another --tag, or delete the branch"
            )


@contextmanager
def open_ledger(repository: Repository, tag: str) -> Iterator[Ledger]:
    """The ledger of `tag` for its one writer, healed of what a crash may have left."""
    folder = repository.root / HOME / tag
    folder.mkdir(parents=True, exist_ok=True)
    ignore = repository.root / HOME / ".gitignore"
    if not ignore.exists():
        _replace(ignore, "*\n")
    with _locked(folder / LOCK, tag):
        ledger = Ledger(repository, tag)
        if at := repository.checked_out(ledger.branch):
            raise Refused(
                f"the branch autokernel/{tag} is checked out in {at}, and we are about to move it: "
                "switch to another branch there, or choose another --tag"
            )
        ledger.heal()
        yield ledger


def _read(journal: Path) -> list[Record]:
    """All records. What follows the last end of a line is half a line, left by a crash."""
    whole = journal.read_text().rpartition("\n")[0] if journal.exists() else ""
    records = []
    for number, line in enumerate(whole.split("\n") if whole else [], start=1):
        try:
            records.append(from_line(line))
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(
                f"{journal}:{number}: expected a record of this version, got {error!r}: restore "
                "the file, or choose another --tag"
            ) from error
    return records


def _cut_half_line(journal: Path) -> None:
    if journal.exists():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)


@contextmanager
def _locked(file: Path, tag: str) -> Iterator[None]:
    with file.open("a+") as lock:
        until = time.monotonic() + PATIENCE_S
        while not _taken(lock):
            if time.monotonic() > until:
                lock.seek(0)
                raise Refused(
                    f"tag {tag!r} is in use by process {lock.read().strip()}: wait until it has "
                    "ended, or choose another --tag"
                )
            time.sleep(0.05)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(file: Path, text: str) -> None:
    """Write a file such that at every moment it is whole, the old or the new."""
    new = file.with_name(file.name + ".new")
    with new.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)
