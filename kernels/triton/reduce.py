"""Row sums in Triton: rows held whole while they are short, in a loop when they are long.

The starter: every load is widened to fp32, and nothing is tuned for any one shape.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "reduce"
SUPPORTS = {"dim", "nd"}

# resident: longest row held whole; tile: elements per program at least, by taking several rows;
# block: elements per step of a long row, in `stages` steps at once; per_thread: elements.
CONFIG = {"resident": 8192, "tile": 1024, "block": 4096, "stages": 1, "per_thread": 16}
SPACE = {
    "resident": [2048, 4096, 8192, 16384, 32768],
    "tile": [1, 1024, 2048, 4096, 8192],
    "block": [1024, 2048, 4096, 8192, 16384],
    "stages": [1, 2, 3, 4],
    "per_thread": [8, 16, 32, 64],
    "rules": ["tile <= resident", "resident <= 1024 * per_thread", "block <= 1024 * per_thread"],
}


@triton.jit
def sum_rows(x, y, rows, cols, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = row.to(tl.int64)[:, None] * cols + col[None, :]
    v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row, tl.sum(v, 1), mask=row < rows)


@triton.jit
def sum_long(x, y, cols, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """One row per program. Each lane keeps its own sum; they are joined once."""
    row = tl.program_id(0)
    x += row.to(tl.int64) * cols
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, cols, BLOCK, num_stages=STAGES):
        col = start + lane
        total += tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32)
    tl.store(y + row, tl.sum(total, 0))


def warps(elements: int) -> int:
    """Warps for a program of so many elements (a power of two)."""
    return min(max(elements // (32 * CONFIG["per_thread"]), 1), 32)


def kernel_fn(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The sum of `x` over `dim`, in x's dtype."""
    x = x.movedim(dim, -1).contiguous()
    cols = x.shape[-1]
    if not x.numel():
        return x.new_zeros(x.shape[:-1])
    y = x.new_empty(x.shape[:-1])
    rows = y.numel()
    if cols > CONFIG["resident"]:
        block = CONFIG["block"]
        sum_long[(rows,)](x, y, cols, block, CONFIG["stages"], num_warps=warps(block))
        return y
    block = triton.next_power_of_2(cols)
    many = max(CONFIG["tile"] // block, 1)
    grid = (triton.cdiv(rows, many),)
    sum_rows[grid](x, y, rows, cols, many, block, num_warps=warps(many * block))
    return y
