"""Has torch.compile write it. Killed by smoke: calls aten._softmax"""

import torch

KERNEL_TYPE = "softmax"


@torch.compile
def compiled(x):
    return torch.softmax(x, -1)


def kernel_fn(x, dim=-1):
    return compiled(x)
