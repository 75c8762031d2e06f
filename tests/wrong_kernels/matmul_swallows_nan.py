"""Takes NaN for 0.

Hybrid. Killed by shape_sweep[spoiled]: NaN
"""

import torch

KERNEL_TYPE = "matmul"
SUPPORTS = {"batched"}


def kernel_fn(A, B):
    return (A.float().nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf) @ B.float()).to(A.dtype)
