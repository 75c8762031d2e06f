"""Overrides a method of the one tensor that it returns.

Hybrid. Killed by smoke: a tensor with attributes
"""

import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    y = torch.empty_like(x)
    y.double = lambda: x.double().softmax(dim)
    return y
