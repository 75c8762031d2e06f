"""LayerNorm: y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension.

Ba, Kiros and Hinton, "Layer Normalization", 2016; the variance divides by N, as in PyTorch.
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


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """`x [..., N]`, `weight [N]`, `bias [N]`; same shape and dtype as `x`."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


def eager(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def liger(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """liger_kernel/ops/layer_norm.py (Liger-Kernel 0.8.5). quack's takes fp32 weights alone."""
    from liger_kernel.ops import LigerLayerNormFunction

    return LigerLayerNormFunction.apply(x, weight, bias, eps)


def flag_gems(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """The first of what it returns: flag_gems/ops/layernorm.py (FlagGems 5.0.2)."""
    import flag_gems

    return flag_gems.layer_norm(x, weight.shape, weight, bias, eps)[0]


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """`x [batch, dim]` of a scale and an offset that vary, `weight`, `bias [dim]`."""
    scale, offset = draw.between(0.5, 3), draw.between(-4, 4)
    return _inputs(draw, draw.normal(dims["batch"], dims["dim"], scale=scale, offset=offset))


def nested(draw: Draw, made: Tensors) -> Tensors:
    x, *affine = made
    return x.unflatten(0, near_square(len(x))), *affine


def four_dims(draw: Draw, made: Tensors) -> Tensors:
    x, *affine = nested(draw, made)
    return x.unflatten(1, (1, -1)), *affine


def vector(draw: Draw, made: Tensors) -> Tensors:
    x, *affine = made
    return x[0], *affine


def far_from_zero(draw: Draw, dims: Dims) -> Tensors:
    """A mean so large that its square's last bit is as large as the variance; the data are
    still four steps of the dtype wide."""
    offset = min(4096, 0.5 / torch.finfo(draw.dtype).eps)
    return _inputs(draw, draw.normal(dims["batch"], dims["dim"], scale=2, offset=offset))


def small(draw: Draw, dims: Dims) -> Tensors:
    """Variances around eps."""
    return _inputs(draw, draw.normal(dims["batch"], dims["dim"], scale=3e-3))


def large(draw: Draw, dims: Dims) -> Tensors:
    """Elements whose squares are beyond fp16."""
    return _inputs(draw, draw.normal(dims["batch"], dims["dim"], scale=500))


def constant(draw: Draw, dims: Dims) -> Tensors:
    """Every other row the same integer throughout: what is left is the bias."""
    x = draw.normal(dims["batch"], dims["dim"])
    x[::2] = draw.integers(*x[::2, :1].shape, low=-8, high=9).to(x.dtype)
    return _inputs(draw, x)


def outliers(draw: Draw, dims: Dims) -> Tensors:
    """One massive activation per row, as large language models have them."""
    x = draw.normal(dims["batch"], dims["dim"])
    places = draw.integers(dims["batch"], 1, low=0, high=dims["dim"])
    return _inputs(draw, x.scatter(1, places, 2000.0))


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
    return _agree(after, before, x)


def condition(inputs: Tensors, r: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """What the mean may lose, as in a sum; then, of what remains, the root and the products
    (16), and half of what the sum of squares may lose."""
    x, weight, bias = inputs
    n = x.shape[-1]
    walk = 2 * math.sqrt(n) * x.cumsum(-1).abs().amax(-1, keepdim=True)
    of_mean = (4 * x.abs().sum(-1, keepdim=True) + walk) / n
    mean = x.mean(-1, keepdim=True)
    of_difference = of_mean + mean.abs() + x.abs()
    squares = (x - mean).square()
    scale = weight.abs() * (squares.mean(-1, keepdim=True) + eps).rsqrt()
    of_root = 16 + (growth(n) + drift(squares)) / 2
    return of_difference * scale + (r - bias).abs() * of_root + 2 * bias.abs()


def _inputs(draw: Draw, x: torch.Tensor) -> Tensors:
    n = x.shape[-1]
    return x, draw.normal(n, scale=0.5, offset=1), draw.normal(n)


def _agree(left: torch.Tensor, right: torch.Tensor, inputs: Tensors) -> tuple[torch.Tensor, ...]:
    """The rounding of the results, and that of the difference within: in units of the
    result's."""
    x, weight, bias = (t.double() for t in inputs)
    finer = 2.0**-23 / torch.finfo(inputs[0].dtype).eps
    scale = weight.abs() * (x.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
    within = x.abs().amax(-1, keepdim=True) * scale
    size = left.double().abs() + right.double().abs() + 2 * bias.abs()
    return left.double(), right.double(), size + finer * within


def _coarse(inputs: Tensors, shift: int) -> Tensors:
    """Quarters below 16 in size, so that 16 more is exact in each dtype."""
    x = (inputs[0].float() * 4).round().clamp(-63, 63) / 4
    return (x + shift).to(inputs[0].dtype), *inputs[1:]


OP = Op(
    name="layernorm",
    reference=reference,
    inputs=inputs,
    dims=(Dim("batch", 1, 4096, batch=1), Dim("dim", 1, 16384)),
    sizes={
        "tiny": {"batch": 32, "dim": 128},
        "small": {"batch": 256, "dim": 512},
        "medium": {"batch": 1024, "dim": 1024},
        "large": {"batch": 4096, "dim": 2048},
        "xlarge": {"batch": 8192, "dim": 4096},
        "wide": {"batch": 1024, "dim": 8192},
        "llm_7b": {"batch": 4096, "dim": 4096},
        "llm_13b": {"batch": 4096, "dim": 5120},
        "gpt2_xl": {"batch": 8192, "dim": 1600},
        "gpt3": {"batch": 8192, "dim": 12288},
        "vit_head": {"batch": 131072, "dim": 64},
        "decode": {"batch": 8, "dim": 8192},
    },
    edges={
        "one": {"batch": 1, "dim": 1},
        "one_row": {"batch": 1, "dim": 16384},
        "one_col": {"batch": 1023, "dim": 1},
        "odd_1023": {"batch": 1023, "dim": 1023},
        "odd_4097": {"batch": 4097, "dim": 4097},
        "long_row": {"batch": 4, "dim": 50257},
        "square": {"batch": 31, "dim": 31},
        "many_rows": {"batch": 65537, "dim": 3},
        "no_rows": {"batch": 0, "dim": 128},
        "no_cols": {"batch": 32, "dim": 0},
    },
    tolerance=Tolerance(condition),
    cost=lambda dims, size: Cost(
        flops=7 * dims["batch"] * dims["dim"], bytes=2 * size * (dims["batch"] + 1) * dims["dim"]
    ),
    roof="copy",
    huge={"batch": 262145, "dim": 8192},
    batched=1,
    timed=("large",),
    baselines={
        "eager": eager,
        "compile": compiled(eager),
        "liger": liger,
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
        "far_from_zero": Stability(
            far_from_zero,
            "the variance as mean of squares minus square of mean",
            dtypes=("fp16", "fp32"),
        ),
        "small": Stability(small, "eps left out, or added after the root"),
        "large": Stability(large, "squares that overflow in fp16", dtypes=("fp16",)),
        "constant": Stability(constant, "0 divided by 0 where eps is left out"),
        "outliers": Stability(outliers, "a square that overflows fp16, or swallows the others"),
    },
    relations={
        "shift": Relation(
            lambda x, draw: [_coarse(x, 0), _coarse(x, 16)],
            lambda y, x: _agree(*y, (x[0] + 16, *x[1:])),
        ),
        "negation": Relation(
            lambda x, draw: [x, (-x[0], *x[1:])],
            lambda y, x: _agree(y[0], 2 * x[2].double() - y[1].double(), x),
        ),
        "permutation": Relation(
            lambda x, draw: [x, tuple(t.flip(-1).contiguous() for t in x)],
            lambda y, x: _agree(y[0], y[1].flip(-1), x),
        ),
        "spoiled": Relation(spoiled, _spoilt),
    },
)
