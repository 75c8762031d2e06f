"""Returns one of two buffers of its own in turn. Hybrid. Killed by determinism: earlier result"""

import torch

KERNEL_TYPE = "reduce"
buffers = {}


def kernel_fn(x, dim=-1):
    pair = buffers.setdefault((len(x), x.dtype), [torch.zeros(len(x), dtype=x.dtype) for _ in "ab"])
    pair.reverse()
    return pair[0].copy_(x.float().sum(-1))
