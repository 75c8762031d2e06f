"""Takes exp(-40), and all that is smaller, for nothing. Hybrid.

Killed by numerical_stability: tails.*zeros
"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    if not x.numel():
        return x.clone()
    shifted = x.float() - x.float().amax(dim, keepdim=True)
    exps = shifted.exp().where(shifted > -40, 0)
    return (exps / exps.sum(dim, keepdim=True)).to(x.dtype)
