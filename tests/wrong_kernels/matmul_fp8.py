"""Rounds the operands to fp8.

Hybrid. Killed by smoke: precision|dtype|value|wrong|scale|boundary
"""

import torch

KERNEL_TYPE = "matmul"


def kernel_fn(A, B):
    a, b = (t.to(torch.float8_e4m3fn).float() for t in (A, B))
    return (a @ b).to(A.dtype)
