"""LayerNorm in Triton: rows held whole while they are short, in three passes when they are long."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "layernorm"
SUPPORTS = {"nd"}

# resident: longest row held whole; tile: elements per program at least, by taking several rows;
# per_thread: elements of them. block: elements per step of a longer row, by so many warps.
CONFIG = {"resident": 16384, "tile": 4096, "per_thread": 32, "block": 8192, "warps": 16}
SPACE = {
    "resident": [4096, 8192, 16384, 32768],
    "tile": [1, 1024, 2048, 4096, 8192, 16384],
    "per_thread": [8, 16, 32, 64],
    "block": [1024, 2048, 4096, 8192, 16384],
    "warps": [4, 8, 16, 32],
    "rules": ["tile <= resident", "resident <= 1024 * per_thread", "block <= 1024 * warps"],
}


@triton.jit(do_not_specialize=["rows"])
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
def layernorm_long(x, weight, bias, y, cols, eps, BLOCK: tl.constexpr):
    """One row per program, read three times: mean, variance, result."""
    x += tl.program_id(0).to(tl.int64) * cols
    y += tl.program_id(0).to(tl.int64) * cols
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        col = start + lane
        sums += tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / cols
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        col = start + lane
        v = tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32)
        v = tl.where(col < cols, v - mean, 0.0)
        squares += v * v
    scale = tl.rsqrt(tl.sum(squares, 0) / cols + eps)
    for start in range(0, cols, BLOCK):
        col = start + lane
        v = tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32)
        w = tl.load(weight + col, mask=col < cols, other=0.0).to(tl.float32)
        b = tl.load(bias + col, mask=col < cols, other=0.0).to(tl.float32)
        tl.store(y + col, (v - mean) * scale * w + b, mask=col < cols)


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
        block, warps = CONFIG["block"], CONFIG["warps"]
        layernorm_long[(rows,)](x, weight, bias, y, cols, eps, block, num_warps=warps)
        return y
    block = 1 << (cols - 1).bit_length()
    many = max(CONFIG["tile"] // block, 1)
    warps = min(max(many * block // (32 * CONFIG["per_thread"]), 1), 32)
    grid = (-(-rows // many),)
    layernorm_rows[grid](x, weight, bias, y, rows, cols, eps, many, block, num_warps=warps)
    return y
