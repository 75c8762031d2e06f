"""What is drawn for a kernel: within its op's domain, near where kernels break, replayable."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_autokernel import strategies
from pytest_autokernel.op import LAYOUTS, Case, Cost, Dim, Op, Tolerance

VARIANTS = ("core", "other")


def nothing(*_: object) -> NoReturn:
    raise AssertionError("cases are drawn without any tensor")


OP = Op(
    name="op",
    reference=nothing,
    inputs=nothing,
    dims=(Dim("rows", 1, 4096, batch=1), Dim("cols", 2, 5000), Dim("head", 16, 64, (16, 64))),
    sizes={},
    edges={},
    tolerance=Tolerance(nothing),
    cost=lambda dims, size: Cost(1, 1),
    roof="copy",
    timed=(),
    baselines={},
)


def uncut(case: Case, kept: str | None) -> Case:
    return case


def drawing(
    integers: frozenset[int] = frozenset(),
    fit: strategies.Fit = uncut,
) -> st.SearchStrategy[Case]:
    return strategies.cases(OP, VARIANTS, "bf16", integers, fit)


def drawn(seed: int, examples: int = 300, **options: Any) -> list[Case]:
    seen: list[Case] = []

    def passes(case: Case) -> bool:
        seen.append(case)
        return True

    strategies.search(drawing(**options), passes, examples, 1, seed)
    return seen


@settings(deadline=None)
@given(drawing(frozenset({777, 10**9})))
def test_what_is_drawn_lies_in_the_ops_domain(case: Case) -> None:
    assert 1 <= case.dims["rows"] <= 4096
    assert 2 <= case.dims["cols"] <= 5000
    assert case.dims["head"] in (16, 64)
    assert case.dtype == "bf16"
    assert case.variant in VARIANTS
    assert case.layout in LAYOUTS


def test_everything_in_the_domain_gets_its_turn() -> None:
    cases = drawn(seed=1)
    assert {case.variant for case in cases} == set(VARIANTS)
    assert {case.layout for case in cases} == set(LAYOUTS)
    assert {case.dims["head"] for case in cases} == {16, 64}


def test_sizes_are_drawn_towards_those_at_which_kernels_break() -> None:
    special = {1, 2, 3, *strategies.TILES, *strategies.POWERS, *strategies.PRIMES}
    assert len(special & set(range(2, 5001))) < 100  # of 5000
    sizes = [case.dims["cols"] for case in drawn(seed=2)]
    assert sum(size in special for size in sizes) > len(sizes) / 2


def test_the_integers_of_the_source_are_drawn_with_their_neighbours() -> None:
    cases = drawn(seed=3, integers=frozenset({4321}))
    assert {4320, 4321, 4322} <= {case.dims["cols"] for case in cases}
    assert not {4320, 4321, 4322} <= {case.dims["cols"] for case in drawn(seed=3)}


def test_what_does_not_fit_gives_way_to_the_smallest() -> None:
    (case, *_) = drawn(seed=4, examples=3, fit=lambda case, kept: None)
    assert case.dims == {"rows": 1, "cols": 2, "head": 16}


def test_what_does_not_fit_is_halved_until_it_does() -> None:
    def fit(case: Case, kept: str | None) -> Case | None:
        return case if case.dims["cols"] <= 100 else None

    sizes = [case.dims["cols"] for case in drawn(seed=6, fit=fit)]
    assert max(sizes) <= 100
    assert len(set(sizes)) > 30
    assert {n % 2 for n in sizes if n > 50} == {0, 1}


def test_what_is_cut_is_drawn_as_it_was_cut() -> None:
    cases = drawn(seed=5, fit=lambda case, kept: replace(case, dims={**case.dims, "rows": 7}))
    assert {case.dims["rows"] for case in cases} == {7}


def test_each_integer_of_the_source_is_met_for_certain_and_the_sizes_beside_it_in_one_dtype() -> (
    None
):
    base = {"rows": 8, "cols": 100, "head": 16}
    met = [
        [
            (case.dims, case.dtype)
            for case in strategies.special_cases(
                OP, base, dtype, {64, 4999}, 1, lambda n, turn=turn: n % 3 == turn, uncut
            )
        ]
        for turn, dtype in enumerate(OP.dtypes)
    ]
    for dtype, cases in zip(OP.dtypes, met, strict=True):
        for dims in ({"rows": 64}, {"cols": 64}, {"cols": 4999}, {"head": 64}):
            assert ({**base, **dims}, dtype) in cases
    assert sorted(dims["cols"] for cases in met for dims, _ in cases if dims["cols"] != 100) == [
        *(63, 64, 64, 64, 65, 4998, 4999, 4999, 4999, 5000)
    ]


def test_a_size_of_the_source_is_met_with_smaller_other_dims_where_it_must() -> None:
    def fit(case: Case, kept: str | None) -> Case | None:
        assert kept is not None
        return case if case.dims["cols"] * case.dims["head"] <= 5000 else None

    base = {"rows": 1, "cols": 100, "head": 64}
    met = [
        case.dims
        for case in strategies.special_cases(
            OP, base, "fp16", {300, 4000}, 1, lambda size: False, fit
        )
    ]
    assert {"rows": 1, "cols": 300, "head": 16} in met
    assert {"rows": 300, "cols": 50, "head": 64} in met
    assert not any(dims["cols"] == 4000 for dims in met)


def narrow(case: Case) -> bool:
    return case.dims["cols"] < 1000


def test_a_search_that_finds_nothing_says_how_much_it_tried() -> None:
    assert strategies.search(drawing(), lambda case: True, 50, 1, 1) == (50, None)


@pytest.mark.parametrize("seed", range(5))
def test_a_search_finds_a_failure_and_shrinks_it(seed: int) -> None:
    _, failed = strategies.search(drawing(), narrow, 200, 10, seed)
    assert failed is not None
    assert 1000 <= failed.dims["cols"] <= 1791  # the first tile beyond 1000
    assert (failed.dims["rows"], failed.dims["head"]) == (1, 16)
    assert (failed.variant, failed.layout, failed.seed) == ("core", "contiguous", 0)


def test_the_same_seed_searches_alike_and_another_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn(seed=6, examples=30)
    monkeypatch.setenv("CI", "true")  # Hypothesis derandomises there
    assert drawn(seed=6, examples=30) == first
    assert drawn(seed=7, examples=30) != first


def test_no_case_is_judged_twice() -> None:
    seen: list[Case] = []

    def passes(case: Case) -> bool:
        seen.append(case)
        return narrow(case)

    strategies.search(drawing(), passes, 200, 10, 8)
    assert len({repr(case) for case in seen}) == len(seen)


def test_shrinking_ends_in_time_with_a_failure_that_was_seen() -> None:
    failures: list[Case] = []

    def passes(case: Case) -> bool:
        if not narrow(case):
            time.sleep(0.05)
            failures.append(case)
        return narrow(case)

    _, failed = strategies.search(drawing(), passes, 200, 0.2, 9)
    assert failed in failures
    assert 1 <= len(failures) <= 6
