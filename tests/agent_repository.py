"""Fixtures for the agent's tests: a user's git repository, and a run in it."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from autokernel_agent.crew import Crew
from autokernel_agent.judge import Judge
from autokernel_agent.ledger import Ledger, open_ledger
from autokernel_agent.loop import Loop
from autokernel_agent.records import Experiment, Proposal
from autokernel_agent.report import Report
from autokernel_agent.repository import Repository
from autokernel_agent.stop import Stop, experiments

from . import agent_fakes
from .agent_fakes import KERNEL

PATH = "kernels/softmax.py"
# No settings of the machine: so no name and no address either.
BARE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(folder: Path, *words: str) -> str:
    named = ["-c", "user.name=User", "-c", "user.email=user@example.org"]
    done = subprocess.run(
        ["git", *named, *words],
        cwd=folder,
        env={**os.environ, **BARE},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def user_repository(folder: Path) -> Path:
    """A repository with a committed kernel, and with changes that are the user's business."""
    (folder / "kernels").mkdir(parents=True)
    (folder / PATH).write_text(KERNEL)
    (folder / "kernels/reduce.py").write_text(KERNEL.replace('"softmax"', '"reduce"'))
    (folder / "notes.txt").write_text("committed\n")
    git(folder, "init", "--quiet", "--initial-branch=main", "--template=")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    (folder / "notes.txt").write_text("changed\n")
    (folder / "staged.txt").write_text("staged\n")
    git(folder, "add", "staged.txt")
    return folder


def state(folder: Path) -> list[str]:
    """Everything of a repository that is the user's: branch, commits, index, work tree."""
    return [
        git(folder, "symbolic-ref", "HEAD"),
        git(folder, "rev-parse", "HEAD"),
        git(folder, "ls-files", "--stage"),
        git(folder, "status", "--porcelain"),
        git(folder, "worktree", "list"),
        git(folder, "stash", "list"),
    ]


class ScriptedJudge:
    """The scripted judge in this process."""

    def binary(self, text: str) -> Report:
        return Report.parse(agent_fakes.binary(text))

    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        return Report.parse(agent_fakes.report(text, incumbent, seed, full=False, screen=True))

    def judge(self, text: str, incumbent: str, seed: int) -> Report:
        return Report.parse(agent_fakes.report(text, incumbent, seed, full=True))

    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        return Report.parse(agent_fakes.report(text, baseline, seed, full=False))


class OnGpu(ScriptedJudge):
    """The same of a Triton kernel on a GPU, whose binaries can be told apart."""

    def __init__(self) -> None:
        self.screened: list[str] = []
        self.compiled: list[str] = []

    def binary(self, text: str) -> Report:
        self.compiled.append(text)
        return super().binary(text)

    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        self.screened.append(text)
        return super().screen(text, incumbent, seed)

    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        raw = agent_fakes.report(text, baseline, seed, full=False)
        raw["kernels"][0].update(backend="triton", device="cuda")
        return Report.parse(raw)


@dataclass
class Silent:
    """A display that remembers."""

    seen: list[str] = field(default_factory=list)

    def trying(self, experiment: int, what: str) -> None:
        self.seen.append(f"{experiment} {what}")

    def finished(self, experiment: Experiment) -> None:
        self.seen.append(f"{experiment.experiment} {experiment.decision}")

    def failed(self, proposal: Proposal) -> None:
        self.seen.append(f"{proposal.experiment} {proposal.failure}")


@dataclass
class Given:
    """A worker in this process, with the judge that it is given."""

    given: Judge
    where: str = "here"

    def judge(self, kernel: str) -> Judge:
        return self.given

    def close(self) -> None:
        pass


_crews = ExitStack()


def crew(*judges: Judge) -> Crew:
    """A worker for each judge, until the ledger is closed."""
    hires = [lambda judge=judge: Given(judge) for judge in judges]
    return _crews.enter_context(closing(Crew(hires)))


@contextmanager
def opened(folder: Path, tag: str = "t") -> Iterator[Ledger]:
    repository = Repository(folder)
    try:
        with _crews, open_ledger(repository, tag) as ledger:
            yield ledger
    finally:
        repository.close()


def loop(ledger: Ledger, seed: int = 1, kernel: str = PATH) -> Loop:
    base = ledger.repository.head()
    return Loop(kernel, base, crew(ScriptedJudge()), ledger, Silent(), "tuner", seed)


def run(folder: Path, stop: Stop | int, seed: int = 1) -> list[Experiment]:
    """A run with the scripted judge; all experiments of its ledger."""
    with opened(folder) as ledger:
        loop(ledger, seed).run(experiments(stop) if isinstance(stop, int) else stop)
        return ledger.experiments


def rows(repo: Path) -> list[dict[str, str]]:
    """What results.tsv holds."""
    with (repo / ".autokernel/t/results.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def essence(experiments: list[Experiment]) -> list[tuple[object, ...]]:
    """What must not depend on when, or in how many runs, experiments were made."""
    return [(e.experiment, e.description, e.verdict, e.decision, e.seed) for e in experiments]
