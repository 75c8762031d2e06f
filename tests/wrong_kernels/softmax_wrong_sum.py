"""Divides by the sum of the first half of the row.

Hybrid. Killed by smoke: value|scale|wrong|rows|dtype|boundary
"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    exps = (x.float() - x.float().amax(dim, keepdim=True)).exp()
    half = exps[..., : max(1, exps.shape[-1] // 2)]
    return (exps / half.sum(dim, keepdim=True)).to(x.dtype)
