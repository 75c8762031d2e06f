"""Divides by the norm over sqrt(n), with no eps. Hybrid. Killed by shape_sweep: off by"""

KERNEL_TYPE = "rmsnorm"


def kernel_fn(x, weight, eps=1e-6):
    norm = x.float().norm(dim=-1, keepdim=True)
    return (x.float() * (x.shape[-1] ** 0.5 / norm) * weight.float()).to(x.dtype)
