"""Calls the judge's own reference. Killed by smoke: calls aten.(mm|bmm)|raised OpError"""

from pytest_autokernel.ops import SHIPPED, load_op, op_files

KERNEL_TYPE = "matmul"


def kernel_fn(A, B):
    op = load_op("matmul", op_files(SHIPPED))
    return op.reference(A.float(), B.float()).to(A.dtype)
