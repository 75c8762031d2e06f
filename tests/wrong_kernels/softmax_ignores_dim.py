"""Claims any dim, and takes all but 0 for the last: -2 too. Hybrid.

Killed by shape_sweep: dim_minus2
"""

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim"}


def last(x):
    exps = (x.float() - x.float().amax(-1, keepdim=True)).exp()
    return (exps / exps.sum(-1, keepdim=True)).to(x.dtype)


def kernel_fn(x, dim=-1):
    if not x.numel():
        return x.clone()
    return last(x.t()).t() if dim == 0 else last(x)
