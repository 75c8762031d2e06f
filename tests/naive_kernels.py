"""Naive kernels in PyTorch: each makes one classic mistake, in fp32 unless that is the mistake.

Each is the proof that the stability case of its name is not vacuous.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from tests.right_kernels import LOG2E, sequential, tree

Tensor = torch.Tensor
Kernel = Callable[..., Tensor]


def sum_kept_in(dtype: torch.dtype) -> Kernel:
    return lambda x: sequential(x.to(dtype)).to(x.dtype)


def product_kept_in(dtype: torch.dtype) -> Kernel:
    def matmul(A: Tensor, B: Tensor) -> Tensor:
        return sequential(A.to(dtype)[:, None] * B.t().to(dtype)[None]).to(A.dtype)

    return matmul


def matmul_in_fixed_point(A: Tensor, B: Tensor) -> Tensor:
    """15 bits and one scale per matrix."""
    steps = [t.float().abs().max() / 2**15 for t in (A, B)]
    a, b = ((t.float() / step).round() * step for t, step in zip((A, B), steps, strict=True))
    return (a @ b).to(A.dtype)


def matmul_saturated(A: Tensor, B: Tensor) -> Tensor:
    top = torch.finfo(A.dtype).max
    return (A.float() @ B.float()).clamp(-top, top).to(A.dtype)


def softmax_of(exps: Tensor, dtype: torch.dtype) -> Tensor:
    return (exps / exps.sum(-1, keepdim=True)).to(dtype)


def softmax_without_maximum(x: Tensor) -> Tensor:
    return softmax_of(x.float().exp(), x.dtype)


def softmax_by_one_maximum(x: Tensor) -> Tensor:
    return softmax_of((x.float() - x.float().max()).exp(), x.dtype)


def softmax_from_zero(x: Tensor) -> Tensor:
    top = x.float().amax(-1, keepdim=True).clamp(min=0)
    return softmax_of((x.float() - top).exp(), x.dtype)


def softmax_folded_in_fp16(x: Tensor) -> Tensor:
    folded = x.half() * LOG2E
    return softmax_of((folded - folded.amax(-1, keepdim=True)).float().exp2(), x.dtype)


def softmax_flushed(x: Tensor) -> Tensor:
    y = torch.softmax(x.float(), -1)
    return y.where(y >= 2.0**-14, 0).to(x.dtype)


def online(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and sum by blocks of 16, with nothing done about blocks of -inf."""
    top, total = torch.full_like(x[:, :1].float(), -math.inf), torch.zeros_like(x[:, :1].float())
    for block in x.float().split(16, -1):
        higher = torch.maximum(top, block.amax(-1, keepdim=True))
        total = total * (top - higher).exp() + (block - higher).exp().sum(-1, keepdim=True)
        top = higher
    return top, total


def softmax_online_unguarded(x: Tensor) -> Tensor:
    top, total = online(x)
    return ((x.float() - top).exp() / total).to(x.dtype)


def rmsnorm_without_eps(x: Tensor, weight: Tensor) -> Tensor:
    return (x.float() * x.float().square().mean(-1, keepdim=True).rsqrt() * weight).to(x.dtype)


def rmsnorm_squared_in_fp16(x: Tensor, weight: Tensor) -> Tensor:
    mean = x.half().square().float().mean(-1, keepdim=True)
    return (x.float() * (mean + 1e-6).rsqrt() * weight).to(x.dtype)


def rmsnorm_by_one_scale(x: Tensor, weight: Tensor) -> Tensor:
    return (x.float() * (x.float().square().mean() + 1e-6).rsqrt() * weight).to(x.dtype)


def layernorm_with(variance: Callable[[Tensor], Tensor], eps: float = 1e-5) -> Kernel:
    def layernorm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)
        return (centred * (variance(wide) + eps).rsqrt() * weight + bias).to(x.dtype)

    return layernorm


def variance_of_squares(x: Tensor) -> Tensor:
    mean = tree(x)[:, None] / x.shape[-1]
    return tree(x * x)[:, None] / x.shape[-1] - mean * mean


def variance_in_fp16(x: Tensor) -> Tensor:
    centred = (x - x.mean(-1, keepdim=True)).half()
    return centred.square().float().mean(-1, keepdim=True)


def true_variance(x: Tensor) -> Tensor:
    return x.var(-1, correction=0, keepdim=True)


def loss_with(log_sum: Kernel) -> Kernel:
    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        wide = logits.float()
        picked = wide.gather(-1, targets[:, None])
        return (log_sum(wide) - picked).mean().to(logits.dtype)

    return cross_entropy


def log_sum_from_zero(x: Tensor) -> Tensor:
    top = x.amax(-1, keepdim=True).clamp(min=0)
    return (x - top).exp().sum(-1, keepdim=True).log() + top


def log_sum_online_unguarded(x: Tensor) -> Tensor:
    top, total = online(x)
    return top + total.log()


def loss_by_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    likely = torch.softmax(logits.float(), -1).gather(-1, targets[:, None])
    return -likely.log().mean().to(logits.dtype)


def rotary_with_sine_from_cosine(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    recomputed = (1 - cos.float().square()).sqrt()
    return rotary_rounding_to(torch.float32)(x.float(), cos, recomputed).to(x.dtype)


def rotary_rounding_to(dtype: torch.dtype) -> Kernel:
    def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b, c, s = (t.to(dtype) for t in (x[..., ::2], x[..., 1::2], cos, sin))
        return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2).to(x.dtype)

    return rotary


def rotary_by_three_products(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., ::2], x[..., 1::2]
    shared = cos * (a + b)
    return torch.stack((shared - b * (cos + sin), shared + a * (sin - cos)), -1).flatten(-2)


def gated_by(hidden: Callable[[Tensor, Tensor], Tensor]) -> Kernel:
    def mlp(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
        wide, gate, up, down = (t.float() for t in (x, w_gate, w_up, w_down))
        return F.linear(hidden(F.linear(wide, gate), F.linear(wide, up)), down).to(x.dtype)

    return mlp


def hidden_by_ratio(gate: Tensor, up: Tensor) -> Tensor:
    return gate * gate.exp() / (1 + gate.exp()) * up


def hidden_in_fp16(gate: Tensor, up: Tensor) -> Tensor:
    return (F.silu(gate) * up).half().float()


def hidden_in_fp8(gate: Tensor, up: Tensor) -> Tensor:
    return (F.silu(gate) * up).clamp(-448, 448)


def attention_with(weigh: Callable[[Tensor], Tensor]) -> Kernel:
    def attention(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        scores = Q.float() @ K.float().transpose(-1, -2)
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -math.inf)
        weights = weigh(scores * Q.shape[-1] ** -0.5)
        return (weights @ V.float() / weights.sum(-1, keepdim=True)).to(Q.dtype)

    return attention


def attention_not_rescaled(scores: Tensor) -> Tensor:
    """Each block's weights by the maximum of that block and those before it."""
    tops = scores.cummax(-1).values[..., 15::16].repeat_interleave(16, -1)
    return (scores - tops).exp()


def attention_scored_in_fp16(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    scores = (Q.float() @ K.float().transpose(-1, -2)).half().float() * Q.shape[-1] ** -0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -math.inf).softmax(-1) @ V.float()).to(Q.dtype)


NAIVE: dict[str, dict[str, Kernel]] = {
    "matmul": {
        "integers": product_kept_in(torch.bfloat16),
        "cancellation": product_kept_in(torch.float16),
        "wide_range": matmul_in_fixed_point,
        "long_sums": product_kept_in(torch.bfloat16),
        "overflow": matmul_saturated,
    },
    "softmax": {
        "equal_rows": softmax_without_maximum,
        "spikes": softmax_by_one_maximum,
        "near_overflow": softmax_folded_in_fp16,
        "tails": softmax_flushed,
        "padded": softmax_online_unguarded,
        "deep": softmax_from_zero,
    },
    "layernorm": {
        "far_from_zero": layernorm_with(variance_of_squares),
        "small": layernorm_with(true_variance, eps=0),
        "large": layernorm_with(variance_in_fp16),
        "constant": layernorm_with(true_variance, eps=0),
        "outliers": layernorm_with(variance_in_fp16),
    },
    "rmsnorm": {
        "small": rmsnorm_without_eps,
        "large": rmsnorm_squared_in_fp16,
        "zeros": rmsnorm_without_eps,
        "outliers": rmsnorm_squared_in_fp16,
        "uneven": rmsnorm_by_one_scale,
    },
    "flash_attention": {
        "large_scores": attention_with(torch.exp),
        "deep_scores": attention_with(
            lambda scores: (scores - scores.amax(-1, keepdim=True).clamp(min=0)).exp()
        ),
        "rising_scores": attention_with(attention_not_rescaled),
        "unscaled_overflow": attention_scored_in_fp16,
    },
    "fused_mlp": {
        "saturated": gated_by(hidden_by_ratio),
        "tiny_hidden": gated_by(hidden_in_fp16),
        "large_hidden": gated_by(hidden_in_fp8),
    },
    "cross_entropy": {
        "high": loss_with(lambda x: x.exp().sum(-1, keepdim=True).log()),
        "deep": loss_with(log_sum_from_zero),
        "unlikely": loss_by_probabilities,
        "masked": loss_with(log_sum_online_unguarded),
    },
    "rotary_embedding": {
        "arbitrary_tables": rotary_with_sine_from_cosine,
        "cancelling": rotary_rounding_to(torch.bfloat16),
        "near_overflow": rotary_by_three_products,
    },
    "reduce": {
        "integers": sum_kept_in(torch.bfloat16),
        "long_sums": sum_kept_in(torch.bfloat16),
        "cancellation": sum_kept_in(torch.float16),
        "wide_range": sum_kept_in(torch.bfloat16),
    },
}
