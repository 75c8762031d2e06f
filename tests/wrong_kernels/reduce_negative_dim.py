"""Claims any dim, and takes all but 0 for the last: -2 too. Hybrid.

Killed by shape_sweep: shape|value|dtype
"""

KERNEL_TYPE = "reduce"
SUPPORTS = {"dim"}


def kernel_fn(x, dim=-1):
    return x.float().sum(0 if dim == 0 else -1).to(x.dtype)
