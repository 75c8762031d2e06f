"""What the agent reads from the judge's report, and what it decides from it."""

from __future__ import annotations

from typing import Any

import pytest
from autokernel_agent import stop
from autokernel_agent.errors import JudgeFailed
from autokernel_agent.report import Report, judge_candidate, promising
from autokernel_agent.stop import Progress

from .agent_fakes import KERNEL, report

Case = tuple[float, float, float, str]


def screened(*case: Case) -> Report:
    """A screen's report whose timed cases come to (ratio, low, high, answer), or were not
    compared."""
    return _report(case, full=False)


def full(*case: Case, verdict: str = "PASS") -> Report:
    """The same of a whole judgement."""
    return _report(case, full=True, verdict=verdict)


def _report(cases: tuple[Case, ...], full: bool, verdict: str = "PASS") -> Report:
    raw = report(KERNEL, KERNEL, 1, full=full)
    (kernel,) = raw["kernels"]
    figures = ("ratio", "low", "high", "decision")
    found = [{**kernel["overall"], **dict(zip(figures, c, strict=True))} for c in cases]
    kernel["overall"] = found[0] if found else None
    kernel.update(verdict=verdict, reason=None if verdict == "PASS" else "why")
    return Report.parse(raw)


PROMISING = (1.3, 1.2, 1.4, "PROMISING")
FASTER = (1.2, 1.1, 1.3, "KEEP")
SAME = (1.0, 0.99, 1.005, "REVERT")
SLOWER = (0.9, 0.85, 0.95, "REVERT")
UNSURE = (1.02, 0.99, 1.05, "UNDECIDED")


class TestTheCascade:
    @pytest.mark.parametrize("case", [SAME, SLOWER, UNSURE])
    def test_ends_at_a_screens_no(self, case: Case) -> None:
        assert not promising(screened(case))
        assert judge_candidate(screened(case), None).decision == case[-1]

    def test_ends_with_what_was_not_compared(self) -> None:
        assert judge_candidate(screened(), None).decision == "REVERT"
        assert judge_candidate(screened(), None).speedup is None

    def test_goes_on_with_what_is_promising(self) -> None:
        assert promising(screened(PROMISING))
        with pytest.raises(ValueError, match="need the whole judgement"):
            judge_candidate(screened(PROMISING), None)

    @pytest.mark.parametrize("case", [FASTER, SAME, SLOWER, UNSURE])
    def test_decides_by_the_whole_judgement_alone(self, case: Case) -> None:
        found = judge_candidate(screened(PROMISING), full(case))
        assert found.decision == case[-1]
        assert found.speedup
        assert found.speedup.ratio == case[0]

    def test_keeps_nothing_that_the_whole_judgement_finds_wrong(self) -> None:
        found = judge_candidate(screened(PROMISING), full(verdict="CRASH"))
        assert (found.verdict, found.decision, found.reason) == ("CRASH", "REVERT", "why")
        assert found.speedup
        assert found.speedup.ratio == 1.3

    def test_takes_no_screens_answer_for_a_decision(self) -> None:
        with pytest.raises(JudgeFailed, match="a screen's answer"):
            judge_candidate(screened(PROMISING), full(PROMISING))

    @pytest.mark.parametrize("answer", ["KEEP", "FASTER"])
    def test_lets_no_screen_keep_anything(self, answer: str) -> None:
        found = judge_candidate(screened((1.3, 1.2, 1.4, answer)), None)
        assert found.decision == "REVERT"

    @pytest.mark.parametrize("verdict", ["FAIL", "TIMEOUT", "CRASH"])
    def test_reverts_a_wrong_kernel_however_fast(self, verdict: str) -> None:
        raw = dict(screened(PROMISING).raw)
        raw["kernels"][0].update(verdict=verdict)
        found = Report.parse(raw)
        assert not promising(found)
        assert judge_candidate(found, None).decision == "REVERT"
        assert judge_candidate(found, None).verdict == verdict


class TestReports:
    @pytest.mark.parametrize(
        "change",
        [{"schema": 2}, {"kernels": []}, {"kernels": [{}, {}]}, {"kernels": [{"verdict": "PASS"}]}],
    )
    def test_any_other_shape_is_a_failure_of_the_judge(self, change: dict[str, Any]) -> None:
        with pytest.raises(JudgeFailed):
            Report.parse({**report(KERNEL, None, 1, full=False), **change})


class TestStopRules:
    def test_they_join_and_the_first_that_holds_says_why(self) -> None:
        rule = stop.minutes(1) | stop.experiments(3)
        assert rule.why(Progress(experiments=2, elapsed_s=30)) is None
        assert rule.why(Progress(experiments=3, elapsed_s=30)) == "3 experiments done"
        assert rule.why(Progress(experiments=2, elapsed_s=61)) == "1 minutes are over"

    def test_no_rule_goes_on_for_ever(self) -> None:
        assert stop.never().why(Progress(experiments=10**6, elapsed_s=1e9)) is None

    def test_no_experiment_begins_that_cannot_end_in_time(self) -> None:
        assert stop.seconds(60).why(Progress(experiments=5, elapsed_s=50, mean_s=11))
        assert not stop.seconds(60).why(Progress(experiments=5, elapsed_s=50, mean_s=9))

    def test_the_first_experiment_always_runs_and_the_second_if_there_is_time(self) -> None:
        assert not stop.seconds(1).why(Progress(experiments=0, elapsed_s=100))
        assert not stop.seconds(60).why(Progress(experiments=1, elapsed_s=50, mean_s=40))
        assert stop.seconds(60).why(Progress(experiments=1, elapsed_s=61))
