"""Returns the same memory at each call of a shape.

Hybrid. Killed by determinism: aliasing: the result shares memory with an earlier result"""

import torch

KERNEL_TYPE = "matmul"
BUFFERS = {}


def kernel_fn(A, B):
    key = A.shape[0], B.shape[1], A.dtype
    C = BUFFERS.setdefault(key, A.new_empty(A.shape[0], B.shape[1]))
    return torch.mm(A, B, out=C)
