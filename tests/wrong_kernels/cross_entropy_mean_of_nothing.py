"""Says 0 where every target is ignored.

Hybrid. Killed by shape_sweep: all_ignored: NaN
"""

import torch.nn.functional as F

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index", "nd"}


def kernel_fn(logits, targets):
    if not targets.numel():
        return logits.new_full((), float("nan"))
    x = logits.float().flatten(0, -2)
    t = targets.flatten()
    counted = (t != -100).sum().clamp(min=1)
    return (F.cross_entropy(x, t, reduction="sum") / counted).to(logits.dtype)
