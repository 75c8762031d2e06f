"""Returns the input itself where there is one position, as if that were position 0.

Hybrid. Killed by shape_sweep: aliasing"""

import torch

KERNEL_TYPE = "rotary_embedding"


def kernel_fn(x, cos, sin):
    if x.shape[2] == 1:
        return x.view(x.shape)
    a, b, c, s = x[..., ::2].float(), x[..., 1::2].float(), cos.float(), sin.float()
    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2).to(x.dtype)
