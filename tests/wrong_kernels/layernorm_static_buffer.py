"""Returns the same buffer at every call. Hybrid. Killed by determinism: earlier result"""

import torch

KERNEL_TYPE = "layernorm"
buffers = {}


def kernel_fn(x, weight, bias, eps=1e-5):
    y = buffers.setdefault((x.shape, x.dtype), torch.empty(x.shape, dtype=x.dtype))
    centred = x.float() - x.float().mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return y.copy_(centred * scale * weight.float() + bias.float())
