"""Which checks a kernel gets: all that its op asks for, and none that its target cannot take."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_autokernel import plan
from pytest_autokernel.op import LAYOUTS, Case, Cost, Dim, Op, Stability, Tolerance, Variant
from pytest_autokernel.ops import load_op, op_files
from pytest_autokernel.plan import STAGES, Check, Target, TargetName
from pytest_autokernel.settings import Effort

FILES = op_files(Path("nowhere"))
OPS = [load_op(name, FILES) for name in FILES]
EFFORTS, TARGETS = get_args(Effort), get_args(TargetName)
ROOMY = Target("cuda", 2**40)

each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
each_target = pytest.mark.parametrize("name", TARGETS)
each_effort = pytest.mark.parametrize("effort", EFFORTS)


def nothing(*_: object) -> NoReturn:
    raise AssertionError("a plan is made without any tensor")


def an_op(**changes: Any) -> Op:
    """One whose cases cost as many elements as rows times cols."""
    op = Op(
        name="op",
        reference=nothing,
        inputs=nothing,
        dims=(Dim("rows", 1, 64, batch=1), Dim("cols", 1, 64)),
        sizes={name: {"rows": n, "cols": n} for name, n in [("b", 32), ("a", 8), ("c", 64)]},
        edges={"one": {"rows": 1, "cols": 1}},
        tolerance=Tolerance(nothing),
        cost=lambda dims, size: Cost(1, size * dims["rows"] * dims["cols"]),
        roof="copy",
        timed=("c",),
        baselines={},
        variants={"core": Variant(), "other": Variant({}, "claimed")},
        stability={"half": Stability(nothing, "", dtypes=("fp16",)), "all": Stability(nothing, "")},
    )
    return replace(op, **changes)


def ids(op: Op, target: Target = ROOMY, effort: Effort = "normal", *supports: str) -> list[str]:
    return [f"{c.stage}-{c.id}" for c in plan.checks(op, frozenset(supports), target, effort)]


def full(op: Op, name: TargetName, effort: Effort) -> list[Check]:
    """The checks of a kernel that claims everything."""
    return list(plan.checks(op, frozenset(op.extensions), plan.target(name, effort), effort))


@each_op
@each_target
@each_effort
def test_no_check_is_larger_than_its_target(op: Op, name: TargetName, effort: Effort) -> None:
    target = plan.target(name, effort)
    for check in full(op, name, effort):
        assert op.cost(check.case.dims, 1).bytes <= target.max_elements
        assert op.cost(check.case.dims, 1).flops <= target.max_flops
        programs = [check.case.dims[dim.name] / dim.batch for dim in op.dims if dim.batch]
        assert math.prod(programs) <= target.max_programs


@each_op
@each_target
@each_effort
def test_every_check_has_its_own_id(op: Op, name: TargetName, effort: Effort) -> None:
    counts = Counter((check.stage, check.id) for check in full(op, name, effort))
    assert counts.most_common(1)[0][1] == 1


@each_op
@each_effort
def test_on_a_gpu_every_stage_has_checks_and_every_timed_size_is_timed(
    op: Op, effort: Effort
) -> None:
    found = full(op, "cuda", effort)
    assert list(dict.fromkeys(check.stage for check in found)) == list(STAGES)
    assert [case.name for case in plan.timed_cases(op, "cuda")] == list(op.timed)


@each_op
@each_target
def test_smoke_comes_first_in_every_dtype(op: Op, name: TargetName) -> None:
    found = full(op, name, "quick")[: len(op.dtypes)]
    assert [(check.stage, check.case.dtype) for check in found] == [
        ("smoke", dtype) for dtype in op.dtypes
    ]


@each_op
@each_target
def test_more_effort_leaves_nothing_out(op: Op, name: TargetName) -> None:
    quick, normal, thorough = (
        {(check.stage, check.id) for check in full(op, name, effort)} for effort in EFFORTS
    )
    assert quick < normal <= thorough


@each_op
@each_effort
def test_on_a_gpu_nothing_is_left_out_but_what_the_report_names(op: Op, effort: Effort) -> None:
    target = plan.target("cuda", effort)
    left_out = plan.left_out(op, frozenset(), target, effort)
    found = {f"{c.stage}[{c.id}]" for c in plan.checks(op, frozenset(), target, effort)}
    every = {f"{c.stage}[{c.id}]" for c in plan.checks(op, frozenset(), ROOMY, effort)}
    assert found.isdisjoint(left_out)
    assert found | set(left_out) == every


@each_op
@each_target
def test_something_is_timed_and_it_is_a_named_size_or_a_part_of_it(
    op: Op, name: TargetName
) -> None:
    timed = plan.timed_cases(op, name)
    assert timed
    for case in timed:
        assert case.dtype == ("bf16" if name == "cuda" else "fp32")
        assert all(n <= op.sizes[case.name][dim] for dim, n in case.dims.items())


@each_effort
def test_a_variant_is_judged_where_it_is_claimed(effort: Effort) -> None:
    def variants(*supports: str) -> set[str]:
        found = plan.checks(an_op(), frozenset(supports), ROOMY, effort)
        return {check.case.variant for check in found}

    assert variants() == {"core"}
    assert variants("claimed") == {"core", "other"}


@each_effort
def test_a_stability_case_is_judged_in_its_dtypes(effort: Effort) -> None:
    found = [c for c in plan.checks(an_op(), frozenset(), ROOMY, effort) if c.case.fill == "half"]
    assert {(c.stage, c.case.dtype) for c in found} == {("numerical_stability", "fp16")}


def test_contents_are_judged_in_long_dims_and_in_what_is_claimed() -> None:
    found = plan.checks(an_op(), frozenset({"claimed"}), ROOMY, "normal")
    names = [c.case.name for c in found if c.case.fill == "half"]
    assert names == ["half", "long_half", "other_half"]


@each_effort
def test_the_timed_size_is_swept_at_any_effort_beside_the_smallest(effort: Effort) -> None:
    sizes = {f"size{n}": {"rows": n, "cols": n} for n in (64, 16, 8, 32)}
    found = plan.checks(an_op(sizes=sizes, timed=("size64",)), frozenset(), ROOMY, effort)
    swept = [c.case.name for c in found if c.stage == "shape_sweep" and c.case.name in sizes]
    expected = ["size8", "size16", "size64"] if effort == "quick" else list(sizes)
    assert sorted(set(swept)) == sorted(expected)


def test_every_layout_is_an_edge() -> None:
    found = [c.case for c in plan.checks(an_op(), frozenset(), ROOMY, "normal")]
    assert {case.layout for case in found} == set(LAYOUTS)


def test_determinism_repeats_and_the_drawn_check_searches() -> None:
    kinds = {(c.stage, c.kind) for c in plan.checks(an_op(), frozenset(), ROOMY, "quick")}
    assert ("determinism", "repeat") in kinds
    assert ("shape_sweep", "drawn") in kinds


dims = st.fixed_dictionaries({"rows": st.integers(0, 5000), "cols": st.integers(0, 5000)})
targets = st.builds(Target, st.sampled_from(TARGETS), st.integers(1, 2**20), st.integers(1, 2**10))


@settings(deadline=None)
@given(dims, targets)
def test_a_case_is_cut_along_its_batch_alone_and_no_more_than_it_must(
    dims: dict[str, int], target: Target
) -> None:
    op, case = an_op(), Case("case", dims, "fp32")
    fitted = plan.fit(op, case, target)
    if fitted is None:
        assert dims["cols"] > target.max_elements
        return
    rows, cols = fitted.dims["rows"], fitted.dims["cols"]
    assert cols == dims["cols"]
    assert rows * cols <= target.max_elements
    assert rows <= min(dims["rows"], target.max_programs)
    assert plan.fit(op, fitted, target) == fitted
    if rows < dims["rows"]:
        assert rows == target.max_programs or (rows + 1) * max(cols, 1) > target.max_elements


def test_a_case_is_cut_to_the_operations_that_the_target_takes() -> None:
    op = an_op(cost=lambda dims, size: Cost(dims["rows"] * dims["cols"] ** 2, dims["rows"]))
    slow = Target("interpreter", 2**30, max_flops=2**20)
    case = Case("case", {"rows": 4096, "cols": 128}, "fp32")
    fitted = plan.fit(op, case, slow)
    assert fitted is not None
    assert fitted.dims == {"rows": 64, "cols": 128}
    assert plan.fit(op, replace(case, dims={"rows": 1, "cols": 1025}), slow) is None


def test_a_dim_that_is_kept_is_not_cut() -> None:
    dims = tuple(Dim(name, 1, 64, batch=1) for name in ("batch", "rows"))
    op = an_op(dims=dims, cost=lambda dims, size: Cost(0, math.prod(dims.values())))
    case, room = Case("case", {"batch": 8, "rows": 64}, "fp32"), Target("cpu", 128)
    fitted = plan.fit(op, case, room, kept="rows")
    assert fitted is not None
    assert fitted.dims == {"batch": 2, "rows": 64}
    assert plan.fit(op, replace(case, dims={"batch": 1, "rows": 129}), room, kept="rows") is None


@each_op
@each_target
@each_effort
def test_an_input_of_another_layout_has_several_of_each_batch_dim(
    op: Op, name: TargetName, effort: Effort
) -> None:
    found = [c.case for c in full(op, name, effort) if c.case.layout != "contiguous"]
    assert {case.layout for case in found} == set(LAYOUTS[1:])
    assert all(case.dims[dim.name] > 1 for case in found for dim in op.dims if dim.batch)


def test_the_dim_with_the_most_programs_gives_way_first() -> None:
    dims = tuple(Dim(name, 1, 64, batch=1) for name in ("batch", "heads", "rows"))
    op = an_op(dims=dims, cost=lambda dims, size: Cost(0, math.prod(dims.values())))
    case = Case("case", {"batch": 4, "heads": 8, "rows": 64}, "fp32")
    for room, left in ((512, [4, 8, 16]), (128, [4, 8, 4]), (8, [2, 2, 2]), (1, [1, 1, 1])):
        fitted = plan.fit(op, case, Target("cpu", room))
        assert fitted is not None
        assert list(fitted.dims.values()) == left


def test_a_case_that_cannot_be_cut_is_left_out_by_name() -> None:
    op, small = an_op(dims=(Dim("rows", 1, 64), Dim("cols", 1, 64))), Target("cpu", 1500)
    every, found = ids(op), ids(op, small)
    left_out = plan.left_out(op, frozenset(), small, "normal")
    assert len(found) + len(left_out) == len(every)
    assert "shape_sweep[c-fp32]" in left_out
    assert "shape_sweep[a-fp32]" not in left_out


@each_target
@each_effort
def test_tools_are_run_on_a_gpu_and_at_the_highest_effort_alone(
    name: TargetName, effort: Effort
) -> None:
    asked = (name, effort) == ("cuda", "thorough")
    assert plan.tools(name, effort) == (plan.TOOLS if asked else ())


@each_op
def test_a_tool_gets_few_small_cases_of_every_claimed_variant_and_odd_ones(op: Op) -> None:
    supports = frozenset(op.extensions)
    cases = plan.tool_cases(op, supports)
    assert {case.variant for case in cases} == set(op.claimed(supports))
    assert {case.name for case in cases} & set(op.edges)
    assert len({case.id for case in cases}) == len(cases) <= 20
    assert all(op.cost(case.dims, 1).bytes <= plan.WITH_TOOL[0] for case in cases)
    core = plan.tool_cases(op, frozenset())
    assert {case.variant for case in core} == set(op.claimed(frozenset()))
