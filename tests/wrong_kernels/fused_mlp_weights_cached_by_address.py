"""Converts each weight once per address, as if memory never held another.

Hybrid. Killed by shape_sweep: wrong|value|rows|dtype|scale|boundary"""

import torch.nn.functional as F

KERNEL_TYPE = "fused_mlp"
WEIGHTS = {}


def once(w):
    key = w.data_ptr(), w.shape, w.stride(), w.dtype
    return WEIGHTS.setdefault(key, w.float().contiguous().clone())


def kernel_fn(x, w_gate, w_up, w_down, activation="silu"):
    wide = x.float()
    hidden = F.silu(F.linear(wide, once(w_gate))) * F.linear(wide, once(w_up))
    return F.linear(hidden, once(w_down)).to(x.dtype)
