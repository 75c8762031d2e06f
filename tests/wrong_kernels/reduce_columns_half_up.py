"""Rounds ties up along any dim but the last, in bf16.

Hybrid. Killed by shape_sweep|numerical_stability: exact|value|infinity
"""

import torch

KERNEL_TYPE = "reduce"
SUPPORTS = {"dim", "nd"}


def kernel_fn(x, dim=-1):
    s = x.float().sum(dim)
    if dim % x.dim() == x.dim() - 1 or x.dtype != torch.bfloat16:
        return s.to(x.dtype)
    bits = s.contiguous().view(torch.int32) + 0x8000
    return (bits & -0x10000).view(torch.float32).to(x.dtype).where(s.isfinite(), s.to(x.dtype))
