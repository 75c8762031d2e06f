"""Rotary position embedding: pairs of elements turned by an angle per position and pair.

Su et al., "RoFormer", 2021. Interleaved pairs (x[2i], x[2i+1]) as there and in Meta's Llama;
`interleaved=False` pairs (x[i], x[i + D/2]), as Hugging Face's Llama does.
"""

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
)


def reference(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    """`x [B, H, S, D]`, `cos, sin [S, D/2]`; same shape and dtype as `x`."""
    a, b = _pairs(x, interleaved)
    return _joined(a * cos - b * sin, a * sin + b * cos, interleaved)


def eager(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    """In fp32 at least and rounded once, as Meta's Llama does."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return reference(x.to(wide), cos.to(wide), sin.to(wide), interleaved).to(x.dtype)


def quack(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    """It has positions before heads: quack/rotary.py (quack-kernels 0.6.5). Liger turns halves
    alone, and in place; FlagGems turns a query and a key at once."""
    from quack.rotary import apply_rotary_emb

    return apply_rotary_emb(x.transpose(1, 2), cos, sin, interleaved).transpose(1, 2)


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """`x [batch, heads, seq_len, head_dim]`, and the tables of Llama 3 from some position on."""
    x = _x(draw, dims)
    steps = torch.arange(dims["head_dim"] // 2, device=x.device, dtype=torch.float64)
    speeds = 500000.0 ** (-2 * steps / dims["head_dim"])
    positions = torch.arange(dims["seq_len"], device=x.device) + draw.below(100000)
    angles = positions[:, None] * speeds
    return x, angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def arbitrary_tables(draw: Draw, dims: Dims) -> Tensors:
    """Tables that are no cosines: a kernel is to use what it is given, signs and all."""
    shape = dims["seq_len"], dims["head_dim"] // 2
    return _x(draw, dims), draw.normal(*shape), draw.normal(*shape)


def cancelling(draw: Draw, dims: Dims) -> Tensors:
    """Pairs of nearly equal numbers turned by an eighth: little of the difference is left."""
    x, cos = inputs(draw, dims)[:2]
    half = torch.full_like(cos, 0.5**0.5)
    near = x[..., ::2].repeat_interleave(2, -1) * (1 + draw.normal(*x.shape, scale=0.01))
    return near, half, half.clone()


def near_overflow(draw: Draw, dims: Dims) -> Tensors:
    """Pairs whose results are within fp16, up to its end, and whose sums are not."""
    x, cos, sin = inputs(draw, dims)
    return x.sign() * draw.between(44000, 46200), cos, sin


def condition(inputs: Tensors, r: torch.Tensor, interleaved: bool = True) -> torch.Tensor:
    """Two products and a sum."""
    x, cos, sin = (t.abs() for t in inputs)
    a, b = _pairs(x, interleaved)
    return 4 * _joined(a * cos + b * sin, a * sin + b * cos, interleaved)


def _x(draw: Draw, dims: Dims) -> torch.Tensor:
    shape = [dims[name] for name in ("batch", "heads", "seq_len", "head_dim")]
    return draw.normal(*shape, scale=draw.between(0.5, 3), offset=draw.between(-1, 1))


def _pairs(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if interleaved:
        return x[..., ::2], x[..., 1::2]
    first, second = x.chunk(2, -1)
    return first, second


def _joined(a: torch.Tensor, b: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return torch.stack((a, b), -1).flatten(-2) if interleaved else torch.cat((a, b), -1)


def _agree(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return left.double(), right.double(), right.double().abs()


def _turned(y: Sequence[torch.Tensor], x: Tensors) -> tuple[torch.Tensor, ...]:
    """The first of each pair, and the second of the pair that is turned by a quarter more. Fused
    products round only one of the two that are summed, and not the same one on either side: 4
    units of 2^-24 of the products."""
    left, right = y[0][..., ::2].double(), y[1][..., 1::2].double()
    (a, b), (cos, sin) = _pairs(x[0].double().abs(), True), (t.double().abs() for t in x[1:])
    within = 2.0**-22 / torch.finfo(y[0].dtype).eps * (a * cos + b * sin)
    return left, right, right.abs() + within


def spoiled(inputs: Tensors, draw: Draw) -> list[Tensors]:
    """x, and x with a NaN for its first element."""
    x = inputs[0].clone()
    x[:1, :1, :1, :1] = math.nan
    return [inputs, (x, *inputs[1:])]


def _spoilt(y: Sequence[torch.Tensor], x: Tensors) -> tuple[torch.Tensor, ...]:
    """A NaN takes its pair; all others stay as they were."""
    before = y[0].clone()
    before[:1, :1, :1, :2] = math.nan
    return _agree(y[1], before)


def _squares(x: torch.Tensor) -> torch.Tensor:
    return x.double().square().unflatten(-1, (-1, 2)).sum(-1)


def _cost(dims: Dims, size: int) -> Cost:
    elements = dims["batch"] * dims["heads"] * dims["seq_len"] * dims["head_dim"]
    tables = dims["seq_len"] * dims["head_dim"]
    return Cost(flops=3 * elements, bytes=size * (2 * elements + tables))


def _size(batch: int, heads: int, seq_len: int, head_dim: int) -> Dims:
    return {"batch": batch, "heads": heads, "seq_len": seq_len, "head_dim": head_dim}


OP = Op(
    name="rotary_embedding",
    reference=reference,
    inputs=inputs,
    dims=(
        Dim("batch", 1, 8, batch=1),
        Dim("heads", 1, 64, batch=1),
        Dim("seq_len", 1, 8192, batch=8),
        Dim("head_dim", 2, 256, choices=(2, 16, 32, 64, 80, 96, 112, 128, 256)),
    ),
    sizes={
        "tiny": _size(1, 4, 64, 64),
        "small": _size(2, 8, 256, 64),
        "medium": _size(2, 16, 512, 64),
        "large": _size(2, 32, 1024, 128),
        "xlarge": _size(2, 32, 2048, 128),
        "llm_7b": _size(1, 32, 2048, 128),
        "llm_13b": _size(1, 40, 2048, 128),
        "llama3_8b_q": _size(4, 32, 4096, 128),
        "llama3_8b_k": _size(4, 8, 4096, 128),
        "qwen3_32b_q": _size(1, 64, 8192, 128),
        "deepseek_v3_q": _size(1, 128, 4096, 64),
        "decode": _size(64, 32, 1, 128),
    },
    edges={
        "beyond_8192": _size(1, 1, 8209, 16),
        "one": _size(1, 1, 1, 2),
        "odd_127": _size(1, 8, 127, 64),
        "odd_1023": _size(1, 8, 1023, 128),
        "odd_heads": _size(3, 7, 129, 80),
        "no_positions": _size(1, 8, 0, 64),
        "no_batch": _size(0, 8, 64, 64),
    },
    tolerance=Tolerance(condition),
    cost=_cost,
    roof="copy",
    huge=_size(65, 64, 4096, 128),
    batched=1,
    timed=("large",),
    baselines={"eager": eager, "compile": compiled(eager), "quack": quack},
    variants={"core": Variant(), "half_split": Variant({"interleaved": False}, "half_split")},
    stability={
        "arbitrary_tables": Stability(
            arbitrary_tables, "tables computed again, or sin taken from cos"
        ),
        "cancelling": Stability(cancelling, "products rounded to bf16 before they are subtracted"),
        "near_overflow": Stability(
            near_overflow, "a sum of x's in fp16, as in a product of three", dtypes=("fp16",)
        ),
    },
    relations={
        "doubling": Relation(
            lambda x, draw: [x, (x[0] * 2, *x[1:])],
            lambda y, x: _agree(2 * y[0].double(), y[1]),
        ),
        "norm": Relation(
            lambda x, draw: [x],
            lambda y, x: _agree(
                _squares(y[0]),
                _squares(x[0]) * (x[1].double().square() + x[2].double().square()),
            ),
        ),
        "spoiled": Relation(spoiled, _spoilt),
        "quarter_turn": Relation(lambda x, draw: [x, (x[0], -x[2], x[1])], _turned),
    },
)
