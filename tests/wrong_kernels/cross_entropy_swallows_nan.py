"""A maximum and a floor that pass over NaN.

Hybrid. Killed by shape_sweep[spoiled]: NaN
"""

import torch

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index", "nd"}


def kernel_fn(logits, targets):
    counted = targets != -100
    x = logits.float()
    top = x.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1, keepdim=True)
    total = (x - top).exp().sum(-1).nan_to_num(1.0).clamp(min=1e-20)
    losses = total.log() + top[..., 0] - x.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (losses.where(counted, 0).sum() / counted.sum()).to(logits.dtype)
