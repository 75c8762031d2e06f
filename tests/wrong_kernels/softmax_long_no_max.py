"""Takes no maximum off in rows of more than 4096.

Hybrid. Killed by shape_sweep|numerical_stability: NaN|value|infinity
"""

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim", "nd"}


def kernel_fn(x, dim=-1):
    if x.shape[dim] <= 4096:
        return x.float().softmax(dim).to(x.dtype)
    e = x.float().exp()
    return (e / e.sum(dim, keepdim=True)).to(x.dtype)
