"""Gated MLP in Triton: one kernel for both projections and the gate, one for the way down.

The starter; the hidden numbers go through memory in x's dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "fused_mlp"
SUPPORTS = {"gelu", "relu2"}

# m, n, k: the tile of both kernels; group: rows of tiles worked on together, for the L2's sake.
CONFIG = {"m": 64, "n": 64, "k": 32, "group": 8, "warps": 4, "stages": 3}
SPACE = {
    "m": [32, 64, 128, 256],
    "n": [32, 64, 128],
    "k": [32, 64, 128],
    "group": [1, 4, 8, 16],
    "warps": [4, 8],
    "stages": [2, 3, 4],
    # At most 64 pairs of fp32 sums per thread, and 227 KiB of shared memory.
    "rules": ["m * n <= 2048 * warps", "stages * (m + 2 * n) * k * 2 <= 232448"],
}
# On a GPU, where fp32 products take more registers than the tensor cores' do.
FP32 = {"m": 32, "n": 32, "k": 16, "group": 8, "warps": 4, "stages": 2}


@triton.jit
def place(M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """This program's rows and columns, such that neighbours share rows of tiles."""
    rows, cols = tl.cdiv(M, BM), tl.cdiv(N, BN)
    tile = tl.program_id(0)
    first = tile // (GROUP * cols) * GROUP
    height = tl.minimum(rows - first, GROUP)
    row = (first + tile % (GROUP * cols) % height) * BM + tl.arange(0, BM)
    col = tile % (GROUP * cols) // height * BN + tl.arange(0, BN)
    return row, col


@triton.jit
def load(pointer, row, col, M, N, WIDEN: tl.constexpr):
    """A tile of a contiguous `[M, N]`, zero outside; in fp32 where the dot needs it."""
    inside = (row < M)[:, None] & (col < N)[None, :]
    tile = tl.load(pointer + row.to(tl.int64)[:, None] * N + col[None, :], mask=inside, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit(do_not_specialize=["M"])  # compiled once for all numbers of rows
def gated(
    x, w_gate, w_up, hidden, M, N, K, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    row, col = place(M, N, BM, BN, GROUP)
    gate = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        left = load(x, row, k, M, K, WIDEN)
        gate = tl.dot(left, load(w_gate, col, k, N, K, WIDEN).T, gate, input_precision="ieee")
        up = tl.dot(left, load(w_up, col, k, N, K, WIDEN).T, up, input_precision="ieee")
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    else:
        gate = tl.maximum(gate, 0.0) * tl.maximum(gate, 0.0)
    inside = (row < M)[:, None] & (col < N)[None, :]
    tl.store(hidden + row.to(tl.int64)[:, None] * N + col[None, :], gate * up, mask=inside)


@triton.jit(do_not_specialize=["M"])  # compiled once for all numbers of rows
def linear(
    x, w, y, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    row, col = place(M, N, BM, BN, GROUP)
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        left, right = load(x, row, k, M, K, WIDEN), load(w, col, k, N, K, WIDEN)
        total = tl.dot(left, right.T, total, input_precision="ieee")
    inside = (row < M)[:, None] & (col < N)[None, :]
    tl.store(y + row.to(tl.int64)[:, None] * N + col[None, :], total, mask=inside)


def kernel_fn(
    x: torch.Tensor,
    w_gate: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
    activation: str = "silu",
) -> torch.Tensor:
    """`x [batch, dim]`, `w_gate, w_up [hidden, dim]`, `w_down [dim, hidden]`: `[batch, dim]`."""
    if activation not in ("silu", "gelu", "relu2"):
        raise ValueError(f"expected activation silu, gelu or relu2, got {activation=}")
    x, w_gate, w_up, w_down = (t.contiguous() for t in (x, w_gate, w_up, w_down))
    (batch, dim), width = x.shape, w_gate.shape[0]
    y = torch.empty_like(x)
    if not y.numel():
        return y
    # Triton's interpreter truncates to bf16 and multiplies it wrongly: there, all is in fp32.
    interpreted = not x.is_cuda
    hidden = x.new_empty(batch, width, dtype=torch.float32 if interpreted else x.dtype)
    config = FP32 if x.dtype == torch.float32 and x.is_cuda else CONFIG
    m, n = config["m"], config["n"]
    tiles = (m, n, config["k"], config["group"], interpreted)
    options = {"num_warps": config["warps"], "num_stages": config["stages"]}
    gated[(triton.cdiv(batch, m) * triton.cdiv(width, n),)](
        x, w_gate, w_up, hidden, batch, width, dim, activation, *tiles, **options
    )
    linear[(triton.cdiv(batch, m) * triton.cdiv(dim, n),)](
        hidden, w_down, y, batch, dim, width, *tiles, **options
    )
    return y
