"""Gated MLP in Triton: one kernel for both projections and the gate, one for the way down.

The hidden numbers go through memory in x's dtype. Each kernel is there twice: by pointers, for all
inputs, and by the copy engine of Hopper and Blackwell (TMA), which fetches whole tiles, checks
their bounds, and needs rows that begin at multiples of 16 bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

KERNEL_TYPE = "fused_mlp"
SUPPORTS = {"gelu", "relu2"}


class Tiling(NamedTuple):
    """`m, n, k`: the tile. `group`: rows of tiles that are worked on together, for the L2's sake.
    `resident`: programs per multiprocessor, each of which works on many tiles; 0 is a program per
    tile."""

    m: int
    n: int
    k: int
    group: int
    warps: int
    stages: int
    resident: int = 0


# By TMA, for the gated projections and for the one down: the first in this order that fills the
# device is taken, and `few` for at most 64 rows, where the time goes into loading weights.
CONFIG = {
    "gated_large": (128, 64, 64, 8, 4, 3, 2),
    "gated_small": (64, 64, 64, 8, 4, 4, 0),
    "gated_few": (64, 32, 256, 1, 4, 3, 0),
    "down_large": (128, 256, 64, 8, 8, 3, 1),
    "down_medium": (128, 128, 64, 16, 4, 3, 0),
    "down_small": (64, 64, 64, 8, 4, 4, 0),
    "down_few": (64, 32, 256, 1, 4, 4, 0),
    "plain": (64, 64, 32, 8, 4, 3),
}
SPACE = {
    "gated_large": [
        (128, 128, 64, 8, 8, 3, 0),
        (128, 128, 64, 8, 8, 3, 1),
        (128, 128, 64, 8, 8, 4, 0),
        (128, 128, 64, 16, 8, 4, 0),
        (128, 64, 64, 8, 4, 3, 0),
        (128, 64, 64, 8, 4, 3, 2),
        (64, 128, 64, 8, 4, 2, 0),
        (256, 64, 64, 8, 8, 4, 0),
    ],
    "gated_small": [
        (64, 32, 64, 8, 4, 5, 0),
        (64, 64, 64, 8, 4, 3, 0),
        (64, 64, 64, 8, 4, 4, 0),
        (64, 128, 64, 8, 4, 3, 0),
        (128, 64, 64, 8, 4, 4, 0),
    ],
    "gated_few": [
        (64, 32, 128, 1, 4, 5, 0),
        (64, 32, 256, 1, 4, 3, 0),
        (64, 64, 64, 1, 4, 6, 0),
        (64, 64, 128, 1, 4, 4, 0),
    ],
    "down_large": [
        (128, 128, 64, 16, 4, 3, 0),
        (128, 256, 64, 8, 8, 3, 1),
        (128, 256, 64, 8, 8, 4, 0),
        (256, 128, 64, 8, 8, 4, 0),
    ],
    "down_medium": [
        (64, 128, 64, 8, 4, 4, 0),
        (128, 64, 64, 8, 4, 4, 0),
        (128, 128, 64, 8, 4, 3, 0),
        (128, 128, 64, 16, 4, 3, 0),
        (128, 128, 64, 8, 8, 4, 0),
    ],
    "down_small": [
        (64, 32, 128, 8, 4, 5, 0),
        (64, 64, 64, 8, 4, 4, 0),
        (64, 64, 128, 8, 4, 3, 0),
        (64, 128, 64, 8, 4, 4, 0),
        (128, 64, 64, 8, 4, 4, 0),
    ],
    "down_few": [
        (64, 32, 128, 1, 4, 6, 0),
        (64, 32, 256, 1, 4, 4, 0),
        (64, 32, 512, 1, 4, 2, 0),
        (64, 64, 128, 1, 4, 6, 0),
    ],
    "plain": [(64, 64, 32, 8, 4, 3), (128, 64, 32, 8, 8, 3)],
}
# On a GPU, where fp32 products take more registers than the tensor cores' do.
FP32 = (32, 32, 16, 8, 4, 2)


@triton.jit
def place(tile, M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """A tile's first row and column: down a group of `GROUP` tiles first, then to the right, such
    that neighbours share operands."""
    rows, cols = tl.cdiv(M, BM), tl.cdiv(N, BN)
    first = tile // (GROUP * cols) * GROUP
    height = tl.minimum(rows - first, GROUP)
    return (first + tile % (GROUP * cols) % height) * BM, tile % (GROUP * cols) // height * BN


@triton.jit
def load(
    source, first_row, first_col, M, N,
    ROWS: tl.constexpr, COLS: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of a contiguous `[M, N]`, zero outside; in fp32 where the dot needs it."""
    if TMA:
        tile = source.load([first_row, first_col])
    else:
        row, col = first_row + tl.arange(0, ROWS), first_col + tl.arange(0, COLS)
        inside = (row < M)[:, None] & (col < N)[None, :]
        at = source + row.to(tl.int64)[:, None] * N + col[None, :]
        tile = tl.load(at, mask=inside, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store(
    target, tile, first_row, first_col, M, N,
    ROWS: tl.constexpr, COLS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    if TMA:
        target.store([first_row, first_col], tile.to(target.dtype))
    else:
        row, col = first_row + tl.arange(0, ROWS), first_col + tl.arange(0, COLS)
        inside = (row < M)[:, None] & (col < N)[None, :]
        tl.store(target + row.to(tl.int64)[:, None] * N + col[None, :], tile, mask=inside)


@triton.jit
def gated_tile(
    tile, x, w_gate, w_up, hidden, M, N, K, ACTIVATION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    row, col = place(tile, M, N, BM, BN, GROUP)
    gate = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        left = load(x, row, k, M, K, BM, BK, TMA, WIDEN)
        right = load(w_gate, col, k, N, K, BN, BK, TMA, WIDEN).T
        gate = tl.dot(left, right, gate, input_precision="ieee")
        right = load(w_up, col, k, N, K, BN, BK, TMA, WIDEN).T
        up = tl.dot(left, right, up, input_precision="ieee")
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    else:
        gate = tl.maximum(gate, 0.0) * tl.maximum(gate, 0.0)
    store(hidden, gate * up, row, col, M, N, BM, BN, TMA)


@triton.jit
def linear_tile(
    tile, x, w, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    row, col = place(tile, M, N, BM, BN, GROUP)
    total = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        left = load(x, row, k, M, K, BM, BK, TMA, WIDEN)
        right = load(w, col, k, N, K, BN, BK, TMA, WIDEN).T
        total = tl.dot(left, right, total, input_precision="ieee")
    store(y, total, row, col, M, N, BM, BN, TMA)


# A program of one tile is no loop of one: there, the result leaves through the shared memory that
# the operands came through. Compiled once for all numbers of rows.
@triton.jit(do_not_specialize=["M"])
def gated(
    x, w_gate, w_up, hidden, M, N, K, ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, GROUP: tl.constexpr, RESIDENT: tl.constexpr, TMA: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    if RESIDENT:
        for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0)):
            gated_tile(tile, x, w_gate, w_up, hidden, M, N, K, ACTIVATION, BM, BN, BK, GROUP, TMA,
                       WIDEN)  # fmt: skip
    else:
        tile = tl.program_id(0)
        gated_tile(
            tile, x, w_gate, w_up, hidden, M, N, K, ACTIVATION, BM, BN, BK, GROUP, TMA, WIDEN
        )


@triton.jit(do_not_specialize=["M"])
def linear(
    x, w, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    RESIDENT: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    if RESIDENT:
        for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0)):
            linear_tile(tile, x, w, y, M, N, K, BM, BN, BK, GROUP, TMA, WIDEN)
    else:
        tile = tl.program_id(0)
        linear_tile(tile, x, w, y, M, N, K, BM, BN, BK, GROUP, TMA, WIDEN)


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
    y = x.new_empty(batch, dim)
    if not y.numel():
        return y
    # Triton's interpreter truncates to bf16 and multiplies it wrongly: there, all is in fp32.
    hidden = x.new_empty(batch, width, dtype=x.dtype if x.is_cuda else torch.float32)
    tma = has_tma(x) and all(map(describable, (x, w_gate, w_up, w_down, hidden, y)))
    launch(gated, "gated", tma, (x, w_gate, w_up, hidden), (batch, width, dim), activation)
    launch(linear, "down", tma, (hidden, w_down, y), (batch, dim, width))
    return y


def launch(
    kernel: triton.JITFunction,
    name: str,
    tma: bool,
    tensors: tuple[torch.Tensor, ...],
    sizes: tuple[int, int, int],
    *options: str,
) -> None:
    """`tensors`: `[M, K]`, one or more `[N, K]`, and `[M, N]`, the result."""
    x, *weights, _ = tensors
    tiling, programs = chosen(name, tma, sizes, x)
    m, n, k = tiling[:3]
    operands = tensors
    if tma:
        tiles = ([m, k], *([n, k] for _ in weights), [m, n])
        operands = tuple(
            TensorDescriptor(t, list(t.shape), list(t.stride()), tile)
            for t, tile in zip(tensors, tiles, strict=True)
        )
    kernel[(programs,)](
        *operands, *sizes, *options, m, n, k, tiling.group, tiling.resident, tma,
        WIDEN=not x.is_cuda, num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip


def chosen(
    name: str, tma: bool, sizes: tuple[int, int, int], x: torch.Tensor
) -> tuple[Tiling, int]:
    """The tiling for these sizes, and the number of programs."""
    M, N, _ = sizes
    if not tma:
        tiling = Tiling(*FP32 if x.dtype == torch.float32 and x.is_cuda else CONFIG["plain"])
        return tiling, triton.cdiv(M, tiling.m) * triton.cdiv(N, tiling.n)
    cores = torch.cuda.get_device_properties(x.device).multi_processor_count
    for bucket in (b for b in CONFIG if b.startswith(name) and b.endswith("few") == (M <= 64)):
        tiling = Tiling(*CONFIG[bucket])
        tiling = tiling._replace(m=min(tiling.m, max(triton.next_power_of_2(M), 16)))
        tiles = triton.cdiv(M, tiling.m) * triton.cdiv(N, tiling.n)
        if tiles >= cores:
            break
    return tiling, min(tiles, tiling.resident * cores or tiles)


def has_tma(x: torch.Tensor) -> bool:
    """Whether tiles of `x` may come by TMA, of the sizes above: compute capability 9 and 10, since
    12 has 99 KiB of shared memory. Not fp32: its products are bound by the arithmetic."""
    if not x.is_cuda or x.dtype == torch.float32:
        return False
    return torch.cuda.get_device_properties(x.device).major in (9, 10)


def describable(x: torch.Tensor) -> bool:
    """Whether a descriptor can say where the contiguous matrix lies."""
    return x.numel() > 0 and x.stride(0) * x.itemsize % 16 == 0 and x.data_ptr() % 16 == 0
