"""Several workers: what is recorded and kept does not depend on them."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
from autokernel_agent.proposers import PROPOSERS, Edit, Settings, Situation
from autokernel_agent.proposers.briefing import situation_text
from autokernel_agent.records import Experiment
from autokernel_agent.report import Report
from autokernel_agent.stop import experiments

from .agent_fakes import KERNEL
from .agent_listed import EDITS, TWICE, WIDE, WIDER, WIDEST, Listed, opened_as_listed, worked
from .agent_repository import (
    PATH,
    OnGpu,
    ScriptedJudge,
    crew,
    essence,
    git,
    loop,
    opened,
    user_repository,
)

pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Listed]:
    return opened_as_listed(monkeypatch)


class Together(ScriptedJudge):
    """Answers no screen against the starter before as many were asked as the barrier holds."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier

    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        if incumbent == KERNEL:
            self.barrier.wait(10)
        return super().screen(text, incumbent, seed)


class Backwards(ScriptedJudge):
    """Of every two screens the second is answered first."""

    def __init__(self, second: threading.Event) -> None:
        self.second = second

    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        if text in (WIDE, WIDER):
            assert self.second.wait(10)
        elif text in (TWICE, WIDEST):
            self.second.set()
        return super().screen(text, incumbent, seed)


class TestWhatIsRecorded:
    def test_is_the_same_with_four_workers_as_with_one(
        self, repo: Path, tmp_path: Path, listed: list[Listed]
    ) -> None:
        alone = worked(user_repository(tmp_path / "alone"), ScriptedJudge())
        four = worked(repo, *(ScriptedJudge() for _ in range(4)))
        assert [(e.description, e.seed, e.kept) for e in four] == [
            (e.description, e.seed, e.kept) for e in alone
        ]
        assert git(repo, "show", f"autokernel/t:{PATH}").strip() == WIDER.strip()

    def test_is_the_same_whichever_worker_is_faster(
        self, repo: Path, tmp_path: Path, listed: list[Listed]
    ) -> None:
        second = threading.Event()
        backwards = worked(repo, Backwards(second), Backwards(second))
        forwards = worked(user_repository(tmp_path / "f"), ScriptedJudge(), ScriptedJudge())
        assert essence(backwards) == essence(forwards)
        assert [e.speedup for e in backwards] == [e.speedup for e in forwards]
        assert [t.text for t in listed[1].told] == [edit.text for edit in EDITS]

    def test_is_the_whole_space_where_the_tuner_searches_with_four(
        self, repo: Path, tmp_path: Path
    ) -> None:
        four = worked(repo, *(ScriptedJudge() for _ in range(4)), by="tuner")
        alone = worked(user_repository(tmp_path / "alone"), ScriptedJudge(), by="tuner")
        with opened(repo) as ledger:
            texts = [ledger.repository.text(e.commit, PATH) for e in four]
        assert len({*texts}) == len(texts) == len(alone) == 11
        assert git(repo, "show", f"autokernel/t:{PATH}") == git(
            tmp_path / "alone", "show", f"autokernel/t:{PATH}"
        )

    def test_is_judged_at_the_same_time(self, repo: Path, listed: list[Listed]) -> None:
        barrier = threading.Barrier(5)
        assert len(worked(repo, *(Together(barrier) for _ in range(5)))) == len(EDITS) + 1

    def test_stays_within_the_limit_on_experiments(self, repo: Path) -> None:
        with opened(repo) as ledger:
            four = crew(*(ScriptedJudge() for _ in range(4)))
            why = dataclasses.replace(loop(ledger), crew=four).run(experiments(3))
            assert (why, len(ledger.experiments)) == ("3 experiments done", 4)


class TestWhatIsKept:
    """Five are judged at once: all against the starter."""

    @pytest.fixture
    def done(self, repo: Path, listed: list[Listed]) -> list[Experiment]:
        barrier = threading.Barrier(5)
        return worked(repo, *(Together(barrier) for _ in range(5)))

    def test_was_compared_with_the_one_that_it_replaced(self, done: list[Experiment]) -> None:
        _, wide, _, wider, *_ = done
        assert [e.kept for e in done[1:]] == [True, False, True, False, False]
        assert wider.parent == wide.commit
        assert wider.speedup
        assert wider.speedup.ratio == pytest.approx(2.0 / 1.5)

    def test_and_one_that_the_starter_lost_to_is_judged_again(self, done: list[Experiment]) -> None:
        """Width 8 is faster than the starter, and slower than what was kept meanwhile."""
        _, _, _, wider, widest, _ = done
        assert (widest.parent, widest.decision) == (wider.commit, "REVERT")

    def test_what_lost_to_an_older_one_is_not_judged_again(self, done: list[Experiment]) -> None:
        starter, _, twice, *_ = done
        assert (twice.parent, twice.decision) == (starter.commit, "UNDECIDED")

    def test_a_proposer_is_told_speedups_over_the_incumbent_of_that_moment(
        self, done: list[Experiment], listed: list[Listed], repo: Path
    ) -> None:
        wide, twice, *_ = listed[1].told
        assert wide.speedup
        assert wide.speedup.ratio == pytest.approx(1.5)
        assert twice.speedup
        assert twice.speedup.ratio == pytest.approx(1.004 / 1.5)
        worked(repo, ScriptedJudge())  # taken up again
        assert listed[-1].told[: len(EDITS)] == listed[1].told


class TestTheTuner:
    def test_leaves_out_what_is_pending(self, repo: Path) -> None:
        tuner = PROPOSERS["tuner"](KERNEL, 1, Settings({}))
        situation = Situation(PATH, "softmax", KERNEL, ScriptedJudge().compare(KERNEL, None, 1), ())
        pending: list[Edit] = []
        while edit := tuner.ask(dataclasses.replace(situation, pending=tuple(pending))):
            pending.append(edit)
        assert len({edit.text for edit in pending}) == len(pending) == 10

    def test_duplicates_of_what_is_pending_wait_for_its_verdict(self, repo: Path) -> None:
        judges = [OnGpu() for _ in range(4)]
        done = worked(repo, *judges, by="tuner")
        twins = [e for e in done if e.reason and e.reason.startswith("duplicate of experiment")]
        assert twins
        for twin in twins:
            first = done[int((twin.reason or "").split()[3].rstrip(":"))]
            assert (first.binary, first.verdict) == (twin.binary, "PASS")
        again = sum(len(judge.screened) for judge in judges)
        assert len(done) - 1 - len(twins) <= again <= len(done) - 1


def test_a_model_is_told_what_is_pending() -> None:
    report = ScriptedJudge().compare(KERNEL, None, 1)
    alone = Situation(PATH, "softmax", KERNEL, report, ())
    assert "being judged" not in situation_text(alone)
    several = situation_text(dataclasses.replace(alone, pending=EDITS[:2]))
    assert "propose something else\n\n- {'width': 2, 'unroll': 1}\n- {'width': 1" in several
