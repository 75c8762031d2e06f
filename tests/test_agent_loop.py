"""Experiments: what is kept, what is reverted, and what of the user's is left alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent.errors import JudgeFailed, Refused
from autokernel_agent.records import Experiment
from autokernel_agent.report import Report
from autokernel_agent.stop import experiments, never

from .agent_fakes import KERNEL, config_of
from .agent_repository import (
    PATH,
    OnGpu,
    ScriptedJudge,
    crew,
    essence,
    git,
    loop,
    opened,
    run,
    state,
    user_repository,
)

# What the script gives: width pays up to 4, unroll=2 is within the noise, unroll=4 is wrong.
BEST = {"width": 4, "unroll": 1}


pytestmark = pytest.mark.usefixtures("bare")


class TestARun:
    def test_it_keeps_what_is_right_and_faster_and_reverts_the_rest(self, repo: Path) -> None:
        experiments = run(repo, never())
        kept = [e.description for e in experiments if e.kept]
        assert kept == ["width 1 -> 4"]
        assert config_of(git(repo, "show", f"autokernel/t:{PATH}")) == BEST
        assert len(experiments) == 11  # the whole space
        assert {e.decision for e in experiments} == {None, "KEEP", "REVERT", "UNDECIDED"}

    def test_a_fast_kernel_that_fails_the_full_judgement_is_not_kept(self, repo: Path) -> None:
        wrong = [e for e in run(repo, never()) if e.verdict == "FAIL"]
        assert wrong
        assert all(e.decision == "REVERT" for e in wrong)
        assert all(e.speedup is not None and e.speedup.low > 1 for e in wrong)
        assert all(len(e.reports) == 2 for e in wrong)

    def test_only_what_is_promising_is_judged_in_full(self, repo: Path) -> None:
        for e in run(repo, never()):
            assert len(e.reports) == (2 if e.kept or e.verdict == "FAIL" else 1)

    def test_the_users_branch_index_and_work_tree_stay_as_they_were(self, repo: Path) -> None:
        before = state(repo)
        run(repo, 4)
        assert state(repo) == before
        assert (repo / "notes.txt").read_text() == "changed\n"

    def test_its_seeds_are_its_own_and_repeatable(self, repo: Path, tmp_path: Path) -> None:
        here = run(repo, 4)
        there = run(user_repository(tmp_path / "there"), 4)
        assert essence(here) == essence(there)
        assert len({e.seed for e in here}) == len(here)

    def test_the_closing_measurement_is_against_the_starter(self, repo: Path) -> None:
        with opened(repo) as ledger:
            work = loop(ledger)
            assert work.run(never()) == "nothing is left to try"
            closing = work.close()
        assert closing is not None
        assert closing.speedup is not None
        assert closing.speedup.ratio == pytest.approx(2)
        assert closing.starter == git(repo, "rev-parse", "main")
        assert closing.commit == git(repo, "rev-parse", "autokernel/t")
        with opened(repo) as ledger:
            assert ledger.closing(PATH) == closing

    def test_with_nothing_kept_there_is_nothing_to_close(self, repo: Path) -> None:
        with opened(repo) as ledger:
            work = dataclasses.replace(loop(ledger), crew=crew(NeverFaster()))
            work.run(never())
            assert work.close() is None
            assert ledger.tip == git(repo, "rev-parse", "main")

    def test_a_wrong_starter_is_refused_with_the_reason_and_nothing_is_recorded(
        self, repo: Path
    ) -> None:
        with opened(repo) as ledger:
            work = dataclasses.replace(loop(ledger), crew=crew(AlwaysWrong()))
            with pytest.raises(Refused, match="is not right as it is: CRASH: segfault"):
                work.run(never())
            assert ledger.experiments == []
        assert git(repo, "for-each-ref", "refs/heads/autokernel", "refs/autokernel") == ""

    def test_a_machine_that_lacks_what_a_kernel_needs_is_no_fault_of_the_kernel(
        self, repo: Path
    ) -> None:
        with opened(repo) as ledger:
            work = dataclasses.replace(loop(ledger), crew=crew(Unable()))
            words = f"{PATH} cannot be judged on this machine: no compiler"
            with pytest.raises(Refused, match=f"^{words}$"):
                work.run(never())

    def test_a_kernel_that_cannot_be_timed_is_refused_with_the_reason(self, repo: Path) -> None:
        with opened(repo) as ledger:
            work = dataclasses.replace(loop(ledger), crew=crew(Untimed()))
            with pytest.raises(Refused, match=r"was not timed(.|\n)*SKIP: no GPU"):
                work.run(never())


class TestDuplicates:
    """The scripted binaries are the same for an unroll of 1 and of 2."""

    @pytest.fixture
    def judge(self) -> OnGpu:
        return OnGpu()

    @pytest.fixture
    def done(self, repo: Path, judge: OnGpu) -> list[Experiment]:
        with opened(repo) as ledger:
            dataclasses.replace(loop(ledger), crew=crew(judge)).run(never())
            return ledger.experiments

    def test_are_recorded_and_not_judged(self, done: list[Experiment], judge: OnGpu) -> None:
        twins = [e for e in done if e.reason and e.reason.startswith("duplicate of experiment")]
        assert twins
        for twin in twins:
            first = done[int((twin.reason or "").split()[3].rstrip(":"))]
            assert first.binary == twin.binary
            assert first.experiment < twin.experiment
            assert (twin.decision, twin.speedup, len(twin.reports)) == ("REVERT", None, 1)
        assert len(judge.screened) == len(done) - 1 - len(twins)
        assert done[0].binary == "1 2"

    def test_what_was_foreseen_is_not_compiled_again(
        self, done: list[Experiment], judge: OnGpu
    ) -> None:
        assert len(judge.compiled) == len({*judge.compiled})
        assert len(judge.compiled) == len(done)

    def test_a_helper_that_breaks_down_costs_no_experiment(self, repo: Path) -> None:
        class Broken(OnGpu):
            def binary(self, text: str) -> Report:
                self.compiled.append(text)
                raise JudgeFailed("no compiler")

        judge = Broken()
        with opened(repo) as ledger:
            dataclasses.replace(loop(ledger), crew=crew(judge)).run(experiments(4))
            assert len(ledger.experiments) == 5
        assert len(judge.screened) == 4
        assert len(judge.compiled) == 2  # the starter's, and one more

    def test_on_a_cpu_nothing_is_compiled_beside_what_is_timed(self, repo: Path) -> None:
        class Asked(ScriptedJudge):
            def binary(self, text: str) -> Report:
                raise AssertionError

        with opened(repo) as ledger:
            dataclasses.replace(loop(ledger), crew=crew(Asked())).run(experiments(2))
            assert len(ledger.experiments) == 3


def test_a_duplicate_of_what_was_wrong_is_judged_all_the_same(repo: Path) -> None:
    """It may be right elsewhere, where it is not timed."""

    class Same(OnGpu):
        def binary(self, text: str) -> Report:
            found = super().binary(text)
            return dataclasses.replace(found, binary=f"{config_of(text) == config_of(KERNEL)}")

        def judge(self, text: str, incumbent: str, seed: int) -> Report:
            found = super().judge(text, incumbent, seed)
            return dataclasses.replace(found, verdict="FAIL", reason="wrong elsewhere")

    judge = Same()
    with opened(repo) as ledger:
        dataclasses.replace(loop(ledger), crew=crew(judge)).run(experiments(2))
        _, wrong, same = ledger.experiments
    assert (wrong.verdict, wrong.binary) == ("FAIL", same.binary)
    assert len(judge.screened) == 2


class NeverFaster(ScriptedJudge):
    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        return super().screen(KERNEL, KERNEL, seed)


class AlwaysWrong(ScriptedJudge):
    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        report = super().compare(text, baseline, seed)
        return dataclasses.replace(report, verdict="CRASH", reason="segfault")


class Unable(ScriptedJudge):
    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        report = super().compare(text, baseline, seed)
        return dataclasses.replace(report, verdict="SKIP", reason="no compiler", timings=())


class Untimed(ScriptedJudge):
    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        report = super().compare(text, baseline, seed)
        skip = {"id": "roofline", "verdict": "SKIP", "reason": "no GPU"}
        raw: dict[str, Any] = {**report.raw, "kernels": [{"items": [skip]}]}
        return dataclasses.replace(report, timings=(), raw=raw)
