"""Takes an activation's name and ignores it.

Hybrid. Killed by shape_sweep: (gelu|relu2): (value|wrong|rows|precision|dtype|scale|boundary)"""

import torch.nn.functional as F

KERNEL_TYPE = "fused_mlp"
SUPPORTS = {"gelu", "relu2"}


def kernel_fn(x, w_gate, w_up, w_down, activation="silu"):
    wide, gate, up, down = (t.float() for t in (x, w_gate, w_up, w_down))
    return F.linear(F.silu(F.linear(wide, gate)) * F.linear(wide, up), down).to(x.dtype)
