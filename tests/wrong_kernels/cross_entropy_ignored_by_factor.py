"""Multiplies ignored losses by 0, infinite ones too.

Hybrid. Killed by shape_sweep|numerical_stability: NaN
"""

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index", "nd"}


def kernel_fn(logits, targets):
    counted = targets != -100
    x = logits.float()
    losses = x.logsumexp(-1) - x.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return ((losses * counted).sum() / counted.sum()).to(logits.dtype)
