"""Has another implementation's default eps, 1e-8. Hybrid. Killed by numerical_stability: small"""

KERNEL_TYPE = "rmsnorm"


def kernel_fn(x, weight, eps=1e-8):
    scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x.float() * scale * weight.float()).to(x.dtype)
