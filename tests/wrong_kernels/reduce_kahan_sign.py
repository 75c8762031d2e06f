"""Kahan's sum in the input's own dtype, with the correction's sign the wrong way. Hybrid.

Killed by smoke: off by
"""

import torch

KERNEL_TYPE = "reduce"


def kernel_fn(x, dim=-1):
    total, lost = torch.zeros_like(x[..., 0]), torch.zeros_like(x[..., 0])
    for column in x.unbind(-1):
        term = column + lost
        new = total + term
        lost = (new - total) - term
        total = new
    return total
