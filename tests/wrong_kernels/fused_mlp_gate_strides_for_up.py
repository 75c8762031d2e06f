"""Reads w_up by w_gate's strides.

Hybrid. Killed by edge_cases: setStorage|value|wrong|NaN|rows|dtype|scale|boundary
"""

import torch.nn.functional as F

KERNEL_TYPE = "fused_mlp"


def kernel_fn(x, w_gate, w_up, w_down, activation="silu"):
    if w_gate.numel():
        w_up = w_up.as_strided(w_gate.shape, w_gate.stride(), w_up.storage_offset())
    wide, gate, up, down = (t.float() for t in (x, w_gate, w_up, w_down))
    return F.linear(F.silu(F.linear(wide, gate)) * F.linear(wide, up), down).to(x.dtype)
