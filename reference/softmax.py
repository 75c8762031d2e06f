"""Softmax: y = exp(x - max(x)) / sum(exp(x - max(x))) over one dimension."""

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
    drift,
    growth,
    near_square,
)


def reference(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax of `x` over `dim`; same shape and dtype as `x`."""
    if not x.numel():
        return x.clone()
    exps = (x - x.amax(dim, keepdim=True)).exp()
    return exps / exps.sum(dim, keepdim=True)


def eager(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return torch.softmax(x, dim)


def liger(x: torch.Tensor) -> torch.Tensor:
    """Over the last dim alone: liger_kernel/ops/softmax.py (Liger-Kernel 0.8.5)."""
    from liger_kernel.ops import LigerSoftmaxFunction

    return LigerSoftmaxFunction.apply(x)


def quack(x: torch.Tensor) -> torch.Tensor:
    """2-D, over the last dim alone: quack/softmax.py (quack-kernels 0.2.4 to 0.6.5)."""
    from quack import softmax

    return softmax(x)


def flag_gems(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """flag_gems/ops/softmax.py (FlagGems 5.0.2)."""
    import flag_gems

    return flag_gems.softmax(x, dim)


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """`x [rows, cols]`, of a scale and an offset that vary."""
    scale, offset = draw.between(0.5, 3), draw.between(-4, 4)
    return (draw.normal(dims["rows"], dims["cols"], scale=scale, offset=offset),)


def transposed(draw: Draw, x: Tensors) -> Tensors:
    return (x[0].t(),)


def nested(draw: Draw, x: Tensors) -> Tensors:
    return (x[0].unflatten(0, near_square(len(x[0]))),)


def four_dims(draw: Draw, x: Tensors) -> Tensors:
    return (nested(draw, x)[0].unflatten(1, (1, -1)),)


def vector(draw: Draw, x: Tensors) -> Tensors:
    return (x[0][0],)


def equal_rows(draw: Draw, dims: Dims) -> Tensors:
    """Every element of a row the same and huge."""
    return (draw.normal(dims["rows"], 1, scale=100, offset=8192).repeat(1, dims["cols"]),)


def spikes(draw: Draw, dims: Dims) -> Tensors:
    """One element of each row far above the rest, in some rows further than in others."""
    return (_with_spikes(draw, dims, draw.integers(dims["rows"], 1, low=100, high=1000)),)


def near_overflow(draw: Draw, dims: Dims) -> Tensors:
    """Of either sign, up to the largest fp16 number."""
    x = draw.normal(dims["rows"], dims["cols"], scale=30000)
    return (x.clamp(-65504, 65504),)


def tails(draw: Draw, dims: Dims) -> Tensors:
    """One element holds nearly all, and the others still count: in fp16 they are subnormal, in
    the other dtypes as small as exp(-60)."""
    high = 12 if draw.dtype == torch.float16 else 60
    return (_with_spikes(draw, dims, draw.integers(dims["rows"], 1, low=10, high=high)),)


def padded(draw: Draw, dims: Dims) -> Tensors:
    """-inf up to some column of each row, as left padding leaves it: whole blocks of it."""
    rows, cols = dims["rows"], dims["cols"]
    x = draw.normal(rows, cols)
    first = draw.integers(rows, 1, low=0, high=cols)
    return (x.masked_fill(torch.arange(cols, device=x.device) < first, -math.inf),)


def deep(draw: Draw, dims: Dims) -> Tensors:
    """All far below zero, in rows of a length that no tile divides."""
    cols = 7 * dims["cols"] // 8 | 1
    return (draw.normal(dims["rows"], cols, scale=2, offset=-600),)


def condition(inputs: Tensors, r: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """exp and the division (32), the sum's growth and its drift, and the exponent's argument, which
    is as exact as x and the maximum are large where exp2 folds log2(e) into each of them."""
    x = inputs[0]
    finite = x.abs().where(x.isfinite(), 0.0)
    top = x.amax(dim, keepdim=True).abs().nan_to_num(posinf=0.0)
    return r * (32 + growth(x.shape[dim]) + drift(r, dim) + 4 * finite + 8 * top)


def shifted(inputs: Tensors, draw: Draw) -> Sequence[Tensors]:
    """x and x + 8, both exact in each dtype: quarters below 64 have 8 bits."""
    x = (inputs[0].float() * 4).round().clamp(-128, 128) / 4
    return [(x.to(draw.dtype),), ((x + 8).to(draw.dtype),)]


def spoiled(inputs: Tensors, draw: Draw) -> Sequence[Tensors]:
    """x, and x with a NaN in its first row and an infinity in its second."""
    x = inputs[0].clone()
    x[:1, x.shape[1] // 3] = math.nan
    x[1:2, x.shape[1] // 2] = math.inf
    return [inputs, (x,)]


def _spoilt(y: Sequence[torch.Tensor], x: Tensors) -> tuple[torch.Tensor, ...]:
    """A NaN takes its whole row, and infinity by infinity is NaN. What is beside an infinity
    depends on the order of the operations, and is left out; all other rows stay as they were."""
    before, after = y[0].clone(), y[1].clone()
    place = after.shape[1] // 2
    after[1:2, :place], after[1:2, place + 1 :], before[1:2] = 0, 0, 0
    before[:1], before[1:2, place] = math.nan, math.nan
    return _agree(after, before)


def _with_spikes(draw: Draw, dims: Dims, heights: torch.Tensor) -> torch.Tensor:
    x = draw.normal(dims["rows"], dims["cols"])
    places = draw.integers(dims["rows"], 1, low=0, high=dims["cols"])
    return x.scatter(1, places, heights.to(x.dtype))


def _agree(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return left.double(), right.double(), right.double().abs()


OP = Op(
    name="softmax",
    reference=reference,
    inputs=inputs,
    dims=(Dim("rows", 1, 4096, batch=1), Dim("cols", 1, 131072)),
    sizes={
        "tiny": {"rows": 32, "cols": 128},
        "small": {"rows": 256, "cols": 512},
        "medium": {"rows": 1024, "cols": 1024},
        "large": {"rows": 4096, "cols": 4096},
        "xlarge": {"rows": 8192, "cols": 8192},
        "wide": {"rows": 1024, "cols": 32768},
        "narrow": {"rows": 32768, "cols": 128},
        "vocab": {"rows": 4096, "cols": 50257},
        "deepseek_router": {"rows": 16384, "cols": 256},
        "llama3_vocab": {"rows": 2048, "cols": 128256},
        "deepseek_vocab": {"rows": 2048, "cols": 129280},
        "qwen_vocab": {"rows": 2048, "cols": 151936},
    },
    edges={
        "one": {"rows": 1, "cols": 1},
        "one_row": {"rows": 1, "cols": 50257},
        "one_col": {"rows": 1023, "cols": 1},
        "odd_1023": {"rows": 1023, "cols": 1023},
        "odd_4097": {"rows": 4097, "cols": 4097},
        "vocab_1024": {"rows": 1024, "cols": 50257},
        "long_row": {"rows": 1, "cols": 500009},
        "square": {"rows": 31, "cols": 31},
        "many_rows": {"rows": 65537, "cols": 3},
        "no_rows": {"rows": 0, "cols": 128},
        "no_cols": {"rows": 32, "cols": 0},
    },
    tolerance=Tolerance(condition),
    cost=lambda dims, size: Cost(
        flops=5 * dims["rows"] * dims["cols"], bytes=2 * size * dims["rows"] * dims["cols"]
    ),
    roof="copy",
    huge={"rows": 16385, "cols": 131072},
    batched=1,
    timed=("large",),
    baselines={
        "eager": eager,
        "compile": compiled(eager),
        "liger": liger,
        "quack": quack,
        "flag_gems": flag_gems,
    },
    variants={
        "core": Variant(),
        "dim0": Variant({"dim": 0}, "dim", form=transposed),
        "dim_minus2": Variant({"dim": -2}, "dim", form=transposed),
        "nd": Variant({}, "nd", form=nested),
        "nd4": Variant({}, "nd", form=four_dims),
        "vector": Variant({}, "nd", form=vector),
    },
    stability={
        "equal_rows": Stability(equal_rows, "exp overflows where the maximum is not taken off"),
        "spikes": Stability(spikes, "exp overflows where another row's maximum is taken off"),
        "near_overflow": Stability(
            near_overflow, "log2(e) x overflows if it is formed in fp16", dtypes=("fp16",)
        ),
        "tails": Stability(
            tails, "small results are lost if they are formed in fp16, or by a clamped exponent"
        ),
        "padded": Stability(padded, "-inf minus -inf in a block that is masked as a whole"),
        "deep": Stability(deep, "a maximum that starts at 0, or lanes past the row that hold 0"),
    },
    relations={
        "shift": Relation(shifted, lambda y, x: _agree(*y), slack=1024),
        "permutation": Relation(
            lambda x, draw: [x, (x[0].flip(-1).contiguous(),)],
            lambda y, x: _agree(y[0], y[1].flip(-1)),
            slack=1024,
        ),
        "row_sums": Relation(
            lambda x, draw: [x],
            lambda y, x: _agree(y[0].double().sum(-1), torch.ones_like(y[0][..., 0])),
            slack=1024,
        ),
        "spoiled": Relation(spoiled, _spoilt),
    },
)
