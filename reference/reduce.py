"""Reduce: the sum of x over one dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pytest_autokernel.op import (
    Cost,
    Dim,
    Dims,
    Draw,
    Op,
    Relation,
    Stability,
    Tensors,
    Tolerance,
    Variant,
    compiled,
    near_square,
)


def reference(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The sum of `x` over `dim`, which the result lacks; in x's dtype."""
    return x.sum(dim)


def flag_gems(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """flag_gems/ops/sum.py (FlagGems 5.0.2)."""
    import flag_gems

    return flag_gems.sum_dim(x, [dim])


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """`x [M, N]`, of a scale and an offset that vary; the sums stay within fp16."""
    scale, offset = draw.between(0.5, 3), draw.between(-1, 1) * min(1, 16384 / (dims["N"] + 1))
    return (draw.normal(dims["M"], dims["N"], scale=scale, offset=offset),)


def transposed(draw: Draw, x: Tensors) -> Tensors:
    return (x[0].t(),)


def nested(draw: Draw, x: Tensors) -> Tensors:
    return (x[0].unflatten(0, near_square(len(x[0]))),)


def four_dims(draw: Draw, x: Tensors) -> Tensors:
    return (nested(draw, x)[0].unflatten(1, (1, -1)),)


def vector(draw: Draw, x: Tensors) -> Tensors:
    return (x[0][0],)


def integers(draw: Draw, dims: Dims) -> Tensors:
    """Small integers, of which fp32 makes an exact sum in any order. Every other row's is halfway
    between two numbers of the dtype, where its numbers are that far apart."""
    x = draw.integers(dims["M"], dims["N"], low=-4, high=8)
    total = x.sum(-1)
    power = total.abs().clamp(min=1).log2().floor().exp2()
    half = (power * torch.finfo(draw.dtype).eps / 2).long()
    x[1::2, -1] += (half - total % (2 * half).clamp(min=1))[1::2]
    return (x.to(draw.dtype),)


def long_sums(draw: Draw, dims: Dims) -> Tensors:
    """Positive numbers that add up to some 2^15, so that one more is below fp16's last bit."""
    size = 2.0**15 / (dims["N"] + 1)
    return (draw.normal(dims["M"], dims["N"], scale=size / 8, offset=size),)


def cancellation(draw: Draw, dims: Dims) -> Tensors:
    """Large numbers, their opposites in another order, and something small between."""
    half = dims["N"] // 2
    a = draw.normal(dims["M"], half, scale=64, offset=256)
    return (torch.cat([a, draw.normal(dims["M"], dims["N"] - 2 * half), -a.flip(-1)], -1),)


def wide_range(draw: Draw, dims: Dims) -> Tensors:
    """Sizes from 2^-12 to 2^12 side by side; all of every other row at 2^-18, which is subnormal
    in fp16."""
    x = draw.normal(dims["M"], dims["N"])
    powers = draw.integers(dims["M"], dims["N"], low=-12, high=13)
    powers[1::2] = -18
    return (x * powers.to(x.dtype).exp2(),)


def spoiled(inputs: Tensors, draw: Draw) -> Sequence[Tensors]:
    """x, and x with a NaN in its first row and an infinity in its second."""
    x = inputs[0].clone()
    x[:1, x.shape[1] // 3] = math.nan
    x[1:2, x.shape[1] // 2] = math.inf
    return [inputs, (x,)]


def _spoilt(y: Sequence[torch.Tensor], x: Tensors) -> tuple[torch.Tensor, ...]:
    """What becomes of an infinity, which compensated sums make NaN of; and a NaN is a NaN."""
    before, after = y[0].clone(), y[1].clone()
    after[1:2] = after[1:2].nan_to_num(math.inf, posinf=math.inf)
    before[:1], before[1:2] = math.nan, math.inf
    return _agree(after, x[0], before)


def condition(inputs: Tensors, r: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """A tree's few roundings of all that is added, and a sequential sum's random walk, whose
    steps are as large as the partial sums in between."""
    x = inputs[0]
    if not x.numel():
        return torch.zeros_like(r)
    walk = 2 * math.sqrt(x.shape[dim]) * x.cumsum(dim).abs().amax(dim)
    return 4 * x.abs().sum(dim) + walk


def _agree(left: torch.Tensor, x: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`left` is the sum of `parts`, but for the rounding of each, and for that of the sums
    within: in units of the result's."""
    left, *rights = (t.double() for t in (left, *parts))
    finer = 2.0**-23 / torch.finfo(x.dtype).eps
    size = sum(t.abs() for t in (left, *rights)) + finer * x.double().abs().sum(-1)
    return left, sum(rights), size


OP = Op(
    name="reduce",
    reference=reference,
    inputs=inputs,
    dims=(Dim("M", 1, 4096, batch=1), Dim("N", 1, 131072)),
    sizes={
        "small": {"M": 1024, "N": 1024},
        "medium": {"M": 4096, "N": 4096},
        "large": {"M": 8192, "N": 8192},
        "wide": {"M": 1024, "N": 32768},
        "narrow": {"M": 65536, "N": 128},
        "llama3_mlp": {"M": 4096, "N": 14336},
        "llama3_vocab": {"M": 1024, "N": 128256},
        "few_rows": {"M": 16, "N": 4194304},
        "flat": {"M": 1, "N": 67108864},
    },
    edges={
        "one": {"M": 1, "N": 1},
        "one_row": {"M": 1, "N": 50257},
        "one_col": {"M": 1023, "N": 1},
        "odd_1023": {"M": 1023, "N": 1024},
        "odd_4097": {"M": 4096, "N": 4097},
        "vocab": {"M": 64, "N": 50257},
        "long_row": {"M": 1, "N": 1000003},
        "square": {"M": 31, "N": 31},
        "many_rows": {"M": 65537, "N": 3},
        "no_rows": {"M": 0, "N": 128},
        "no_cols": {"M": 32, "N": 0},
    },
    tolerance=Tolerance(condition),
    cost=lambda dims, size: Cost(
        flops=dims["M"] * dims["N"], bytes=size * dims["M"] * (dims["N"] + 1)
    ),
    roof="read",
    huge={"M": 262145, "N": 8192},
    batched=1,
    timed=("large",),
    baselines={"eager": reference, "compile": compiled(reference), "flag_gems": flag_gems},
    variants={
        "core": Variant(),
        "dim0": Variant({"dim": 0}, "dim", form=transposed),
        "dim_minus2": Variant({"dim": -2}, "dim", form=transposed),
        "nd": Variant({}, "nd", form=nested),
        "nd4": Variant({}, "nd", form=four_dims),
        "vector": Variant({}, "nd", form=vector),
    },
    stability={
        "integers": Stability(
            integers, "a sum kept in bf16, whose integers end at 256; ties not to even", exact=True
        ),
        "long_sums": Stability(long_sums, "a sum kept in the inputs' own dtype stands still"),
        "cancellation": Stability(
            cancellation, "partial sums beyond fp16, of which little is left"
        ),
        "wide_range": Stability(
            wide_range, "small numbers dropped, beside large ones or for their size"
        ),
    },
    relations={
        "permutation": Relation(
            lambda x, draw: [x, (x[0].flip(-1).contiguous(),)],
            lambda y, x: _agree(y[0], x[0], y[1]),
        ),
        "split": Relation(
            lambda x, draw: [x, *((part.contiguous(),) for part in x[0].tensor_split(2, -1))],
            lambda y, x: _agree(y[0], x[0], y[1], y[2]),
        ),
        "doubling": Relation(
            lambda x, draw: [x, (x[0] * 2,)], lambda y, x: _agree(2 * y[0].double(), x[0], y[1])
        ),
        "spoiled": Relation(spoiled, _spoilt),
    },
)
