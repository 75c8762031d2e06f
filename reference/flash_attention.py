"""Scaled dot-product attention: softmax(scale Q K^T) V, causal or not.

Vaswani et al., 2017; Dao et al., "FlashAttention", 2022, is the algorithm that never stores the
weights. Causal means that query i sees the keys up to i, also where there are more or fewer keys
than queries (top-left, as in torch.nn.functional.scaled_dot_product_attention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    fastest,
    growth,
    near_square,
)

# The order of preference on a GPU: cuDNN's kernel is twice as fast as the others on an H100.
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

WEIGHTS_AT_ONCE = 2**26  # half a GB of them in float64


def reference(
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    causal: bool = True,
    sm_scale: float | None = None,
) -> torch.Tensor:
    """`Q [B, H, Sq, D]`, `K, V [B, G, Sk, D]` where G divides H: `[B, H, Sq, D]`.

    `sm_scale` is 1 / sqrt(D) unless given.
    """
    return _each_head(lambda q, k, v: _weights(q, k, causal, sm_scale) @ v, Q, K, V)


def sdpa(
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    causal: bool = True,
    sm_scale: float | None = None,
    backends: Sequence[SDPBackend] = BACKENDS,
) -> torch.Tensor:
    """By the first of `backends` that takes the inputs."""
    grouped = Q.shape[1] != K.shape[1]
    with sdpa_kernel(list(backends), set_priority=True):
        return F.scaled_dot_product_attention(
            Q, K, V, is_causal=causal, scale=sm_scale, enable_gqa=grouped
        )


def flag_gems(
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    causal: bool = True,
    sm_scale: float | None = None,
) -> torch.Tensor:
    """flag_gems/ops/attention.py (FlagGems 5.0.2)."""
    import flag_gems

    return flag_gems.scaled_dot_product_attention(Q, K, V, is_causal=causal, scale=sm_scale)


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """Q, K and V, each `[batch, heads, seq_len, head_dim]`."""
    return _operands(draw, dims)


def grouped(draw: Draw, dims: Dims) -> Dims:
    """Fewer heads in K and V than in Q.

    Two batch elements and six heads at least, in fewer positions where those were many: with
    one of either, or with as many groups as heads in a group, a wrong group may be the right one.
    """
    batch, heads = max(dims["batch"], 2), max(dims["heads"], 6)
    room = dims["seq_len"] * dims["batch"] * dims["heads"] // (batch * heads)
    positions = min(dims["seq_len"], max(room, 128))
    more = {"batch": batch, "heads": heads, "seq_len": positions}
    return {**dims, **more, "kv_heads": near_square(heads)[0]}


def crossed(draw: Draw, dims: Dims) -> Dims:
    """More keys than queries, or fewer."""
    return {**dims, "keys": 1 + draw.below(2 * dims["seq_len"])}


def of_size(head_dim: int) -> Callable[[Draw, Dims], Dims]:
    return lambda draw, dims: {**dims, "head_dim": head_dim}


def large_scores(draw: Draw, dims: Dims) -> Tensors:
    """Scores in the hundreds, of either sign."""
    Q, K, V = inputs(draw, dims)
    return Q * 16, K * 16, V


def deep_scores(draw: Draw, dims: Dims) -> Tensors:
    """All scores near -200."""
    Q, K, V = inputs(draw, dims)
    far = (200 * dims["head_dim"] ** -0.5) ** 0.5
    return Q * 0.25 + far, K * 0.25 - far, V


def rising_scores(draw: Draw, dims: Dims) -> Tensors:
    """Scores that rise along the keys, so that the maximum changes in every block."""
    Q, K, V = inputs(draw, dims)
    steps = torch.linspace(0, 4, K.shape[2], device=Q.device, dtype=Q.dtype)
    return Q.abs() + 1, K * 0.25 + steps[:, None], V


def unscaled_overflow(draw: Draw, dims: Dims) -> Tensors:
    """Q K^T beyond fp16 before it is scaled."""
    Q, K, V = inputs(draw, dims)
    return (Q.abs() + 0.5) * 64, (K.abs() + 0.5) * 64, V


def together(
    inputs: Tensors, causal: bool = True, sm_scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result; its condition: exp and the division (32), the sums' growth, and the scores' own
    roundings, all of which reach the result through the weights; and these weights, as far as they
    reach the result: each is rounded on its own."""

    def of_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = _weights(q, k, causal, sm_scale)
        result, plain = weights @ v, weights @ v.abs()
        sizes = (q.abs() @ k.abs().mT * _scale(q, sm_scale)).where(weights > 0, 0.0)
        of_scores = (8 + math.sqrt(q.shape[-1])) * sizes.amax(-1, keepdim=True)
        condition = (32 + growth(k.shape[-2]) + of_scores) * plain
        likely = result.abs() + 4 * (weights.square() @ v.square()).sqrt()
        return torch.stack((result, condition, likely.minimum(plain)), -1)

    return _each_head(of_head, *inputs).unbind(-1)


def _each_head(
    fn: Callable[..., torch.Tensor], Q: torch.Tensor, K: torch.Tensor, V: torch.Tensor
) -> torch.Tensor:
    """Some heads at a time, because all weights at once may not fit in memory."""
    if Q.shape[1] != K.shape[1]:
        K, V = (t.repeat_interleave(Q.shape[1] // max(K.shape[1], 1), 1) for t in (K, V))
    q, k, v = (t.flatten(0, 1) for t in (Q, K, V))
    some = max(1, WEIGHTS_AT_ONCE // max(Q.shape[2] * K.shape[2], 1))
    pieces = zip(q.split(some), k.split(some), v.split(some), strict=True)
    return torch.cat([fn(*piece) for piece in pieces]).unflatten(0, Q.shape[:2])


def _weights(
    q: torch.Tensor, k: torch.Tensor, causal: bool, sm_scale: float | None
) -> torch.Tensor:
    scores = q @ k.mT * _scale(q, sm_scale)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1)


def _scale(q: torch.Tensor, sm_scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if sm_scale is None else sm_scale


def _operands(draw: Draw, dims: Dims) -> Tensors:
    batch, heads, S, D = (dims[name] for name in ("batch", "heads", "seq_len", "head_dim"))
    shape = batch, dims.get("kv_heads", heads), dims.get("keys", S), D
    scale = draw.between(0.5, 1.5)
    Q, K = draw.normal(batch, heads, S, D, scale=scale), draw.normal(*shape, scale=scale)
    return Q, K, draw.normal(*shape, offset=draw.between(-0.5, 0.5))


def spoiled(inputs: Tensors, draw: Draw) -> list[Tensors]:
    """The operands, and the same with a NaN in the first query."""
    Q = inputs[0].clone()
    Q[:1, :1, :1, 1] = math.nan
    return [inputs, (Q, *inputs[1:])]


def _spoilt(y: Sequence[torch.Tensor], x: Tensors) -> tuple[torch.Tensor, ...]:
    """A NaN takes its whole query; all others stay as they were."""
    before = y[0].clone()
    before[:1, :1, :1] = math.nan
    return _agree(y[1], before, x[2])


def _agree(left: torch.Tensor, right: torch.Tensor, V: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rounding of the results and of the weights."""
    within = V.double().abs().amax(-2, keepdim=True).expand_as(right)
    return left.double(), right.double(), within


def _first(x: Tensors, count: int) -> Tensors:
    Q, K, V = (t[:, :, :count].contiguous() for t in x)
    return Q, K, V


def _cost(dims: Dims, size: int) -> Cost:
    """Of the core, which is causal: query i sees i + 1 keys."""
    batch, heads, S, D = (dims[name] for name in ("batch", "heads", "seq_len", "head_dim"))
    return Cost(flops=2 * batch * heads * S * (S + 1) * D, bytes=4 * size * batch * heads * S * D)


def _size(batch: int, heads: int, seq_len: int, head_dim: int) -> Dims:
    return {"batch": batch, "heads": heads, "seq_len": seq_len, "head_dim": head_dim}


OP = Op(
    name="flash_attention",
    reference=reference,
    inputs=inputs,
    dims=(
        Dim("batch", 1, 4, batch=1),
        Dim("heads", 1, 32, batch=1),
        Dim("seq_len", 1, 2048),
        Dim("head_dim", 16, 256, choices=(16, 32, 64, 128, 256)),
    ),
    sizes={
        "tiny": _size(1, 4, 64, 64),
        "small": _size(2, 8, 256, 64),
        "medium": _size(2, 16, 512, 64),
        "large": _size(2, 32, 1024, 64),
        "xlarge": _size(2, 32, 2048, 64),
        "long": _size(1, 32, 4096, 64),
        "gqa": _size(2, 32, 1024, 128),
        "llm_7b": _size(1, 32, 2048, 128),
        "llama3_8b": _size(2, 32, 4096, 128),
        "llama3_70b": _size(1, 64, 8192, 128),
        "gemma2": _size(1, 16, 4096, 256),
    },
    edges={
        "one": _size(1, 1, 1, 16),
        "odd_127": _size(1, 8, 127, 64),
        "odd_1023": _size(1, 8, 1023, 64),
        "odd_heads": _size(3, 7, 65, 32),
        "long": _size(1, 1, 1025, 16),
        "wide_head": _size(1, 2, 129, 256),
        "no_batch": _size(0, 8, 64, 64),
        "no_queries": _size(1, 8, 0, 64),
    },
    tolerance=Tolerance(
        lambda inputs, r, **options: together(inputs, **options)[1],
        roundings=2,
        intermediate=lambda inputs, r, **options: together(inputs, **options)[2],
        together=together,
    ),
    cost=_cost,
    roof="math",
    huge=_size(4097, 64, 64, 128),
    batched=3,
    timed=("large",),
    baselines={
        # Which backend is the best depends on the GPU, the head size and cuDNN's version.
        "sdpa": fastest(sdpa, *(partial(sdpa, backends=[backend]) for backend in BACKENDS[1:3])),
        "compile": compiled(sdpa),
        "flag_gems": flag_gems,
    },
    trusted=sdpa,
    variants={
        "core": Variant(),
        "full": Variant({"causal": False}),
        "scale": Variant({"sm_scale": 0.3}),
        "full_scale": Variant({"causal": False, "sm_scale": 0.3}),
        "gqa": Variant({}, "gqa", grouped),
        "cross": Variant({"causal": False}, "cross", crossed),
        "cross_causal": Variant({}, "cross", crossed),
        "head_80": Variant({}, "head_dim", of_size(80)),
        "head_96": Variant({}, "head_dim", of_size(96)),
        "head_112": Variant({}, "head_dim", of_size(112)),
    },
    stability={
        "large_scores": Stability(large_scores, "exp overflows where no maximum is taken off"),
        "deep_scores": Stability(deep_scores, "a maximum that starts at 0"),
        "rising_scores": Stability(rising_scores, "sums not scaled anew when the maximum changes"),
        "unscaled_overflow": Stability(
            unscaled_overflow, "scores kept in fp16 before they are scaled", dtypes=("fp16",)
        ),
    },
    relations={
        "doubling": Relation(
            lambda x, draw: [x, (*x[:2], x[2] * 2)],
            lambda y, x: _agree(2 * y[0].double(), y[1], 2 * x[2]),
        ),
        "equal_values": Relation(
            lambda x, draw: [(*x[:2], x[2][:, :, :1].expand_as(x[2]).contiguous())],
            lambda y, x: _agree(y[0], x[2], x[2]),
        ),
        "spoiled": Relation(spoiled, _spoilt),
        "prefix": Relation(
            lambda x, draw: [x, _first(x, 1 + x[0].shape[2] // 2)],
            lambda y, x: _agree(y[0][:, :, : y[1].shape[2]], y[1], x[2]),
            slack=256,
        ),
    },
)
