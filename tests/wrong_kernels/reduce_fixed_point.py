"""Sums as integers, of 2^-8 each. Hybrid. Killed by smoke: off by|precision|dtype"""

import torch

KERNEL_TYPE = "reduce"


def kernel_fn(x, dim=-1):
    steps = (x.float() * 256).round().to(torch.int64)
    return (steps.sum(dim) / 256.0).to(x.dtype)
