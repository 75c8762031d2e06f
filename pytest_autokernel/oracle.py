"""Expected values in higher precision, tolerances, and differences in words.

The reference runs in float64 on the exact inputs that the kernel got. The allowance per
element is derived (`Tolerance` in op.py has the formula), never a fixed number, and the
error as a whole (relative L2) is bounded too: the first catches one bad row, the second a
precision that is poor everywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pytest_autokernel.channel import TensorMeta
from pytest_autokernel.differences import worst_place
from pytest_autokernel.op import Case, Layout, Op, Relation, Tensors

U32 = 2.0**-24

MOST_AT_ONCE = 2**28  # elements that are compared at a time: 2 GB in float64

REPEATING: tuple[Layout, ...] = ("broadcast", "mixed")

# How much worse than the best same-precision PyTorch computation a kernel may be where that
# computation itself exceeds the derived allowance. Capped, because on a stability case it
# may be plainly wrong.
TRUST_FACTOR = 2.0
TRUST_CAP = 4.0
# An exactly computed and once rounded tensor has a relative L2 error of about 0.41 u for
# values spread evenly over a binade and at most 0.58 u; see also TRUST_FACTOR.
L2_ROUNDING = 0.6


@dataclass(frozen=True)
class Judged:
    """One comparison. `worst` is the largest error as a share of its allowance."""

    worst: float
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.reason is None


def describe_mismatch(
    got: TensorMeta, inputs: Tensors, expected_shape: Sequence[int], op: Op
) -> str | None:
    """What is wrong with a result's dtype and shape, before its values are looked at."""
    names = [str(inputs[0].dtype).removeprefix("torch.")] + ["float32"] * op.fp32_result
    if got.dtype not in names:
        return f"dtype: expected {' or '.join(dict.fromkeys(names))}, got {got.dtype}"
    if list(got.shape) != list(expected_shape):
        return f"shape: expected {list(expected_shape)}, got {list(got.shape)}"
    return None


def compare(got: torch.Tensor, op: Op, case: Case, inputs: Tensors, extra_units: int = 0) -> Judged:
    """Judge a result's values, a large one in pieces. `extra_units` allows that many more
    roundings of the result (Triton's interpreter truncates to bf16)."""
    largest = max((t.numel() for t in (got, *inputs)), default=0)
    if not op.batched or largest <= MOST_AT_ONCE or case.variant != "core":
        return _compare(got, op, case, inputs, extra_units)
    worst, rows = 0.0, max(1, got.shape[0] * MOST_AT_ONCE // largest)
    for first in range(0, got.shape[0], rows):
        piece = slice(first, first + rows)
        some = tuple(t[piece] for t in inputs[: op.batched]) + inputs[op.batched :]
        found = _compare(got[piece], op, case, some, extra_units)
        worst = max(worst, found.worst)
        if not found.ok:
            where = f"in [{first}:{min(first + rows, got.shape[0])}] of dim 0, counted from there"
            return Judged(worst, f"{found.reason} ({where})")
    return Judged(worst)


def _compare(got: torch.Tensor, op: Op, case: Case, inputs: Tensors, extra_units: int) -> Judged:
    wide = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    options = op.variants[case.variant].options
    if got.numel() == 0:
        return Judged(0.0)
    expected, condition, stored = _exactly(op, inputs, wide, options)
    unit, tiny, top = _units(got.dtype)
    tiny *= op.tolerance.roundings
    condition = condition.nan_to_num(nan=0.0, posinf=0.0)  # what is no number allows nothing
    condition *= _equal_addends(inputs) if case.layout in REPEATING else 1
    within = (op.tolerance.roundings - 1) * stored.abs()
    allowance = unit * (1.05 + extra_units) * (expected.abs() + within) + U32 * condition + tiny

    value = got.to(expected.device).double()
    reason = _non_finite(value, expected, allowance, top)
    if reason is None and _is_exact(op, case) and not extra_units:
        reason = _inexact(value, expected.to(got.dtype).double())
    if reason:
        return Judged(math.inf, reason)
    finite = expected.isfinite() & value.isfinite()
    error = (value - expected).abs().where(finite, 0.0)

    @functools.cache
    def trusted() -> torch.Tensor:
        """PyTorch's errors: asked for only where the allowance alone does not do, since its best
        kernels may take 0.1 s to plan for each shape (cuDNN's attention)."""
        pytorch = op.trusted or next(iter(op.baselines.values()))
        values = pytorch(*inputs, **options).to(expected.device).double()
        return (values - expected).abs().where(finite, 0.0)

    worst = float((error / allowance).where(finite, 0.0).max())
    trusted_worst = _number(trusted() / allowance, finite) if worst > 1 else 1.0
    limit = min(TRUST_FACTOR * trusted_worst, TRUST_CAP) if trusted_worst > 1 else 1.0
    if worst > limit:
        return Judged(worst, worst_place(value, expected, error, allowance * limit))
    return _whole(
        error,
        trusted,
        expected.where(finite, 0.0),
        condition.where(finite, 0.0),
        unit * L2_ROUNDING * (op.tolerance.roundings + 2 * extra_units),
        float(allowance.where(finite, 0.0).max()),
        tiny,
        worst,
    )


def _equal_addends(inputs: Tensors) -> float:
    """How much more than chance lets them a sum's roundings may add up to where an element repeats.

    Roundings of equal addends all err in one direction, so that a sum of n may be off by n / 2
    units of 2^-24: sqrt(n) / 4 times a random walk's 2 sqrt(n), and up to 16 times `op.growth(n)`.
    What is looked for there are elements from a wrong place, which are off by far more."""
    longest = max((size for t in inputs for size in t.shape), default=1)
    return max(16, math.sqrt(longest) / 4)


def _exactly(
    op: Op, inputs: Tensors, wide: Tensors, options: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The exact result, its condition, and what is stored on the way."""
    tolerance = op.tolerance
    if tolerance.together is not None:
        return tolerance.together(wide, **options)
    expected = op.reference(*wide, **options)
    condition = _condition(op, inputs, wide, expected, options)
    stored = tolerance.intermediate
    return expected, condition, stored(wide, expected, **options) if stored else expected


def _condition(
    op: Op, inputs: Tensors, wide: Tensors, expected: torch.Tensor, options: Mapping[str, Any]
) -> torch.Tensor:
    tolerance, of_16_bits = op.tolerance, inputs[0].element_size() == 2
    condition = (of_16_bits and tolerance.of_16_bits) or tolerance.condition
    return condition(wide, expected, **options).expand_as(expected)


def compare_runs(
    got: torch.Tensor, first: torch.Tensor, op: Op, case: Case, inputs: Tensors
) -> Judged:
    """Judge a repeated run of an op that need not be deterministic: reordered sums differ by what
    fp32 arithmetic may lose, and by the last rounding. A larger jump is no reordering."""
    wide = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    options = op.variants[case.variant].options
    expected = op.reference(*wide, **options)
    unit, tiny, _ = _units(got.dtype)
    condition = _condition(op, inputs, wide, expected, options)
    allowance = 2.1 * unit * expected.abs() + 2 * U32 * condition.nan_to_num(0.0, 0.0) + tiny
    now, before = (t.to(expected.device).double() for t in (got, first))
    error = (now - before).abs().where(now != before, 0.0)
    worst = float((error / allowance).nan_to_num(math.inf).max()) if error.numel() else 0.0
    if worst <= 1:
        return Judged(worst)
    place = worst_place(now, before, error, allowance)
    return Judged(worst, f"not deterministic, and more than reordered sums: {place}")


def _is_exact(op: Op, case: Case) -> bool:
    return case.fill != "normal" and op.stability[case.fill].exact


def _inexact(value: torch.Tensor, exact: torch.Tensor) -> str | None:
    """Integers whose result fp32 holds exactly: any order of summation gives the same bits."""
    bad = (value != exact) & ~(value.isnan() & exact.isnan())
    if not bad.any():
        return None
    index = tuple(int(i) for i in bad.nonzero()[0])
    return (
        f"exact: integers whose result has no rounding but the last: at {list(index)} got "
        f"{float(value[index]):.9g}, expected {float(exact[index]):.9g} "
        f"({int(bad.sum())} of {bad.numel()} elements)"
    )


def _whole(
    error: torch.Tensor,
    trusted: Callable[[], torch.Tensor],
    expected: torch.Tensor,
    condition: torch.Tensor,
    rounding: float,
    most: float,
    tiny: float,
    worst: float,
) -> Judged:
    """The relative L2 criterion; `most` is the largest allowance of an element."""
    size = float(expected.norm())
    if size == 0:
        return Judged(worst)
    # One element may be off by all that it is allowed, and so may a result that one dominates.
    floor = tiny * math.sqrt(expected.numel())
    allowed = rounding + (most + U32 * float(condition.norm()) + floor) / size
    l2 = float(error.norm()) / size
    trusted_l2 = float(trusted().norm()) / size if l2 > allowed else 0.0
    if allowed < trusted_l2 < math.inf:
        allowed = min(TRUST_FACTOR * trusted_l2, TRUST_CAP * allowed)
    if l2 <= allowed:
        return Judged(max(worst, l2 / allowed) if worst <= 1 else worst)
    return Judged(
        max(worst, l2 / allowed),
        f"precision: relative L2 error {l2:.2e} over all {expected.numel()} elements, "
        f"allowed {allowed:.2e} (the best PyTorch form of this dtype: {trusted_l2:.2e})",
    )


def _units(dtype: torch.dtype) -> tuple[float, float, float]:
    """Unit roundoff, the absolute floor, and the largest number of a dtype.

    The floor is the spacing of subnormals for fp16, whose small values matter (a softmax over
    50,257 columns lies among them); for the others all below the smallest normal may flush."""
    info = torch.finfo(dtype)
    floor = 2.0**-24 if dtype == torch.float16 else info.tiny
    return info.eps / 2, floor, info.max


def _number(ratio: torch.Tensor, where: torch.Tensor) -> float:
    value = float(ratio.where(where, 0.0).max())
    return value if math.isfinite(value) else 0.0


def _non_finite(
    value: torch.Tensor, expected: torch.Tensor, allowance: torch.Tensor, top: float
) -> str | None:
    """NaN and infinities must stand where the exact result has them, and nowhere else. What
    overflows the dtype within the allowance may be infinite or not."""
    room = allowance.nan_to_num(nan=0.0, posinf=0.0)
    may_be_inf = expected.abs() + room >= top
    must_be_inf = expected.isinf() | (expected.abs() - room > top * (1 + 2**-8))
    wrong_nan = value.isnan() != expected.isnan()
    wrong_inf = (value.isinf() & ~may_be_inf) | (must_be_inf & ~value.isinf() & ~expected.isnan())
    wrong_sign = value.isinf() & may_be_inf & (value.sign() != expected.sign())
    for bad, word in ((wrong_nan, "NaN"), (wrong_inf | wrong_sign, "infinity")):
        if bad.any():
            index = tuple(int(i) for i in bad.nonzero()[0])
            return (
                f"{word}: at {list(index)} got {float(value[index]):.6g}, expected "
                f"{float(expected[index]):.6g} ({int(bad.sum())} of {bad.numel()} elements)"
            )
    return None


def compare_relation(
    relation: Relation,
    name: str,
    got: Sequence[torch.Tensor],
    inputs: Tensors,
    extra_units: int = 0,
) -> Judged:
    """Judge the results of related calls against one another."""
    left, right, magnitude = relation.sides(got, inputs)
    magnitude = magnitude.nan_to_num(nan=0.0, posinf=0.0)
    unit, tiny, _ = _units(got[0].dtype)
    allowance = (
        (2.1 + 2.1 * extra_units) * unit * magnitude + relation.slack * U32 * magnitude + 2 * tiny
    )
    error = (left - right).abs()
    for of in (torch.isnan, torch.isposinf, torch.isneginf):
        wrong = of(left) != of(right)
        if bool(wrong.any()):
            word = "NaN" if of is torch.isnan else "infinity"
            index = tuple(int(i) for i in wrong.nonzero()[0])
            return Judged(
                math.inf,
                f"relation {name}: {word} on one side only: at {list(index)} got "
                f"{float(left[index]):.6g} and {float(right[index]):.6g}, which were to be equal "
                f"({int(wrong.sum())} of {wrong.numel()} elements)",
            )
    worst = (
        float((error / allowance).nan_to_num(0.0, posinf=math.inf).max()) if error.numel() else 0.0
    )
    if worst <= 1:
        return Judged(worst)
    return Judged(worst, f"relation {name}: " + worst_place(left, right, error, allowance))
