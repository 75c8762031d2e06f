"""Takes eps for the least variance instead of adding it, in its path for halves. Hybrid.

Killed by smoke|numerical_stability: small|value|dtype|precision|scale|boundary
"""

KERNEL_TYPE = "layernorm"


def kernel_fn(x, weight, bias, eps=1e-5):
    centred = x.float() - x.float().mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    half = x.dtype.itemsize == 2
    scale = variance.clamp(min=eps).rsqrt() if half else (variance + eps).rsqrt()
    return (centred * scale * weight.float() + bias.float()).to(x.dtype)
