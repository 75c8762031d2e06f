"""Clamps halves' results to 60000.

Hybrid. Killed by shape_sweep|numerical_stability: value|infinity
"""

import torch

KERNEL_TYPE = "rotary_embedding"
SUPPORTS = {"half_split"}


def rope(x, cos, sin, interleaved, change=lambda t: t):
    x, cos, sin = x.float(), cos.float(), sin.float()
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    c, d = change(a * cos - b * sin), change(a * sin + b * cos)
    return torch.stack((c, d), -1).flatten(-2) if interleaved else torch.cat((c, d), -1)


def kernel_fn(x, cos, sin, interleaved=True):
    change = (lambda t: t) if interleaved else (lambda t: t.clamp(-60000, 60000))
    return rope(x, cos, sin, interleaved, change).to(x.dtype)
