"""Which kernel the agent takes next, when it leaves one, and what the whole gains."""

from __future__ import annotations

import dataclasses

import pytest
from autokernel_agent import schedule, stop
from autokernel_agent.errors import Refused
from autokernel_agent.schedule import Standing
from autokernel_agent.stop import Progress

FRESH = Standing("a", 0.5, 1.0, 50.0, tried=0, kept=0, recent=0)


def other(**figures: object) -> Standing:
    return dataclasses.replace(FRESH, kernel="b", **figures)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("worse", "why"),
    [
        (other(share=0.4), "a smaller share"),
        (other(gained=2.0), "faster already, so that its share has shrunk"),
        (other(pct_roof=80.0), "nearer to its roof"),
        (other(tried=10), "ten tries that gained nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kernel_from_which_most_is_to_be_expected_comes_next(worse: Standing, why: str) -> None:
    assert schedule.choose([worse, FRESH], set()) == FRESH
    assert schedule.choose([worse, FRESH], {"a"}) == worse


def test_none_comes_next_where_all_are_over() -> None:
    assert schedule.choose([FRESH], {"a"}) is None
    assert schedule.choose([], set()) is None


def test_a_kernel_above_its_measured_roof_is_expected_to_gain_nothing() -> None:
    assert other(pct_roof=104.0).expected == 0
    assert other(pct_roof=None).expected == 0.25


def test_the_whole_gains_by_amdahls_law() -> None:
    half = dataclasses.replace(FRESH, share=0.5, gained=2.0)
    assert schedule.whole([half]) == pytest.approx(1 / 0.75)
    assert schedule.whole([half, other(share=0.5, gained=4.0)]) == pytest.approx(1 / 0.375)
    assert schedule.whole([FRESH]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (Progress(reverts=4, gained=1.9, pct_roof=89.0, elapsed_s=7100, experiments=1), None),
        (Progress(reverts=5), "5 in a row were not kept"),
        (Progress(pct_roof=91.0), "it is at 91 % of its roof"),
        (Progress(experiments=2, elapsed_s=7201), "120 minutes are over"),
        (Progress(gained=2.1), "it is 2.10x as fast"),
    ],
)
def test_the_usual_rules_say_when_to_leave_a_kernel(progress: Progress, words: str | None) -> None:
    assert stop.parse(stop.MOVE_ON).why(progress) == words


@pytest.mark.parametrize("text", ["", "plateau", "plateau(x)", "tired(3)", "plateau(5) and more"])
def test_rules_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="expected rules such as"):
        stop.parse(text)
