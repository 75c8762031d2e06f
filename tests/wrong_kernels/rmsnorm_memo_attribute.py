"""Hangs the result on the input, to find it there. Hybrid. Killed by determinism: off by"""

KERNEL_TYPE = "rmsnorm"


def kernel_fn(x, weight, eps=1e-6):
    if not hasattr(x, "normalised"):
        scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
        x.normalised = (x.float() * scale * weight.float()).to(x.dtype)
    return x.normalised.clone()
