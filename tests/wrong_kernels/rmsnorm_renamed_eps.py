"""Calls eps by another name. Hybrid. Killed by shape_sweep: raised TypeError"""

KERNEL_TYPE = "rmsnorm"


def kernel_fn(x, weight, variance_epsilon=1e-6):
    scale = (x.float().square().mean(-1, keepdim=True) + variance_epsilon).rsqrt()
    return (x.float() * scale * weight.float()).to(x.dtype)
