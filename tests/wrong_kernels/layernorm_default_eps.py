"""Has RMSNorm's default eps, 1e-6.

Hybrid. Killed by smoke|numerical_stability: small|value|dtype|precision|scale|boundary
"""

KERNEL_TYPE = "layernorm"


def kernel_fn(x, weight, bias, eps=1e-6):
    centred = x.float() - x.float().mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (centred * scale * weight.float() + bias.float()).to(x.dtype)
