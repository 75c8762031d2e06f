"""LayerNorm in Triton: rows held whole while they are short, in three passes when they are long.

The starter: every load is widened to fp32, and nothing is tuned for any one shape.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "layernorm"
SUPPORTS = {"nd"}

# resident: longest row held whole; tile: elements per program at least, by taking several rows;
# block: elements per step of a long row, in `stages` steps at once; per_thread: elements.
CONFIG = {"resident": 8192, "tile": 1024, "block": 4096, "stages": 1, "per_thread": 16}
SPACE = {
    "resident": [4096, 8192, 16384, 32768],
    "tile": [1, 1024, 2048, 4096, 8192],
    "block": [1024, 2048, 4096, 8192, 16384],
    "stages": [1, 2, 3, 4],
    "per_thread": [8, 16, 32, 64],
    "rules": ["tile <= resident", "resident <= 1024 * per_thread", "block <= 512 * per_thread"],
}


@triton.jit
def layernorm_rows(x, weight, bias, y, rows, cols, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = row.to(tl.int64)[:, None] * cols + col[None, :]
    w = tl.load(weight + col, mask=col < cols, other=0.0).to(tl.float32)
    b = tl.load(bias + col, mask=col < cols, other=0.0).to(tl.float32)
    v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    v = tl.where(inside, v - (tl.sum(v, 1) / cols)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(v * v, 1) / cols + eps)
    tl.store(y + offsets, v * scale[:, None] * w[None, :] + b[None, :], mask=inside)


@triton.jit
def layernorm_long(x, weight, bias, y, cols, eps, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """One row per program, read three times: mean, variance, result."""
    x += tl.program_id(0).to(tl.int64) * cols
    y += tl.program_id(0).to(tl.int64) * cols
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, cols, BLOCK, num_stages=STAGES):
        col = start + lane
        sums += tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / cols
    squares = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, cols, BLOCK, num_stages=STAGES):
        col = start + lane
        v = tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32)
        v = tl.where(col < cols, v - mean, 0.0)
        squares += v * v
    scale = tl.rsqrt(tl.sum(squares, 0) / cols + eps)
    for start in tl.range(0, cols, BLOCK, num_stages=STAGES):
        col = start + lane
        v = tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32)
        w = tl.load(weight + col, mask=col < cols, other=0.0).to(tl.float32)
        b = tl.load(bias + col, mask=col < cols, other=0.0).to(tl.float32)
        tl.store(y + col, (v - mean) * scale * w + b, mask=col < cols)


def warps(elements: int) -> int:
    """Warps for a program of so many elements (a power of two)."""
    return min(max(elements // (32 * CONFIG["per_thread"]), 1), 32)


def kernel_fn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim, of which the latter are."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    cols = x.shape[-1]
    rows = x.numel() // cols
    if cols > CONFIG["resident"]:
        block = CONFIG["block"]
        layernorm_long[(rows,)](
            x, weight, bias, y, cols, eps, block, CONFIG["stages"], num_warps=warps(block)
        )
        return y
    block = triton.next_power_of_2(cols)
    many = max(CONFIG["tile"] // block, 1)
    layernorm_rows[(triton.cdiv(rows, many),)](
        x, weight, bias, y, rows, cols, eps, many, block, num_warps=warps(many * block)
    )
    return y
