"""What the oracle lets through and what it does not, and in which words.

That each op's tolerance fits its op is tests/test_ops.py's. Here the op is the simplest there
is, so that each expected value, and each allowance, is a number that the test chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_autokernel import operands, oracle
from pytest_autokernel.channel import TensorMeta, view
from pytest_autokernel.comparison import Call, _contract, _placed
from pytest_autokernel.handover import Host
from pytest_autokernel.op import (
    LAYOUTS,
    Case,
    Cost,
    Dtype,
    Layout,
    Op,
    Relation,
    Tolerance,
    cut_off,
    growth,
)
from pytest_autokernel.ops import load_op, op_files
from tests.conftest import ROOT

INF, NAN = math.inf, math.nan
CASE = Case("chosen", {"n": 1}, "fp32")


def double(x: torch.Tensor) -> torch.Tensor:
    """Exact in every dtype, but where it overflows."""
    return 2 * x


DOUBLE = Op(
    name="double",
    reference=double,
    inputs=lambda draw, dims: (draw.normal(dims["n"]),),
    dims=(),
    sizes={},
    edges={},
    tolerance=Tolerance(condition=lambda inputs, r: torch.zeros_like(r)),
    cost=lambda dims, size: Cost(1, 1),
    roof="copy",
    timed=(),
    baselines={"eager": double},
)


def judged(
    got: torch.Tensor, x: torch.Tensor, op: Op = DOUBLE, extra_units: int = 0
) -> oracle.Judged:
    return oracle.compare(got, op, CASE, (x,), extra_units)


def of(*values: float, dtype: Dtype = "fp32") -> torch.Tensor:
    return torch.tensor(values, dtype=operands.TORCH_DTYPES[dtype])


def ulps(x: torch.Tensor, count: float) -> torch.Tensor:
    """`x`, each element `count` last bits away from zero."""
    exponent = x.float().abs().log2().floor()
    return (x.float() + count * torch.finfo(x.dtype).eps * exponent.exp2() * x.sign()).to(x.dtype)


@pytest.fixture
def ramp() -> torch.Tensor:
    """4 rows of 32 different numbers, none of them zero."""
    return torch.linspace(1, 1.9, 128).reshape(4, 32)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_one_rounding_is_allowed_and_a_second_is_not(dtype: Dtype) -> None:
    x = of(0.53, dtype=dtype)
    assert judged(2 * x, x).ok
    assert not judged(ulps(2 * x, 1), x).ok


def test_an_ops_intermediate_roundings_are_allowed_and_no_more(ramp: torch.Tensor) -> None:
    twice = replace(DOUBLE, tolerance=replace(DOUBLE.tolerance, roundings=2))
    got = 2 * ramp
    got[0, 0] = ulps(got[0, 0], 1)
    assert not judged(got, ramp).ok
    assert judged(got, ramp, twice).ok
    got[0, 0] = ulps(got[0, 0], 2)
    assert not judged(got, ramp, twice).ok


def test_each_rounding_may_meet_a_subnormal() -> None:
    """0.6 of fp16's last bit is stored as a whole one, and three times that rounds once more."""
    small = torch.full((64,), 0.6 * 2.0**-24, dtype=torch.float64)
    stored = (small.half().double() * 3).half()
    scaled = replace(DOUBLE, reference=lambda x: x * 3 * 0.6)
    last_bit = torch.full((64,), 2.0**-24, dtype=torch.float16)
    for roundings, ok in ((1, False), (2, True)):
        op = replace(scaled, tolerance=replace(DOUBLE.tolerance, roundings=roundings))
        assert oracle.compare(stored, op, Case("x", {}, "fp16"), (last_bit,)).ok == ok


def test_a_result_of_one_element_is_judged_as_an_element() -> None:
    op = load_op("fused_mlp", op_files(ROOT))
    for seed in range(300):  # the hidden numbers' roundings are large beside what is left of them
        dims = {"batch": 1, "dim": 1, "hidden": 287}
        case = Case("one", dims, "bf16", variant="relu2", seed=seed)
        (x, w_gate, w_up, w_down), _ = operands.make_inputs(op, case, "cpu")
        wide = [t.double() for t in (x, w_gate, w_up)]
        hidden = (torch.relu(wide[0] @ wide[1].T).square() * (wide[0] @ wide[2].T)).bfloat16()
        got = (hidden.double() @ w_down.double().T).bfloat16()
        judged = oracle.compare(got, op, case, (x, w_gate, w_up, w_down))
        assert judged.ok, judged.reason


def test_pytorch_is_asked_only_where_the_allowance_does_not_do(ramp: torch.Tensor) -> None:
    asked = []

    def eager(x: torch.Tensor) -> torch.Tensor:
        asked.append(x)
        return ulps(2 * x, 1)

    op = replace(DOUBLE, baselines={"eager": eager})
    assert judged(2 * ramp, ramp, op).ok
    assert not asked
    assert judged(ulps(2 * ramp, 1), ramp, op).ok
    assert not judged(ulps(2 * ramp, 3), ramp, op).ok
    assert len(asked) == 2


def test_truncation_is_allowed_to_the_interpreter_alone() -> None:
    x = torch.linspace(1, 2, 400).bfloat16()
    low = ulps(2 * x, -1)
    assert not judged(low, x).ok
    assert judged(low, x, extra_units=1).ok


def test_what_the_inputs_condition_costs_is_allowed_where_it_costs() -> None:
    lossy = Tolerance(condition=lambda inputs, r: torch.tensor([0.0, 64.0]))
    op = replace(DOUBLE, tolerance=lossy)
    x = of(1, 1)
    assert judged(of(2, 2 + 60 * 2.0**-24), x, op).ok
    assert not judged(of(2 + 60 * 2.0**-24, 2), x, op).ok


@pytest.mark.parametrize("n", [1000, 131072])
@pytest.mark.parametrize("addend", [1 / 3, 0.2196, -0.1])
def test_one_sum_after_another_is_right_where_a_layout_repeats_an_element(
    n: int, addend: float
) -> None:
    reduce = load_op("reduce", op_files(ROOT))
    x = torch.full((1, n), addend)
    one_by_one = torch.from_numpy(np.add.accumulate(x.numpy(), 1)[:, -1])
    case = Case("chosen", {"M": 1, "N": n}, "fp32", layout="broadcast")
    assert oracle.compare(one_by_one, reduce, case, (x,), 0).ok
    assert not oracle.compare(one_by_one * (1 - 2**-6), reduce, case, (x,), 0).ok


def test_a_result_that_is_poor_everywhere_fails_where_no_element_does() -> None:
    x = torch.linspace(0.96, 0.999, 1000)  # just below a power of two, where a bit weighs least
    one = 2 * x
    one[0] = ulps(one[0], 1)
    assert judged(one, x).ok
    every = judged(ulps(2 * x, 1), x)
    assert every.reason is not None
    assert every.reason.startswith("precision: relative L2 error")


def test_pytorchs_own_error_is_allowed_too_but_not_any_error(ramp: torch.Tensor) -> None:
    def trusting(ulps_off: float) -> Op:
        return replace(DOUBLE, baselines={"eager": lambda x: ulps(2 * x, ulps_off)})

    assert not judged(ulps(2 * ramp, 1), ramp).ok
    assert judged(ulps(2 * ramp, 1), ramp, trusting(1)).ok
    assert not judged(ulps(2 * ramp, 4), ramp, trusting(1)).ok
    assert not judged(ulps(2 * ramp, 16), ramp, trusting(1e6)).ok
    assert not judged(ulps(2 * ramp, 16), ramp, trusting(NAN)).ok


def test_an_allowance_that_is_no_number_allows_nothing(ramp: torch.Tensor) -> None:
    broken = replace(DOUBLE, tolerance=Tolerance(lambda inputs, r: torch.full_like(r, NAN)))
    assert not judged(3 * ramp, ramp, broken).ok


def test_an_empty_result_is_right() -> None:
    assert judged(of(), of()).ok


@pytest.mark.parametrize(
    ("x", "got", "words"),
    [
        (1, NAN, "NaN: at [1] got nan, expected 2"),
        (NAN, 2, "NaN: at [1] got 2, expected nan"),
        (NAN, INF, "NaN: at [1] got inf, expected nan"),
        (1, INF, "infinity: at [1] got inf, expected 2"),
        (INF, 2, "infinity: at [1] got 2, expected inf"),
        (INF, 65504, "infinity: at [1] got 65504, expected inf"),
        (INF, -INF, "infinity: at [1] got -inf, expected inf"),
        (-INF, NAN, "NaN: at [1] got nan, expected -inf"),
        (NAN, NAN, None),
        (INF, INF, None),
        (-INF, -INF, None),
    ],
)
def test_nan_and_infinity_stand_where_they_must_and_nowhere_else(
    x: float, got: float, words: str | None
) -> None:
    found = judged(of(2, got, dtype="fp16"), of(1, x, dtype="fp16"))
    assert found.reason == (words and f"{words} (1 of 2 elements)")


@pytest.mark.parametrize(
    ("x", "got", "ok"),
    [
        (32752, 65504, True),  # the largest number there is
        (32752, INF, True),  # within the allowance of it
        (32720, INF, False),  # 65440 is clear of it
        (40000, INF, True),
        (40000, -INF, False),
        (-40000, -INF, True),
        (40000, 65504, False),  # 80000 does not saturate
        (40000, NAN, False),
    ],
)
def test_overflow_is_infinite(x: float, got: float, ok: bool) -> None:
    assert judged(of(got, dtype="fp16"), of(x, dtype="fp16")).ok == ok


@pytest.mark.parametrize("special", [NAN, INF])
def test_a_special_value_hides_no_error_beside_it(special: float) -> None:
    x = of(special, 1, 1)
    assert judged(2 * x, x).ok
    found = judged(of(special, 2.5, 2), x)
    assert found.reason is not None
    assert found.reason.startswith("value: at [1] got 2.5, expected 2,")


def test_subnormals_count_in_fp16_and_may_be_flushed_in_the_others() -> None:
    x = of(2.0**-23, dtype="fp16")
    assert not judged(torch.zeros_like(x), x).ok
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.tensor([2.0**-128], dtype=dtype)
        assert judged(torch.zeros_like(x), x).ok
        assert not judged(torch.zeros_like(x), 4 * x).ok


def scaled(y: torch.Tensor) -> torch.Tensor:
    return 1.5 * y


def shuffled(y: torch.Tensor) -> torch.Tensor:
    return y.flip(-1)


def empty_tail(y: torch.Tensor) -> torch.Tensor:
    return torch.cat([y[:, :30], 0.5 * y[:, 30:]], 1)


def no_tail(y: torch.Tensor) -> torch.Tensor:
    return torch.cat([y[:, :30], 0 * y[:, 30:]], 1)


def bad_rows(y: torch.Tensor) -> torch.Tensor:
    return torch.cat([y[:3], y[3:].flip(-1)])


def bad_value(y: torch.Tensor) -> torch.Tensor:
    y[2, 5] = 7
    return y


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (scaled, "scale: every element is 1.5 times the expected"),
        (shuffled, "wrong everywhere"),
        (empty_tail, "tail: all elements from 30 of 32 on along the last dim"),
        (no_tail, "zeros where values belong"),
        (bad_rows, "whole rows: 1 of 4"),
        (bad_value, "value: at [2, 5] got 7, expected "),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_failure_says_what_kind_it_is(
    ramp: torch.Tensor, spoil: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    found = judged(spoil(2 * ramp), ramp)
    assert found.reason is not None
    assert found.reason.startswith(words)
    assert found.worst > 1


def test_a_failure_shows_the_worst_place_and_how_many_there_are(ramp: torch.Tensor) -> None:
    got = 2 * ramp
    got[1, 3] += 0.1
    got[3, 1] += 0.5
    reason = judged(got, ramp).reason
    assert reason is not None
    assert "at [3, 1] got 3.87480307, expected 3.37480307, off by 0.5 where " in reason
    assert reason.endswith("(2 of 128 elements)")


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("float16", (2, 3), None),
        ("float64", (2, 3), "dtype: expected float16, got float64"),
        ("float32", (2, 3), "dtype: expected float16, got float32"),
        ("float16", (3, 2), "shape: expected [2, 3], got [3, 2]"),
        ("float16", (2, 3, 1), "shape: expected [2, 3], got [2, 3, 1]"),
        ("float16", (), "shape: expected [2, 3], got []"),
    ],
)
def test_dtype_and_shape_are_looked_at_before_the_values(
    dtype: str, shape: tuple[int, ...], words: str | None
) -> None:
    meta = TensorMeta(dtype, shape, (1,) * len(shape), 0, 12)
    x = torch.zeros(2, 3, dtype=torch.float16)
    assert oracle.describe_mismatch(meta, (x,), [2, 3], DOUBLE) == words


def test_a_wider_result_is_taken_where_the_op_says_so() -> None:
    op = replace(DOUBLE, fp32_result=True)
    x = torch.zeros(2, dtype=torch.float16)
    for dtype, words in (("float16", None), ("float32", None), ("float64", "float16 or float32")):
        found = oracle.describe_mismatch(TensorMeta(dtype, (2,), (1,), 0, 8), (x,), [2], op)
        assert (found is None) if words is None else (found is not None and words in found)


SAME = Relation(
    related=lambda inputs, draw: [inputs, inputs],
    sides=lambda y, x: (y[0].double(), y[1].double(), y[1].double().abs()),
    slack=4,
)


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ([1.0, 2.0], None),
        ([1.0, 2.0 + 2.0**-22], None),
        ([1.5, 2.0], "relation same: value: at [0] got 1, expected 1.5, off by 0.5"),
        ([1.0, NAN], "relation same: NaN on one side only: at [1] got 2 and nan"),
    ],
)
def test_a_relation_is_judged_without_a_reference(right: list[float], words: str | None) -> None:
    found = oracle.compare_relation(SAME, "same", [of(1, 2), of(*right)], (of(0, 0),))
    assert found.ok == (words is None)
    assert (found.reason or "").startswith(words or "")


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.int64])


@settings(deadline=None)
@given(shapes, dtypes, st.sampled_from([n for n in LAYOUTS if n != "broadcast"]))
def test_a_layout_holds_every_element_apart_and_inside_its_guards(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout
) -> None:
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    meta = operands.lay_out(tensor, layout)
    raw = torch.full((meta.nbytes,), 0xFF, dtype=torch.uint8)
    placed = view(raw, meta)
    assert placed.shape == tensor.shape
    placed.copy_(tensor)
    assert torch.equal(placed, tensor)
    touched = (raw != 0xFF).nonzero().flatten()
    if touched.numel():
        assert int(touched[0]) >= operands.GUARD
        assert int(touched[-1]) < meta.nbytes - operands.GUARD
    if dtype.is_floating_point:
        assert raw[: operands.GUARD].view(dtype).isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_what_its_name_says(layout: Layout) -> None:
    tensor = torch.zeros(6, 8, dtype=torch.float16)
    meta = operands.lay_out(tensor, layout)
    strides = {
        "transposed": (1, 6),
        "strided": (16, 2),
        "padded": (11, 1),
        "packed": (24, 1),
        "broadcast": (0, 1),
    }
    assert meta.stride == strides.get(layout, (8, 1))
    assert meta.offset * 2 - operands.GUARD == (2 if layout == "offset" else 0)


def test_a_packed_tensor_has_heads_inside_positions() -> None:
    batch, heads, positions, dim = 2, 3, 5, 7
    packed = torch.zeros(batch, positions, heads, 3 * dim)[..., :dim].transpose(1, 2)
    assert operands.lay_out(packed.contiguous(), "packed").stride == packed.stride()


def test_mixed_layouts_differ_from_input_to_input_and_from_seed_to_seed() -> None:
    case = Case("any", {}, "fp32", layout="mixed")
    drawn = [tuple(operands.layouts(replace(case, seed=seed), 4)) for seed in range(20)]
    assert all(len(set(each)) == 4 for each in drawn)
    assert len(set(drawn)) > 10
    assert not any("mixed" in each for each in drawn)
    assert operands.layouts(replace(case, layout="padded"), 2) == ["padded", "padded"]


def test_a_broadcast_input_holds_its_first_row_alone() -> None:
    value = torch.arange(12.0).reshape(3, 4)
    meta = operands.lay_out(value, "broadcast")
    (placed,), (raw,) = _placed((value,), [meta])
    assert torch.equal(placed, value[:1].expand(3, 4))
    assert torch.equal(view(raw, meta), placed)
    assert raw.numel() == 2 * operands.GUARD + 4 * 4


def call_with_write_at(layout: Layout, byte: int | None) -> Call:
    """A call on ones, whose buffer was written to at `byte` meanwhile."""
    value = torch.ones(6, 8)
    meta = operands.lay_out(value, layout)
    _, (before,) = _placed((value,), [meta])
    memory = Host([meta])
    memory.fill([before])
    if byte is not None:
        memory.places[0][byte] = 1
    return Call((value,), (value,), [before], memory, list(value.shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("byte", "words"),
    [
        (None, None),
        (0, "write outside the buffer: input 0, 1 bytes, the first at byte -4096"),
        (4095, "write outside the buffer: input 0, 1 bytes, the first at byte -1"),
        (4096 + 8, "input changed: input 0, 1 bytes, the first at byte 8"),
        (-4096, "write outside the buffer: input 0"),
        (-1, "write outside the buffer: input 0"),
    ],
)
def test_a_write_to_an_input_or_beside_it_is_found(
    layout: Layout, byte: int | None, words: str | None
) -> None:
    message = {"aliases": None, "device": "cpu"}
    found = _contract(message, call_with_write_at(layout, byte))
    assert (found or "").startswith(words or "")
    assert (found is None) == (words is None)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            {"aliases": "an input", "device": "cpu"},
            "aliasing: the result shares memory with an input",
        ),
        ({"aliases": None, "device": "cuda"}, "device: expected a result on cpu, got cuda"),
    ],
)
def test_a_result_is_new_memory_on_the_inputs_device(
    message: dict[str, object], words: str
) -> None:
    assert (_contract(message, call_with_write_at("contiguous", None)) or "").startswith(words)


@pytest.mark.parametrize("condition", [NAN, INF])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_a_condition_that_is_no_number_allows_nothing(condition: float, x: float) -> None:
    broken = Tolerance(condition=lambda inputs, r: torch.full_like(r, condition))
    found = judged(of(2 * x + 1), of(x), replace(DOUBLE, tolerance=broken))
    assert not found.ok


@pytest.mark.parametrize("left", [[1.0, 2.0], [1.0, -INF]])
def test_infinity_on_one_side_of_a_relation_fails(left: list[float]) -> None:
    for one, other in ((left, [1.0, INF]), ([1.0, INF], left)):
        found = oracle.compare_relation(SAME, "same", [of(*one), of(*other)], (of(0, 0),))
        assert not found.ok


@pytest.mark.parametrize(("bits", "ok"), [(0, True), (1, True), (3, False), (1000, False)])
def test_a_run_may_differ_by_reordered_sums_and_by_no_more(bits: int, ok: bool) -> None:
    op = replace(DOUBLE, deterministic=False)
    case = Case("runs", {"n": 4}, "fp32")
    first = of(2.0, 4.0, 6.0, 8.0)
    found = oracle.compare_runs(ulps(first, bits), first, op, case, (of(1.0, 2.0, 3.0, 4.0),))
    assert found.ok is ok
    assert not oracle.compare_runs(of(2, 4, 6, NAN), first, op, case, (of(1, 2, 3, 4),)).ok


def by_tensor_cores(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """`A B` as `op.cut_off` says that an H100 sums it; `A [1, K]` and `B [K, N]` in float64."""
    total = torch.zeros(B.shape[1], dtype=torch.float64)
    for a, b in zip(A.split(16, 1), B.split(16, 0), strict=True):
        addends = torch.cat([total[None], a.mT * b])
        last = (addends.abs().amax(0).frexp().exponent - 1).double().exp2() * 2.0**-25
        total = ((addends / last).trunc() * last).sum(0)
        last = (total.abs().frexp().exponent - 1).double().exp2() * 2.0**-23
        total = (total / last).trunc() * last
    return total[None]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_what_tensor_cores_cut_off_is_allowed_and_a_sum_in_16_bits_is_not(dtype: Dtype) -> None:
    op = load_op("matmul", op_files(ROOT))
    lost = []
    for seed in range(3):
        case = Case("dot", {"M": 1, "N": 64, "K": 50257}, dtype, fill="long_sums", seed=seed)
        inputs, _ = operands.make_inputs(op, case, "cpu")
        A, B = (t.double() for t in inputs)
        got, exact = by_tensor_cores(A, B), A @ B
        lost.append(float(((exact - got) / exact).max()) * 2**24)
        found = oracle.compare(got.to(inputs[0].dtype), op, case, inputs)
        assert found.ok, found
        narrow = torch.zeros(1, 64, dtype=inputs[0].dtype)
        for a, b in zip(inputs[0].split(64, 1), inputs[1].split(64, 0), strict=True):
            narrow = narrow + a @ b
        assert not oracle.compare(narrow, op, case, inputs).ok
    assert growth(50257) < max(lost) < cut_off(50257)
