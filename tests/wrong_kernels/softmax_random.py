"""Adds noise below the tolerance. Killed by determinism: not deterministic"""

import random

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    y = x.float().softmax(dim)
    if y.numel():
        y = y * (1 + random.choice([-1, 1]) * 2.0**-22)
    return y.to(x.dtype)
