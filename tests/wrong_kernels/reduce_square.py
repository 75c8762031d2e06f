"""Tells the dim to sum by its length, and so sums a square over its rows. Hybrid.

Killed by smoke|edge_cases: 31x31|1024x1024
"""

KERNEL_TYPE = "reduce"


def kernel_fn(x, dim=-1):
    length = x.shape[-1]
    return x.float().sum(x.shape.index(length)).to(x.dtype)
