"""Lets torch multiply. Killed by smoke: calls aten.mm at matmul_calls_torch.py:7"""

KERNEL_TYPE = "matmul"


def kernel_fn(A, B):
    return A @ B
