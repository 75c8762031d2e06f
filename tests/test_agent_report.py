"""What the agent reads from the judge's report, and what it decides from it."""

from __future__ import annotations

from typing import Any

import pytest
from autokernel_agent import stop
from autokernel_agent.errors import JudgeFailed
from autokernel_agent.report import Report, decide, judge_candidate, promising
from autokernel_agent.stop import Progress

from .agent_fakes import KERNEL, report


def quick(*case: tuple[float, float, float, str]) -> Report:
    """A report whose timed cases come to (ratio, low, high, decision), or were not compared."""
    raw = report(KERNEL, KERNEL, 1, full=False)
    (kernel,) = raw["kernels"]
    figures = ("ratio", "low", "high", "decision")
    found = [{**kernel["overall"], **dict(zip(figures, c, strict=True))} for c in case]
    kernel["overall"] = found[0] if found else None
    return Report.parse(raw)


def full(verdict: str = "PASS") -> Report:
    raw = report(KERNEL, None, 1, full=True)
    raw["kernels"][0].update(verdict=verdict, reason=None if verdict == "PASS" else "why")
    return Report.parse(raw)


FASTER = (1.2, 1.1, 1.3, "KEEP")
SAME = (1.0, 0.99, 1.005, "REVERT")
SLOWER = (0.9, 0.85, 0.95, "REVERT")
UNSURE = (1.02, 0.99, 1.05, "UNDECIDED")


class TestDecisions:
    @pytest.mark.parametrize("case", [FASTER, SAME, SLOWER, UNSURE])
    def test_they_are_the_judges(self, case: tuple[float, float, float, str]) -> None:
        assert decide(quick(case)) == case[-1]

    def test_nothing_is_kept_that_was_not_compared(self) -> None:
        assert decide(quick()) == "REVERT"
        assert judge_candidate(quick(), None).speedup is None

    def test_a_keep_needs_the_full_judgement_to_pass(self) -> None:
        assert judge_candidate(quick(FASTER), full()).decision == "KEEP"
        wrong = judge_candidate(quick(FASTER), full("CRASH"))
        assert (wrong.verdict, wrong.decision, wrong.reason) == ("CRASH", "REVERT", "why")

    def test_a_keep_without_the_full_judgement_is_a_mistake_of_the_caller(self) -> None:
        with pytest.raises(ValueError, match="full judgement"):
            judge_candidate(quick(FASTER), None)

    @pytest.mark.parametrize("verdict", ["FAIL", "TIMEOUT", "CRASH"])
    def test_a_wrong_kernel_is_reverted_however_fast(self, verdict: str) -> None:
        raw = dict(quick(FASTER).raw)
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
