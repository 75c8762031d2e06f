"""Where marks stand on a plot, and which values its axes name."""

from __future__ import annotations

import itertools
import math

import pytest
from autokernel_agent.page.geometry import Axis, Mark, spaced
from autokernel_agent.page.plots import strip
from autokernel_agent.page.story import Case
from autokernel_agent.report import Speedup
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)
AXES = st.builds(Axis.around, VALUES, st.booleans())


@given(AXES, VALUES)
def test_everything_stands_within_the_plot_and_more_stands_further(
    axis: Axis, values: list[float]
) -> None:
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)


@given(VALUES, st.booleans())
def test_an_axis_around_values_has_room_for_all(values: list[float], log: bool) -> None:
    axis = Axis.around(values, log)
    assert axis.low < min(values)
    assert max(values) < axis.high


@given(AXES, st.integers(4, 8))
def test_an_axis_names_a_few_values_at_places_of_their_own(axis: Axis, most: int) -> None:
    ticks = axis.ticks(most)
    assert 1 <= len(ticks) <= most + 1
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(ticks))


@pytest.mark.parametrize(
    ("axis", "named"),
    [
        (Axis(0.9, 2.1), ["1", "1.5", "2"]),
        (Axis(0.5, 25, log=True), ["0.5", "1", "2", "5", "10", "20"]),
        (Axis(0.1, 2000, log=True), ["0.1", "1", "10", "100", "1000"]),
    ],
)
def test_named_values_are_round(axis: Axis, named: list[str]) -> None:
    assert [words for _, words in axis.ticks()] == named


def test_an_interval_of_which_nothing_is_known_leaves_the_blocks_to_be_seen() -> None:
    nothing = Speedup(1.1, 0.0, math.inf, 0.99)
    drawn = strip(
        Case("c", 2.0, 1.0, nothing, "UNDECIDED", False, (1.0, 1.2), 2, {}, None, None, "")
    )
    assert (drawn.low, drawn.high) == (0, 100)
    assert [0 < x < 100 for x, _ in drawn.dots] == [True, True]


def test_of_labels_that_would_touch_the_first_stays() -> None:
    marks = [Mark(x, 50, "kept", "", label=f"#{x}") for x in (10, 12, 14, 16)]
    assert [mark.label for mark in spaced(marks, 5, 6)] == ["#10", "", "", "#16"]
