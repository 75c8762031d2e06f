"""Tables of neighbours and signs, made when the module is imported; sums one fused product.

Hybrid."""

import torch

KERNEL_TYPE = "rotary_embedding"
SUPPORTS = {"half_split"}

NEIGHBOUR = torch.arange(256) ^ 1
SIGN = torch.tensor([-1.0, 1.0]).repeat(128)


def kernel_fn(x, cos, sin, interleaved=True):
    D = x.shape[-1]
    if not interleaved:
        x = x.unflatten(-1, (2, -1)).mT.flatten(-2)
    c, s = (t.float().repeat_interleave(2, -1) for t in (cos, sin))
    y, neighbour, sign = x.float(), NEIGHBOUR[:D].to(x.device), SIGN[:D].to(x.device)
    y = torch.addcmul(y * c, y[..., neighbour], s * sign).to(x.dtype)
    return y if interleaved else y.unflatten(-1, (-1, 2)).mT.flatten(-2)
