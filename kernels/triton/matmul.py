"""Matrix product in Triton: one tile of C per program, K in steps. The starter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "matmul"
SUPPORTS = {"batched"}

# m, n, k: the tile; group: rows of tiles that are worked on together, for the sake of the L2.
CONFIG = {"m": 64, "n": 64, "k": 32, "group": 8, "warps": 4, "stages": 3}
SPACE = {
    "m": [32, 64, 128, 256],
    "n": [32, 64, 128, 256],
    "k": [32, 64, 128],
    "group": [1, 4, 8, 16],
    "warps": [4, 8],
    "stages": [2, 3, 4, 5],
    # At most 128 fp32 sums per thread, and 227 KiB of shared memory.
    "rules": ["m * n <= 4096 * warps", "stages * (m + n) * k * 2 <= 232448"],
}
# On a GPU, where fp32 products take more registers than the tensor cores' do.
FP32 = {"m": 64, "n": 32, "k": 16, "group": 8, "warps": 4, "stages": 2}


@triton.jit
def product(
    a, b, c, M, N, K, a_batch, a_row, a_col, b_batch, b_row, b_col,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of one product of the batch; C is contiguous."""
    rows, cols = tl.cdiv(M, BM), tl.cdiv(N, BN)
    batch = (tl.program_id(0) // (rows * cols)).to(tl.int64)
    tile = tl.program_id(0) % (rows * cols)
    first = tile // (GROUP * cols) * GROUP
    height = tl.minimum(rows - first, GROUP)
    row = (first + tile % (GROUP * cols) % height) * BM + tl.arange(0, BM)
    col = tile % (GROUP * cols) // height * BN + tl.arange(0, BN)
    a += batch * a_batch + row.to(tl.int64)[:, None] * a_row
    b += batch * b_batch + col.to(tl.int64)[None, :] * b_col

    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        in_a = (row < M)[:, None] & (k < K)[None, :]
        in_b = (k < K)[:, None] & (col < N)[None, :]
        left = tl.load(a + k.to(tl.int64)[None, :] * a_col, mask=in_a, other=0.0)
        right = tl.load(b + k.to(tl.int64)[:, None] * b_row, mask=in_b, other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")
    c += batch * M * N + row.to(tl.int64)[:, None] * N + col[None, :]
    tl.store(c, total, mask=(row < M)[:, None] & (col < N)[None, :])


def kernel_fn(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """`A [..., M, K]`, `B [..., K, N]` with the same leading dims: `[..., M, N]`."""
    M, K = A.shape[-2:]
    N = B.shape[-1]
    C = A.new_empty((*A.shape[:-1], N))
    if not C.numel():
        return C
    a, b = (t[None].flatten(0, -3) for t in (A, B))
    config = FP32 if A.dtype == torch.float32 and A.is_cuda else CONFIG
    grid = (a.shape[0] * triton.cdiv(M, config["m"]) * triton.cdiv(N, config["n"]),)
    product[grid](
        a, b, C, M, N, K, *a.stride(), *b.stride(),
        config["m"], config["n"], config["k"], config["group"],
        WIDEN=not A.is_cuda,  # Triton's interpreter multiplies bf16 wrongly
        num_warps=config["warps"], num_stages=config["stages"],
    )  # fmt: skip
    return C
