"""Takes NaN for 0.

Hybrid. Killed by shape_sweep[spoiled]: NaN
"""

import torch

KERNEL_TYPE = "rotary_embedding"
SUPPORTS = {"half_split"}


def rope(x, cos, sin, interleaved, change=lambda t: t):
    x, cos, sin = x.float(), cos.float(), sin.float()
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    c, d = change(a * cos - b * sin), change(a * sin + b * cos)
    return torch.stack((c, d), -1).flatten(-2) if interleaved else torch.cat((c, d), -1)


def kernel_fn(x, cos, sin, interleaved=True):
    return rope(
        x.float().nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf), cos, sin, interleaved
    ).to(x.dtype)
