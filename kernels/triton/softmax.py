"""Softmax in Triton: rows held whole while they are short, in two passes when they are long.

The starter: every load is widened to fp32, and nothing is tuned for any one shape.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim", "nd"}

# resident: longest row held whole; tile: elements per program at least, by taking several rows;
# block: elements per step of a long row, in `stages` steps at once; per_thread: elements.
CONFIG = {"resident": 8192, "tile": 1024, "block": 4096, "stages": 1, "per_thread": 32}
SPACE = {
    "resident": [4096, 8192, 16384, 32768],
    "tile": [1, 1024, 2048, 4096, 8192],
    "block": [1024, 2048, 4096, 8192, 16384],
    "stages": [1, 2, 3, 4],
    "per_thread": [8, 16, 32, 64],
    "rules": ["tile <= resident", "resident <= 1024 * per_thread", "block <= 512 * per_thread"],
}


@triton.jit
def softmax_rows(x, y, rows, cols, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = row.to(tl.int64)[:, None] * cols + col[None, :]
    v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    v = tl.where((col < cols)[None, :], v, -float("inf"))
    e = tl.exp(v - tl.max(v, 1)[:, None])
    tl.store(y + offsets, e / tl.sum(e, 1)[:, None], mask=inside)


@triton.jit
def softmax_long(x, y, cols, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """One row per program. Each lane keeps its own maximum and sum; they are joined once."""
    x += tl.program_id(0).to(tl.int64) * cols
    y += tl.program_id(0).to(tl.int64) * cols
    lane = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, cols, BLOCK, num_stages=STAGES):
        col = start + lane
        v = tl.load(x + col, mask=col < cols, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, v)
        base = tl.where(higher == -float("inf"), 0.0, higher)  # -inf minus -inf would be NaN
        total = total * tl.exp(top - base) + tl.exp(v - base)
        top = higher
    row_top = tl.max(top, 0)
    row_total = tl.sum(total * tl.exp(top - row_top), 0)
    for start in tl.range(0, cols, BLOCK, num_stages=STAGES):
        col = start + lane
        v = tl.load(x + col, mask=col < cols, other=-float("inf")).to(tl.float32)
        tl.store(y + col, tl.exp(v - row_top) / row_total, mask=col < cols)


def warps(elements: int) -> int:
    """Warps for a program of so many elements (a power of two)."""
    return min(max(elements // (32 * CONFIG["per_thread"]), 1), 32)


def kernel_fn(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax of `x` over `dim`; same shape and dtype, contiguous."""
    if dim not in (-1, x.dim() - 1):
        return kernel_fn(x.movedim(dim, -1)).movedim(-1, dim).contiguous()
    x = x.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    cols = x.shape[-1]
    rows = x.numel() // cols
    if cols > CONFIG["resident"]:
        block = CONFIG["block"]
        softmax_long[(rows,)](x, y, cols, block, CONFIG["stages"], num_warps=warps(block))
        return y
    block = triton.next_power_of_2(cols)
    many = max(CONFIG["tile"] // block, 1)
    grid = (triton.cdiv(rows, many),)
    softmax_rows[grid](x, y, rows, cols, many, block, num_warps=warps(many * block))
    return y
