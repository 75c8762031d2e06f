"""Converts each weight once per shape, as if weights never changed.

Hybrid. Killed by shape_sweep: wrong|value|rows|dtype|scale|boundary"""

import torch.nn.functional as F

KERNEL_TYPE = "fused_mlp"
WEIGHTS = {}


def once(name, w):
    return WEIGHTS.setdefault((name, w.shape, w.dtype), w.float().contiguous())


def kernel_fn(x, w_gate, w_up, w_down, activation="silu"):
    wide = x.float()
    hidden = F.silu(F.linear(wide, once("gate", w_gate))) * F.linear(wide, once("up", w_up))
    return F.linear(hidden, once("down", w_down)).to(x.dtype)
