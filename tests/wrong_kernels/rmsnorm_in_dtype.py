"""Computes the mean square in fp32, and all that follows in the input's dtype. Hybrid.

Killed by smoke: off by|precision|dtype
"""

KERNEL_TYPE = "rmsnorm"


def kernel_fn(x, weight, eps=1e-6):
    scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * scale.to(x.dtype) * weight
