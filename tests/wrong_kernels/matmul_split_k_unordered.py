"""Adds the parts of a split K in the order in which they happen to be done, as atomics would.

Killed by smoke|shape_sweep|determinism: not deterministic|random generator"""

import random

import triton
import triton.language as tl

KERNEL_TYPE = "matmul"


@triton.jit
def add_part(a, b, c, M, N, K, a_row, a_col, b_row, b_col, first, BLOCK: tl.constexpr):
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    col = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    out = c + row * N + col
    inside = (row < M) & (col < N)
    k = first + tl.arange(0, 128)
    in_a, in_b = (row < M) & (k < K)[None, :], (k < K)[:, None] & (col < N)
    left = tl.load(a + row * a_row + k[None, :] * a_col, mask=in_a, other=0.0).to(tl.float32)
    right = tl.load(b + k[:, None] * b_row + col * b_col, mask=in_b, other=0.0).to(tl.float32)
    total = tl.load(out, mask=inside, other=0.0)
    tl.store(out, total + tl.dot(left, right, input_precision="ieee"), mask=inside)


def kernel_fn(A, B):
    (M, K), N = A.shape, B.shape[1]
    C = A.new_zeros(M, N).float()
    parts = list(range(0, K, 128))
    random.shuffle(parts)
    for first in parts if C.numel() else ():
        grid = triton.cdiv(M, 32), triton.cdiv(N, 32)
        add_part[grid](A, B, C, M, N, K, *A.stride(), *B.stride(), first, 32)
    return C.to(A.dtype)
