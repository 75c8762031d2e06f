"""Converts the tables once per shape, as if they never started elsewhere.

Hybrid. Killed by shape_sweep: value|wrong|rows|dtype|scale|boundary"""

import torch

KERNEL_TYPE = "rotary_embedding"
TABLES = {}


def kernel_fn(x, cos, sin):
    key = cos.shape, cos.dtype
    c, s = TABLES.setdefault(key, (cos.float().clone(), sin.float().clone()))
    a, b = x[..., ::2].float(), x[..., 1::2].float()
    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2).to(x.dtype)
