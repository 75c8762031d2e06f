"""Multiplies transposed tiles, right to left, and returns a column-major matrix."""

from __future__ import annotations

import triton
import triton.language as tl

KERNEL_TYPE = "matmul"


@triton.jit(do_not_specialize=["M", "N", "K"])
def product(a, b, c, M, N, K, a_row, a_col, b_row, b_col, SIDE: tl.constexpr, STEP: tl.constexpr):
    row = (tl.program_id(0) * SIDE + tl.arange(0, SIDE))[:, None]
    col = (tl.program_id(1) * SIDE + tl.arange(0, SIDE))[None, :]
    total = tl.zeros([SIDE, SIDE], tl.float32)
    for start in range((K - 1) // STEP * STEP, -STEP, -STEP):
        k = start + tl.arange(0, STEP)
        in_a, in_b = (row < M) & (k < K)[None, :], (k < K)[:, None] & (col < N)
        left = tl.load(a + row * a_row + k[None, :] * a_col, mask=in_a, other=0.0).to(tl.float32)
        right = tl.load(b + k[:, None] * b_row + col * b_col, mask=in_b, other=0.0).to(tl.float32)
        total += tl.dot(tl.trans(right), tl.trans(left), input_precision="ieee")
    inside = (row < M) & (col < N)
    tl.store(c + tl.trans(col) * M + tl.trans(row), total, mask=tl.trans(inside))


class kernel_fn:
    """Not a function: calling it makes no instance, but the product."""

    def __new__(cls, A, B):
        (M, K), N = A.shape, B.shape[1]
        C = A.new_zeros(N, M)
        if C.numel() and K:
            grid = triton.cdiv(M, 32), triton.cdiv(N, 32)
            product[grid](A, B, C, M, N, K, *A.stride(), *B.stride(), 32, 256, num_stages=1)
        return C.t()
