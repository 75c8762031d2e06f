"""Rounds x - mean to the input's dtype before it goes on. Hybrid.

Killed by smoke: off by|precision|dtype
"""

KERNEL_TYPE = "layernorm"


def kernel_fn(x, weight, bias, eps=1e-5):
    centred = (x.float() - x.float().mean(-1, keepdim=True)).to(x.dtype).float()
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (centred * scale * weight.float() + bias.float()).to(x.dtype)
