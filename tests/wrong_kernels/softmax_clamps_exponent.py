"""Its exp is good from -40 on, and takes what is below for -40. Hybrid.

Killed by numerical_stability: tails|spikes"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    if not x.numel():
        return x.clone()
    shifted = x.float() - x.float().amax(dim, keepdim=True)
    exps = shifted.clamp(min=-40).exp().where(shifted > -99, 0)
    return (exps / exps.sum(dim, keepdim=True)).to(x.dtype)
