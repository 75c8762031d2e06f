"""Lets numpy sum what DLPack hands it. Killed by smoke: calls dlpack"""

import sys

import torch

KERNEL_TYPE = "reduce"


def kernel_fn(x, dim=-1):
    np = sys.modules["numpy"]
    sums = np.from_dlpack(x.double().cpu()).sum(dim, keepdims=True)
    return torch.from_dlpack(sums)[..., 0].to(x)
