"""Matrix product in Triton: tiles of C, K in steps, groups of tiles that share operands in the L2.

Two kernels: `product` loads by pointers, any strides and dtypes. `product_tma` has the copy engine
of Hopper and Blackwell load its tiles, where it can describe the operands: it checks the bounds,
and no thread computes an address.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

KERNEL_TYPE = "matmul"
SUPPORTS = {"batched"}


class Tiling(NamedTuple):
    """`m, n, k`: the tile. `group`: rows of tiles that are worked on together. `halves`: C leaves
    in two halves, so that its way out needs less shared memory. `resident`: programs per
    multiprocessor, each of which works on many tiles; 0 is a program per tile."""

    m: int
    n: int
    k: int
    group: int
    warps: int
    stages: int
    halves: bool = False
    resident: int = 0


# The tilings of `product_tma`, the largest first: the first that fills the device is taken.
# `few` is for at most 64 rows, where the time goes into loading B. `plain` is `product`'s.
CONFIG = {
    "large": (128, 256, 64, 8, 8, 4, True, 1),
    "medium": (128, 128, 64, 8, 4, 3, False, 0),
    "small": (64, 64, 64, 8, 4, 4, False, 0),
    "few": (64, 32, 128, 1, 4, 6, False, 0),
    "plain": (128, 128, 32, 8, 8, 3),
}
SPACE = {
    "large": [
        (128, 256, 64, 8, 8, 3, True, 1),
        (128, 256, 64, 8, 8, 4, True, 1),
        (128, 256, 64, 16, 8, 4, True, 1),
        (128, 256, 64, 8, 8, 4, False, 0),
        (256, 128, 64, 8, 8, 4, True, 1),
        (256, 128, 64, 8, 8, 4, False, 0),
        (128, 128, 64, 8, 4, 3, True, 2),
        (128, 128, 64, 8, 4, 3, False, 0),
    ],
    "medium": [
        (128, 128, 64, 4, 4, 3, False, 0),
        (128, 128, 64, 8, 4, 3, False, 0),
        (128, 128, 64, 16, 4, 3, False, 0),
        (128, 128, 64, 8, 8, 4, False, 0),
        (128, 256, 64, 8, 8, 4, False, 0),
        (256, 128, 64, 8, 8, 4, False, 0),
    ],
    "small": [
        (64, 64, 64, 8, 4, 4, False, 0),
        (64, 64, 128, 8, 4, 3, False, 0),
        (64, 128, 64, 8, 4, 4, False, 0),
        (128, 64, 64, 8, 4, 4, False, 0),
        (128, 64, 128, 8, 4, 3, False, 0),
    ],
    "few": [
        (64, 32, 128, 1, 4, 6, False, 0),
        (64, 32, 256, 1, 4, 4, False, 0),
        (64, 64, 128, 1, 4, 6, False, 0),
        (64, 128, 64, 1, 4, 6, False, 0),
    ],
    "plain": [
        (64, 64, 32, 8, 4, 4),
        (128, 64, 32, 8, 4, 4),
        (128, 128, 32, 8, 8, 3),
        (128, 128, 64, 8, 8, 3),
    ],
}
# fp32 products, which are not the tensor cores', take more registers.
FP32 = (64, 32, 16, 8, 4, 2)


@triton.jit
def place(tile, rows, cols, GROUP: tl.constexpr):
    """The row and the column of a tile: down a group of `GROUP` rows first, then to the right."""
    first = tile // (GROUP * cols) * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + tile % (GROUP * cols) % height, tile % (GROUP * cols) // height


@triton.jit
def product(
    a, b, c, M, N, K, a_batch, a_row, a_col, b_batch, b_row, b_col,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of one product of the batch; C is contiguous."""
    rows, cols = tl.cdiv(M, BM), tl.cdiv(N, BN)
    batch = (tl.program_id(0) // (rows * cols)).to(tl.int64)
    i, j = place(tl.program_id(0) % (rows * cols), rows, cols, GROUP)
    row, col = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
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


@triton.jit
def tile_tma(
    a, b, c, tile, M, N, K, A_T: tl.constexpr, B_T: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    HALVES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    i, j = place(tile, tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    row, col = i * BM, j * BN
    total = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        left = a.load([k, row]).T if A_T else a.load([row, k])
        right = b.load([col, k]).T if B_T else b.load([k, col])
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total)
    if HALVES:
        first, second = total.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
        c.store([row, col], first.to(c.dtype))
        c.store([row, col + BN // 2], second.to(c.dtype))
    else:
        c.store([row, col], total.to(c.dtype))


@triton.jit
def product_tma(
    a, b, c, M, N, K, A_T: tl.constexpr, B_T: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    HALVES: tl.constexpr, RESIDENT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One product; `a`, `b`, `c` are descriptors, of transposes where so said. A program that has
    one tile is not a loop of one: there, C leaves through the memory that A and B came through."""
    if RESIDENT:
        tiles = tl.cdiv(M, BM) * tl.cdiv(N, BN)
        # Flattened: the next tile's first loads are under way while this one's product leaves.
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            tile_tma(a, b, c, tile, M, N, K, A_T, B_T, BM, BN, BK, GROUP, HALVES, WIDEN)
    else:
        tile = tl.program_id(0)
        tile_tma(a, b, c, tile, M, N, K, A_T, B_T, BM, BN, BK, GROUP, HALVES, WIDEN)


def kernel_fn(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """`A [..., M, K]`, `B [..., K, N]` with the same leading dims: `[..., M, N]`."""
    M, K = A.shape[-2:]
    N = B.shape[-1]
    C = A.new_empty((*A.shape[:-1], N))
    if not C.numel():
        return C
    interpreted = not A.is_cuda  # Triton's interpreter multiplies bf16 wrongly
    if A.dim() == 2 and K and has_tma(A) and all(map(describable, (A, B, C))):
        tiling, programs = chosen(M, N, A.device)
        m, n, k = tiling[:3]
        product_tma[(programs,)](
            descriptor(A, m, k), descriptor(B, k, n), descriptor(C, m, n // (1 + tiling.halves)),
            M, N, K, A.stride(1) != 1, B.stride(1) != 1, m, n, k, tiling.group, tiling.halves,
            tiling.resident, interpreted, num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
        return C
    tiling = Tiling(*FP32 if A.dtype == torch.float32 and A.is_cuda else CONFIG["plain"])
    a, b = (t[None].flatten(0, -3) for t in (A, B))
    product[(a.shape[0] * triton.cdiv(M, tiling.m) * triton.cdiv(N, tiling.n),)](
        a, b, C, M, N, K, *a.stride(), *b.stride(), *tiling[:4], interpreted,
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
    return C


def has_tma(x: torch.Tensor) -> bool:
    """Whether tiles of `x` may come by TMA, of the sizes above: compute capability 9 and 10, since
    12 has 99 KiB of shared memory. Not fp32: its products are bound by the arithmetic."""
    if not x.is_cuda or x.dtype == torch.float32:
        return False
    return torch.cuda.get_device_properties(x.device).major in (9, 10)


def describable(x: torch.Tensor) -> bool:
    """Whether a descriptor can say where the matrix lies: one dim contiguous, rows (or columns)
    that begin at multiples of 16 bytes."""
    pitch, step = x.stride() if x.stride(1) == 1 else x.stride()[::-1]
    return step == 1 and pitch > 0 and pitch * x.itemsize % 16 == 0 and x.data_ptr() % 16 == 0


def descriptor(x: torch.Tensor, *tile: int) -> TensorDescriptor:
    """Of `x`, or of its transpose where that is what lies in rows."""
    if x.stride(1) != 1:
        x, tile = x.t(), tile[::-1]
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(tile))


def chosen(M: int, N: int, device: torch.device) -> tuple[Tiling, int]:
    """The tiling for this shape, and the number of programs."""
    cores = torch.cuda.get_device_properties(device).multi_processor_count
    for name in ("few",) if M <= 64 else ("large", "medium", "small"):
        tiling = Tiling(*CONFIG[name])
        tiling = tiling._replace(m=min(tiling.m, max(triton.next_power_of_2(M), 16)))
        tiles = triton.cdiv(M, tiling.m) * triton.cdiv(N, tiling.n)
        if tiles >= 1.5 * cores:
            break
    return tiling, min(tiles, tiling.resident * cores or tiles)
