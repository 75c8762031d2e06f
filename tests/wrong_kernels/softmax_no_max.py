"""Does not take off the maximum. Hybrid. Killed by numerical_stability: NaN"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    exps = x.float().exp()
    return (exps / exps.sum(dim, keepdim=True)).to(x.dtype)
