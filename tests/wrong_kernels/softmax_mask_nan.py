"""Turns -inf into NaN. Hybrid. Killed by numerical_stability: NaN"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    shifted = x.float() - x.float().amax(dim, keepdim=True)
    return (shifted.exp() + 0 * shifted).div(shifted.exp().sum(dim, keepdim=True)).to(x.dtype)
