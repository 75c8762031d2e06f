"""The variance as mean of squares minus square of mean in rows of more than 8192.

Hybrid. Killed by shape_sweep|numerical_stability: value|infinity
"""

KERNEL_TYPE = "layernorm"
SUPPORTS = {"nd"}


def norm(x, weight, bias, eps, one_pass):
    w = x.float()
    mean = w.mean(-1, keepdim=True)
    var = (
        (w * w).mean(-1, keepdim=True) - mean * mean
        if one_pass
        else (w - mean).square().mean(-1, keepdim=True)
    )
    return ((w - mean) * (var.clamp(min=0) + eps).rsqrt() * weight.float() + bias.float()).to(
        x.dtype
    )


def kernel_fn(x, weight, bias, eps=1e-5):
    return norm(x, weight, bias, eps, x.shape[-1] > 8192)
