"""Attention in Triton: a block of queries per program, over blocks of keys.

Where the copy engine of Hopper and Blackwell (TMA) can describe the operands it loads the blocks,
from where they lie; else they are loaded by pointers, from contiguous copies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"gqa", "cross", "head_dim"}


class Tiling(NamedTuple):
    """`m`: queries per program; `n`: keys per step, of which `stages` are under way. With 1 a
    program waits for its keys while others work, of which more fit into shared memory."""

    m: int
    n: int
    warps: int
    stages: int


# By head size (up to 64, 128, 256), by TMA; and by pointers, where heads above 128 get half.
CONFIG = {
    "64": (64, 128, 4, 2),
    "128": (64, 128, 4, 1),
    "256": (128, 64, 8, 2),
    "plain": (64, 64, 4, 2),
}
SPACE = {
    "64": [
        (64, 64, 4, 2),
        (64, 128, 4, 1),
        (64, 128, 4, 2),
        (64, 128, 4, 3),
        (128, 64, 4, 2),
        (128, 64, 4, 3),
        (128, 128, 4, 3),
        (128, 128, 8, 2),
        (128, 128, 8, 3),
    ],
    "128": [
        (64, 64, 4, 1),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (64, 128, 4, 1),
        (64, 128, 4, 2),
        (128, 32, 4, 3),
        (128, 64, 4, 2),
        (128, 64, 8, 3),
        (128, 128, 8, 2),
        (128, 128, 8, 3),
    ],
    "256": [(64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 8, 3), (128, 64, 8, 2)],
    "plain": [(64, 32, 4, 2), (64, 64, 4, 2), (128, 32, 4, 2), (128, 64, 8, 2)],
}
# On a GPU, where fp32 products take more registers than the tensor cores' do.
FP32 = (32, 16, 8, 1)
LOG2E = 1.4426950408889634
# Keys and values that are worked on at once are to stay in the L2, of which this is a part.
L2_BYTES = 2**25


@triton.jit
def load(
    source, batch, head, first, HEADS, S, D,
    BLOCK: tl.constexpr, BD: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Rows of one head from the `first` on, zero outside; in fp32 where the dot needs it."""
    if TMA:
        tile = source.load([batch, head, first, 0]).reshape(BLOCK, BD)
    else:
        source += (batch.to(tl.int64) * HEADS + head) * S * D
        row, col = first + tl.arange(0, BLOCK), tl.arange(0, BD)
        inside = (row < S)[:, None] & (col < D)[None, :]
        tile = tl.load(source + row[:, None] * D + col[None, :], mask=inside, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store(
    target, tile, batch, head, first, HEADS, S, D,
    BLOCK: tl.constexpr, BD: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    if TMA:
        target.store([batch, head, first, 0], tile.to(target.dtype).reshape(1, 1, BLOCK, BD))
    else:
        target += (batch.to(tl.int64) * HEADS + head) * S * D
        row, col = first + tl.arange(0, BLOCK), tl.arange(0, BD)
        inside = (row < S)[:, None] & (col < D)[None, :]
        tl.store(target + row[:, None] * D + col[None, :], tile, mask=inside)


@triton.jit
def place(blocks, heads, B, H):
    """The batch element, head and block of queries of this program. Programs start in the order of
    their numbers: of `heads` heads at a time, whose keys and values fit into the L2, the last
    blocks first, which see the most keys where it is causal."""
    before = tl.program_id(0) // (blocks * heads) * heads
    width = tl.minimum(B * H - before, heads)
    within = tl.program_id(0) % (blocks * heads)
    head = before + within % width
    return head // H, head % H, blocks - 1 - within // width


@triton.jit
def seen(scores, start, first, SK, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """`scores` without those of keys that do not exist, or come after their query."""
    key = start + tl.arange(0, BN)
    inside = (key < SK)[None, :]
    if CAUSAL:
        inside = inside & (key[None, :] <= (first + tl.arange(0, BM))[:, None])
    return tl.where(inside, scores, -float("inf"))


# Compiled once for all lengths: what is aligned follows from D.
@triton.jit(do_not_specialize=["B", "H", "G", "SQ", "SK", "heads"])
def attend(
    q, k, v, y, B, H, G, SQ, SK, D, scale, heads, CAUSAL: tl.constexpr, POSITIVE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """`scale` holds log2(e): weights are powers of two. Every query sees key 0, so that a row's
    maximum is finite from the first block on. One loop, in which the last blocks alone are masked:
    of two the second would wait for its first keys."""
    batch, head, block = place(tl.cdiv(SQ, BM), heads, B, H)
    group, first = head // (H // G), block * BM
    queries = load(q, batch, head, first, H, SQ, D, BM, BD, TMA, WIDEN)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, BD], tl.float32)
    # The largest score is the largest when scaled only if the scale is positive; then the scaling
    # and the subtraction of the largest are one instruction.
    factor = scale if POSITIVE else 1.0
    end = tl.minimum(SK, first + BM) if CAUSAL else SK
    whole = (tl.minimum(end, first + 1) if CAUSAL else end) // BN * BN
    for start in tl.range(0, end, BN, num_stages=STAGES):
        keys = load(k, batch, group, start, G, SK, D, BN, BD, TMA, WIDEN)
        scores = tl.dot(queries, keys.T, input_precision="ieee")
        if not POSITIVE:
            scores = scores * scale
        if start >= whole:
            scores = seen(scores, start, first, SK, CAUSAL, BM, BN)
        higher = tl.maximum(top, tl.max(scores, 1) * factor)
        weights = tl.exp2(scores * factor - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        values = load(v, batch, group, start, G, SK, D, BN, BD, TMA, WIDEN)
        weights = weights.to(values.dtype)
        out = tl.dot(weights, values, out * shrink[:, None], input_precision="ieee")
        top = higher
    store(y, out / total[:, None], batch, head, first, H, SQ, D, BM, BD, TMA)


def kernel_fn(
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    causal: bool = True,
    sm_scale: float | None = None,
) -> torch.Tensor:
    """`Q [B, H, Sq, D]`, `K, V [B, G, Sk, D]` where G divides H: `[B, H, Sq, D]`."""
    B, H, SQ, D = Q.shape
    G, SK = K.shape[1:3]
    y = Q.new_empty(Q.shape)
    if not y.numel():
        return y
    scale = (D**-0.5 if sm_scale is None else sm_scale) * LOG2E
    width = max(triton.next_power_of_2(D), 16)
    tma = has_tma(Q) and all(map(describable, (Q, K, V, y)))
    if tma:
        name = "64" if width <= 64 else str(width)
        m, n, warps, stages = CONFIG[name]
        q, k, v, out = (
            TensorDescriptor(t, list(t.shape), list(t.stride()), [1, 1, rows, width])
            for t, rows in ((Q, m), (K, n), (V, n), (y, m))
        )
    else:
        q, k, v, out = Q.contiguous(), K.contiguous(), V.contiguous(), y
        of_fp32 = Q.dtype == torch.float32 and Q.is_cuda
        m, n, warps, stages = FP32 if of_fp32 else CONFIG["plain"]
        m, n = (max(size * 128 // max(width, 128), 16) for size in (m, n))
    heads = max(L2_BYTES // (2 * SK * D * Q.itemsize), 1) * (H // G)
    attend[(B * H * triton.cdiv(SQ, m),)](
        q, k, v, out, B, H, G, SQ, SK, D, scale, min(heads, B * H), causal, scale > 0,
        m, n, width, stages, tma,
        WIDEN=not Q.is_cuda,  # Triton's interpreter multiplies bf16 wrongly
        num_warps=warps,
    )  # fmt: skip
    return y


def has_tma(x: torch.Tensor) -> bool:
    """Whether blocks of `x` may come by TMA, of the sizes above: compute capability 9 and 10, since
    12 has 99 KiB of shared memory. Not fp32: its products are bound by the arithmetic."""
    if not x.is_cuda or x.dtype == torch.float32:
        return False
    return torch.cuda.get_device_properties(x.device).major in (9, 10)


def describable(x: torch.Tensor) -> bool:
    """Whether a descriptor can say where `x` lies: the last dim contiguous, all else at multiples
    of 16 bytes."""
    *pitches, step = x.stride()
    aligned = all(pitch > 0 and pitch * x.itemsize % 16 == 0 for pitch in pitches)
    return aligned and step == 1 and x.data_ptr() % 16 == 0
