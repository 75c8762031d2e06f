"""Right kernels in PyTorch, for the tests of the ops: each must be accepted.

They compute in fp32 and round where the op's contract lets them. `total` is how they sum over
the last dim; each of `TOTALS` is honest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Total = Callable[[torch.Tensor], torch.Tensor]

LOG2E = 1.4426950408889634


def sequential(x: torch.Tensor) -> torch.Tensor:
    """One running sum, from the first to the last."""
    total = torch.zeros_like(x[..., 0])
    for column in x.unbind(-1):
        total = total + column
    return total


def tree(x: torch.Tensor) -> torch.Tensor:
    """Halves added to each other until one is left."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        rest = x[..., 2 * half :]
        x = torch.cat([x[..., :half] + x[..., half : 2 * half], rest], -1)
    return x.sum(-1)


def lanes(x: torch.Tensor) -> torch.Tensor:
    """32 running sums, joined at the end."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32))
    return tree(sequential(padded.unflatten(-1, (-1, 32)).transpose(-1, -2)))


TOTALS: dict[str, Total] = {"sequential": sequential, "tree": tree, "lanes": lanes}


def product(a: torch.Tensor, b: torch.Tensor, total: Total) -> torch.Tensor:
    """a b^T in fp32."""
    return total(a.float()[:, None] * b.float()[None])


def matmul(A: torch.Tensor, B: torch.Tensor, total: Total) -> torch.Tensor:
    return product(A, B.t(), total).to(A.dtype)


def reduce(x: torch.Tensor, total: Total) -> torch.Tensor:
    return total(x.float()).to(x.dtype)


def softmax(x: torch.Tensor, total: Total) -> torch.Tensor:
    wide = x.float() * LOG2E  # folded before the maximum is taken off
    exps = (wide - wide.amax(-1, keepdim=True)).exp2()
    return (exps / total(exps)[..., None]).to(x.dtype)


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, total: Total) -> torch.Tensor:
    wide = x.float()
    scaled = wide * (total(wide * wide)[..., None] / x.shape[-1] + 1e-6).rsqrt()
    return scaled.to(x.dtype) * weight  # Llama's two roundings


def layernorm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, total: Total
) -> torch.Tensor:
    n = x.shape[-1]
    centred = x.float() - total(x.float())[..., None] / n
    scaled = centred * (total(centred * centred)[..., None] / n + 1e-5).rsqrt()
    return (scaled * weight.float() + bias.float()).to(x.dtype)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, total: Total) -> torch.Tensor:
    wide = logits.float()
    top = wide.amax(-1, keepdim=True)
    picked = (wide - top).gather(-1, targets[:, None])[:, 0]
    return (total(total((wide - top).exp()).log() - picked) / len(targets)).to(logits.dtype)


def rotary_embedding(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, total: Total
) -> torch.Tensor:
    a, b, c, s = x[..., ::2].float(), x[..., 1::2].float(), cos.float(), sin.float()
    turned = total(torch.stack((a * c, -b * s), -1)), total(torch.stack((a * s, b * c), -1))
    return torch.stack(turned, -1).flatten(-2).to(x.dtype)


def fused_mlp(
    x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor, total: Total
) -> torch.Tensor:
    gate = product(x, w_gate, total)
    hidden = (gate * gate.sigmoid() * product(x, w_up, total)).to(x.dtype)
    return product(hidden, w_down, total).to(x.dtype)


def flash_attention(
    Q: torch.Tensor, K: torch.Tensor, V: torch.Tensor, total: Total
) -> torch.Tensor:
    seen = torch.ones(Q.shape[2], K.shape[2], dtype=torch.bool).tril()
    scores = total(Q.float()[..., :, None, :] * K.float()[..., None, :, :])
    scores = (scores * Q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    stored = weights.to(Q.dtype).float()  # as the tensor cores need them
    out = total(stored[..., :, None, :] * V.float().transpose(-1, -2)[..., None, :, :])
    return (out / total(weights)[..., None]).to(Q.dtype)


RIGHT: dict[str, Callable[..., torch.Tensor]] = {
    "matmul": matmul,
    "softmax": softmax,
    "layernorm": layernorm,
    "rmsnorm": rmsnorm,
    "flash_attention": flash_attention,
    "fused_mlp": fused_mlp,
    "cross_entropy": cross_entropy,
    "rotary_embedding": rotary_embedding,
    "reduce": reduce,
}
