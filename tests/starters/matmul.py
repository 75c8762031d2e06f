"""Matrix product in Triton: one tile of C per program. What an optimiser may start from."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "matmul"

CONFIG = {"m": 64, "n": 64, "k": 32, "warps": 4, "stages": 2}
SPACE = {
    "m": [32, 64, 128],
    "n": [32, 64, 128],
    "k": [32, 64],
    "warps": [4, 8],
    "stages": [2, 3, 4],
    "rules": ["m * n <= 4096 * warps"],
}
# On a GPU, where fp32 products take more registers than the tensor cores' do.
FP32 = {"m": 64, "n": 32, "k": 16, "warps": 4, "stages": 2}


@triton.jit
def product(
    a, b, c, M, N, K, a_row, a_col, b_row, b_col,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    across = tl.program_id(0)
    down = tl.program_id(1)
    row = down.to(tl.int64) * BM + tl.arange(0, BM)
    col = across.to(tl.int64) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = (start + tl.arange(0, BK)).to(tl.int64)
        in_a = (row < M)[:, None] & (k < K)[None, :]
        in_b = (k < K)[:, None] & (col < N)[None, :]
        left = tl.load(a + row[:, None] * a_row + k[None, :] * a_col, mask=in_a, other=0.0)
        right = tl.load(b + k[:, None] * b_row + col[None, :] * b_col, mask=in_b, other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(
        c + row[:, None] * N + col[None, :], total, mask=(row < M)[:, None] & (col < N)[None, :]
    )


def kernel_fn(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """`A [M, K]`, `B [K, N]`: `[M, N]`."""
    (M, K), N = A.shape, B.shape[1]
    C = A.new_empty((M, N))
    if not C.numel():
        return C
    config = FP32 if A.dtype == torch.float32 and A.is_cuda else CONFIG
    grid = (triton.cdiv(N, config["n"]), triton.cdiv(M, config["m"]))
    product[grid](
        A, B, C, M, N, K, *A.stride(), *B.stride(), config["m"], config["n"], config["k"],
        WIDEN=not A.is_cuda,  # Triton's interpreter multiplies bf16 wrongly
        num_warps=config["warps"], num_stages=config["stages"],
    )  # fmt: skip
    return C
