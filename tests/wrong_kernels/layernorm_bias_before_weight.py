"""Adds the bias before it multiplies with the weight. Hybrid. Killed by smoke: off by"""

KERNEL_TYPE = "layernorm"


def kernel_fn(x, weight, bias, eps=1e-5):
    centred = x.float() - x.float().mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return ((centred * scale + bias.float()) * weight.float()).to(x.dtype)
