"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight over the last dimension.

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; eps inside the root, as in
Llama and in torch.nn.functional.rms_norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

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


def reference(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """`x [..., N]`, `weight [N]`; same shape and dtype as `x`."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def eager(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def liger(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """All in fp32 and rounded once, as eager does, which is its casting mode `gemma`, the weight's
    offset being 0: liger_kernel/ops/rms_norm.py (Liger-Kernel 0.8.5)."""
    from liger_kernel.ops import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "gemma")


def quack(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """quack/rmsnorm.py (quack-kernels 0.2.4 to 0.6.5)."""
    from quack import rmsnorm

    return rmsnorm(x, weight, eps=eps)


def flag_gems(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """flag_gems/ops/rms_norm.py (FlagGems 5.0.2)."""
    import flag_gems

    return flag_gems.rms_norm(x, weight.shape, weight, eps)


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """`x [M, N]` of a scale and an offset that vary, `weight [N]` around 1."""
    scale, offset = draw.between(0.5, 3), draw.between(-1, 1)
    return _inputs(draw, draw.normal(dims["M"], dims["N"], scale=scale, offset=offset))


def nested(draw: Draw, made: Tensors) -> Tensors:
    x, *affine = made
    return x.unflatten(0, near_square(len(x))), *affine


def four_dims(draw: Draw, made: Tensors) -> Tensors:
    x, *affine = nested(draw, made)
    return x.unflatten(1, (1, -1)), *affine


def vector(draw: Draw, made: Tensors) -> Tensors:
    x, *affine = made
    return x[0], *affine


def small(draw: Draw, dims: Dims) -> Tensors:
    """Mean squares around eps."""
    return _inputs(draw, draw.normal(dims["M"], dims["N"], scale=1e-3))


def large(draw: Draw, dims: Dims) -> Tensors:
    """Elements whose squares are beyond fp16."""
    return _inputs(draw, draw.normal(dims["M"], dims["N"], scale=500))


def zeros(draw: Draw, dims: Dims) -> Tensors:
    """Every other row zero."""
    x = draw.normal(dims["M"], dims["N"])
    x[::2] = 0
    return _inputs(draw, x)


def outliers(draw: Draw, dims: Dims) -> Tensors:
    """One massive activation per row, as large language models have them."""
    x = draw.normal(dims["M"], dims["N"])
    places = draw.integers(dims["M"], 1, low=0, high=dims["N"])
    return _inputs(draw, x.scatter(1, places, 2000.0))


def uneven(draw: Draw, dims: Dims) -> Tensors:
    """Rows of sizes from 2^-6 to 2^6."""
    x = draw.normal(dims["M"], dims["N"])
    return _inputs(draw, x * draw.integers(dims["M"], 1, low=-6, high=7).to(x.dtype).exp2())


def spoiled(inputs: Tensors, draw: Draw) -> Sequence[Tensors]:
    """x, and x with a NaN in its first row and an infinity in its second."""
    x = inputs[0].clone()
    x[:1, x.shape[1] // 3] = math.nan
    x[1:2, x.shape[1] // 2] = math.inf
    return [inputs, (x, *inputs[1:])]


def _spoilt(y: Sequence[torch.Tensor], x: Tensors) -> tuple[torch.Tensor, ...]:
    """A NaN takes its whole row, and infinity by infinity is NaN. What is beside an infinity
    depends on the order of the operations, and is left out; all other rows stay as they were."""
    before, after = y[0].clone(), y[1].clone()
    place = after.shape[1] // 2
    after[1:2, :place], after[1:2, place + 1 :], before[1:2] = 0, 0, 0
    before[:1], before[1:2, place] = math.nan, math.nan
    return _agree(after, before)


def condition(inputs: Tensors, r: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """The root and the products (16), and half of what the sum of squares may lose."""
    x = inputs[0]
    return r.abs() * (16 + (growth(x.shape[-1]) + drift(x.square())) / 2)


def _inputs(draw: Draw, x: torch.Tensor) -> Tensors:
    return x, draw.normal(x.shape[-1], scale=0.5, offset=1)


def _undone(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """y times what x was divided by."""
    return y.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _agree(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Either side is rounded twice."""
    return left.double(), right.double(), left.double().abs() + right.double().abs()


OP = Op(
    name="rmsnorm",
    reference=reference,
    inputs=inputs,
    dims=(Dim("M", 1, 4096, batch=1), Dim("N", 1, 16384)),
    sizes={
        "small": {"M": 1024, "N": 768},
        "medium": {"M": 4096, "N": 1024},
        "large": {"M": 4096, "N": 4096},
        "llama": {"M": 2048, "N": 4096},
        "llama3_8b": {"M": 8192, "N": 4096},
        "llama3_70b": {"M": 8192, "N": 8192},
        "qwen3_32b": {"M": 8192, "N": 5120},
        "qwen3_head": {"M": 131072, "N": 128},
        "deepseek_v3": {"M": 8192, "N": 7168},
        "decode": {"M": 8, "N": 8192},
    },
    edges={
        "one": {"M": 1, "N": 1},
        "one_row": {"M": 1, "N": 16384},
        "one_col": {"M": 1023, "N": 1},
        "odd_1023": {"M": 1023, "N": 768},
        "odd_4097": {"M": 4097, "N": 1024},
        "odd_cols": {"M": 256, "N": 4097},
        "long_row": {"M": 4, "N": 50257},
        "square": {"M": 31, "N": 31},
        "many_rows": {"M": 65537, "N": 3},
        "no_rows": {"M": 0, "N": 128},
        "no_cols": {"M": 32, "N": 0},
    },
    # Llama's own rounds x / rms(x) to the dtype before it multiplies with the weight.
    tolerance=Tolerance(condition, roundings=2),
    cost=lambda dims, size: Cost(
        flops=4 * dims["M"] * dims["N"], bytes=size * (2 * dims["M"] + 1) * dims["N"]
    ),
    roof="copy",
    huge={"M": 262145, "N": 8192},
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
        "eps": Variant({"eps": 1e-2}),
        "nd": Variant({}, "nd", form=nested),
        "nd4": Variant({}, "nd", form=four_dims),
        "vector": Variant({}, "nd", form=vector),
    },
    stability={
        "small": Stability(small, "eps left out, or squares that vanish in fp16"),
        "large": Stability(large, "squares that overflow in fp16", dtypes=("fp16",)),
        "zeros": Stability(zeros, "0 divided by 0 where eps is left out"),
        "outliers": Stability(outliers, "a square that overflows fp16, or swallows the others"),
        "uneven": Stability(uneven, "one scale for all rows"),
    },
    relations={
        "scale": Relation(
            lambda x, draw: [x, (x[0] * 4, x[1])],
            lambda y, x: _agree(_undone(y[0], x[0]), _undone(y[1], x[0] * 4) / 4),
            slack=256,
        ),
        "odd": Relation(lambda x, draw: [x, (-x[0], x[1])], lambda y, x: _agree(y[0], -y[1])),
        "permutation": Relation(
            lambda x, draw: [x, tuple(t.flip(-1).contiguous() for t in x)],
            lambda y, x: _agree(y[0], y[1].flip(-1)),
            slack=256,
        ),
        "spoiled": Relation(spoiled, _spoilt),
    },
)
