"""Splits a K of 8192 or more in two, and forgets the row where it keeps the first half.

Needs a GPU. Killed by shape_sweep: 8192 .*(value|wrong|rows|precision|dtype|scale|boundary)"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "matmul"


@triton.jit
def product(
    a, b, c, half, M, N, first, last, a_row, a_col, b_row, b_col, c_row, BLOCK: tl.constexpr
):
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    col = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(first, last, 4 * BLOCK):
        k = start + tl.arange(0, 4 * BLOCK)
        in_a, in_b = (row < M) & (k < last)[None, :], (k < last)[:, None] & (col < N)
        left = tl.load(a + row * a_row + k[None, :] * a_col, mask=in_a, other=0.0)
        right = tl.load(b + k[:, None] * b_row + col * b_col, mask=in_b, other=0.0)
        total += tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    total += tl.load(half + row * 0 + col, mask=col < N, other=0.0)
    tl.store(c + row * c_row + col, total, mask=(row < M) & (col < N))


def kernel_fn(A, B):
    (M, K), N = A.shape, B.shape[1]
    C = A.new_empty(M, N)
    grid = triton.cdiv(M, 16), triton.cdiv(N, 16)
    middle = K // 2 if K >= 1 << 13 else 0
    half, strides = A.new_zeros(N, dtype=torch.float32), (*A.stride(), *B.stride())
    if C.numel() and middle:
        product[grid](A, B, half, half, M, N, 0, middle, *strides, 0, 16)
    if C.numel():
        product[grid](A, B, C, half, M, N, middle, K, *strides, N, 16)
    return C
