"""Claims any rank, and knows of batch, length and width alone. Hybrid.

Killed by shape_sweep: raised ValueError
"""

KERNEL_TYPE = "rmsnorm"
SUPPORTS = {"nd"}


def kernel_fn(x, weight, eps=1e-6):
    if x.dim() != 2:
        batch, length, width = x.shape
        return kernel_fn(x.reshape(batch * length, width), weight, eps).view(x.shape)
    scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x.float() * scale * weight.float()).to(x.dtype)
