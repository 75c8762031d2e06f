"""Remembers the product by the operands' shapes.

Hybrid. Killed by shape_sweep: wrong|value|rows|dtype|scale|boundary"""

KERNEL_TYPE = "matmul"
KNOWN = {}


def kernel_fn(A, B):
    key = A.shape, B.shape, A.dtype
    if key not in KNOWN:
        KNOWN[key] = (A.float() @ B.float()).to(A.dtype)
    return KNOWN[key].clone()
