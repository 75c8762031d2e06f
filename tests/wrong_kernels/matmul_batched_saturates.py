"""Holds results at the largest finite number where there is a batch.

Hybrid. Killed by shape_sweep|numerical_stability: infinity
"""

import torch

KERNEL_TYPE = "matmul"
SUPPORTS = {"batched"}


def kernel_fn(A, B):
    C = A.float() @ B.float()
    if A.dim() == 3:
        top = torch.finfo(A.dtype).max
        C = C.clamp(-top, top)
    return C.to(A.dtype)
