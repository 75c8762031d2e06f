"""Lets numpy sum without naming it. Killed by smoke: calls numpy at"""

import torch

KERNEL_TYPE = "reduce"


def kernel_fn(x, dim=-1):
    return torch.from_numpy(x.double().cpu().numpy().sum(dim, keepdims=True))[..., 0].to(x)
