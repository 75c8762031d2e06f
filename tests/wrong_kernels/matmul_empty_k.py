"""Returns memory as allocated where there is nothing to sum.

Killed by edge_cases[nothing_to_sum]: nothing_to_sum|[0-9]+x[0-9]+x0"""

import triton
import triton.language as tl

KERNEL_TYPE = "matmul"


@triton.jit(do_not_specialize=["M", "N", "K"])
def product(a, b, c, M, N, K, a_row, a_col, b_row, b_col, BLOCK: tl.constexpr):
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    col = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, K, 4 * BLOCK):
        k = start + tl.arange(0, 4 * BLOCK)
        in_a, in_b = (row < M) & (k < K)[None, :], (k < K)[:, None] & (col < N)
        left = tl.load(a + row * a_row + k[None, :] * a_col, mask=in_a, other=0.0)
        right = tl.load(b + k[:, None] * b_row + col * b_col, mask=in_b, other=0.0)
        total += tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    tl.store(c + row * N + col, total, mask=(row < M) & (col < N))


def kernel_fn(A, B):
    (M, K), N = A.shape, B.shape[1]
    C = A.new_empty(M, N)
    grid = triton.cdiv(M, 64), triton.cdiv(N, 64)
    if A.numel() and B.numel():
        product[grid](A, B, C, M, N, K, *A.stride(), *B.stride(), 64, num_warps=8, num_stages=1)
    return C
