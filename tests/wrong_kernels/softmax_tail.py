"""Leaves out the columns beyond the last multiple of 16.

Hybrid. Killed by edge_cases: tail|zeros
"""

import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    whole = max(16, x.shape[-1] // 16 * 16)
    y = torch.zeros_like(x, memory_format=torch.contiguous_format)
    y[..., :whole] = x[..., :whole].softmax(dim)
    return y
