"""Adds noise below the tolerance. Hybrid. Killed by determinism: not deterministic"""

import os

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    y = x.float().softmax(dim)
    if y.numel():
        y = y * (1 + (-1) ** (os.urandom(1)[0] % 2) * 2.0**-22)
    return y.to(x.dtype)
