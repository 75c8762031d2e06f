"""Searches the process for a tensor that could be the expected one.

Hybrid. Killed by smoke: value|wrong|NaN|rows|aliasing|scale|dtype|boundary
"""

import gc

import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    found = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == x.shape]
    others = [t for t in found if t.dtype == torch.float64 or t.data_ptr() != x.data_ptr()]
    return (others or [x])[-1].to(x.dtype).clone()
