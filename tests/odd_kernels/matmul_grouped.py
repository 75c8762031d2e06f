"""As in Triton's tutorial: tiles in groups, offsets that wrap, operands of tl.dot in their own
dtype, and sizes in a dataclass that is a default argument."""

from dataclasses import astuple, dataclass

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "matmul"


@dataclass(frozen=True)
class Tile:
    m: int = 64
    n: int = 64
    k: int = 64
    group: int = 4


@triton.jit
def multiply(
    a, b, c, M, N, K, a_row, a_col, b_row, b_col, c_row, c_col,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    rows, cols = tl.cdiv(M, BM), tl.cdiv(N, BN)
    first = tl.program_id(0) // (GROUP * cols) * GROUP
    size = min(rows - first, GROUP)
    within = tl.program_id(0) % (GROUP * cols)
    row = (first + within % size).to(tl.int64) * BM + tl.arange(0, BM)
    col = (within // size).to(tl.int64) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    left = a + (row % M)[:, None] * a_row + k[None, :] * a_col
    right = b + k[:, None] * b_row + (col % N)[None, :] * b_col
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        u = tl.load(left, mask=k[None, :] < K - start, other=0.0)
        v = tl.load(right, mask=k[:, None] < K - start, other=0.0)
        total = tl.dot(u, v, total, input_precision="ieee")
        left += BK * a_col
        right += BK * b_row
    to = c + row[:, None] * c_row + col[None, :] * c_col
    tl.store(to, total.to(c.dtype.element_ty), mask=(row < M)[:, None] & (col < N)[None, :])


def kernel_fn(A, B, tile=Tile()):
    (M, K), N = A.shape, B.shape[1]
    C = torch.zeros((M, N), dtype=A.dtype, device=A.device)
    if C.numel():
        grid = (triton.cdiv(M, tile.m) * triton.cdiv(N, tile.n),)
        strides = (*A.stride(), *B.stride(), *C.stride())
        multiply[grid](A, B, C, M, N, K, *strides, *astuple(tile))
    return C
