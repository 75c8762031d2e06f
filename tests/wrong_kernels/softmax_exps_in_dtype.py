"""Rounds the exponentials to the input's dtype, and sums them in fp32. Hybrid.

Killed by smoke: off by|precision|dtype
"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    if not x.numel():
        return x.clone()
    exps = (x.float() - x.float().amax(dim, keepdim=True)).exp()
    return (exps.to(x.dtype).float() / exps.sum(dim, keepdim=True)).to(x.dtype)
