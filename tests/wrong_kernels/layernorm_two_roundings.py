"""Rounds what is normalised to the input's dtype, before weight and bias. Hybrid.

Killed by smoke: off by
"""

KERNEL_TYPE = "layernorm"


def kernel_fn(x, weight, bias, eps=1e-5):
    centred = x.float() - x.float().mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return ((centred * scale).to(x.dtype).float() * weight.float() + bias.float()).to(x.dtype)
