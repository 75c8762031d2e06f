"""Multiplies with 1 + weight, as Gemma does. Hybrid. Killed by smoke: off by"""

KERNEL_TYPE = "rmsnorm"


def kernel_fn(x, weight, eps=1e-6):
    scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x.float() * scale * (1 + weight.float())).to(x.dtype)
