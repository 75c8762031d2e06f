"""Divides the variance by n - 1. Hybrid. Killed by smoke: off by|precision|dtype"""

KERNEL_TYPE = "layernorm"


def kernel_fn(x, weight, bias, eps=1e-5):
    centred = x.float() - x.float().mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / max(x.shape[-1] - 1, 1)
    return (centred * (variance + eps).rsqrt() * weight.float() + bias.float()).to(x.dtype)
