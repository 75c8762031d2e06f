"""Takes no maximum off along any dim but the last.

Hybrid. Killed by shape_sweep|numerical_stability: NaN|value|infinity
"""

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim", "nd"}


def kernel_fn(x, dim=-1):
    w = x.float()
    if dim % x.dim() == x.dim() - 1:
        return w.softmax(-1).to(x.dtype)
    e = w.exp()
    return (e / e.sum(dim, keepdim=True)).to(x.dtype)
