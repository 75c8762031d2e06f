"""Loads whole steps of K, with no mask over the last one.

Killed by shape_sweep[drawn]: NaN|value|wrong|dtype|scale|boundary"""

import triton
import triton.language as tl

KERNEL_TYPE = "matmul"


@triton.jit(do_not_specialize=["M", "N", "K"])
def product(a, b, c, M, N, K, a_row, a_col, b_row, b_col, BLOCK: tl.constexpr, STEP: tl.constexpr):
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    col = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, K, STEP):
        k = start + tl.arange(0, STEP)
        left = tl.load(a + row * a_row + k[None, :] * a_col, mask=row < M, other=0.0)
        right = tl.load(b + k[:, None] * b_row + col * b_col, mask=col < N, other=0.0)
        total += tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    tl.store(c + row * N + col, total, mask=(row < M) & (col < N))


def kernel_fn(A, B):
    (M, K), N = A.shape, B.shape[1]
    C = A.new_empty(M, N)
    grid = triton.cdiv(M, 64), triton.cdiv(N, 64)
    if C.numel():
        product[grid](A, B, C, M, N, K, *A.stride(), *B.stride(), 64, 64, num_warps=8, num_stages=1)
    return C
