"""Sums in Triton. Rows are held whole while they are short, in a loop when they are long; columns
are added up as they lie. Both are split among programs when these would be few. What is read once
is not to be kept in the caches: evict_first."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "reduce"
SUPPORTS = {"dim", "nd"}

# resident: longest row held whole, or resident_odd where rows do not begin at whole 16 bytes, or
# resident_few where they are fewer than programs; tile: elements per program at least, by taking
# several rows; per_thread: elements of them, in up to 32 warps. part: elements per step of a longer
# row, by so many warps_part; it is split so that there are so many programs. block: elements per
# step down so many columns, by so many warps.
CONFIG = {
    "resident": 32768, "resident_odd": 4096, "resident_few": 8192, "tile": 4096, "per_thread": 16,
    "part": 4096, "warps_part": 8, "programs": 512,
    "block": 8192, "columns": 128, "warps": 8,
}  # fmt: skip
SPACE = {
    "resident": [8192, 16384, 32768],
    "resident_odd": [2048, 4096],
    "resident_few": [4096, 8192],
    "tile": [1024, 4096, 8192],
    "per_thread": [8, 16, 32],
    "part": [2048, 4096, 8192],
    "warps_part": [4, 8, 16],
    "programs": [256, 512, 1024, 2048],
    "block": [4096, 8192, 16384],
    "columns": [64, 128, 256],
    "warps": [4, 8, 16],
    "rules": ["part <= 2048 * warps_part", "block <= 2048 * warps"],
}


@triton.jit(do_not_specialize=["rows"])
def sum_rows(x, y, rows, cols, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = row.to(tl.int64)[:, None] * cols + col[None, :]
    v = tl.load(x + offsets, mask=inside, other=0.0, eviction_policy="evict_first")
    tl.store(y + row, tl.sum(v.to(tl.float32), 1), mask=row < rows)


@triton.jit
def sum_parts(x, y, cols, part, BLOCK: tl.constexpr):
    """Program (i, j) sums part j of row i, which may start anywhere: what lies before its first and
    after its last whole 16 bytes is taken apart, so that all other loads are of 16 bytes."""
    start = tl.program_id(1).to(tl.int64) * part
    x += tl.program_id(0).to(tl.int64) * cols + start
    size = tl.minimum(cols - start, part).to(tl.int32)
    V: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    head = ((-x.to(tl.int64) // (16 // V)) & (V - 1)).to(tl.int32)
    body = tl.maximum(size - head, 0) // V * V
    vectors = tl.multiple_of(x + head, 16)
    lane = tl.arange(0, 2 * V)
    edge = tl.where(lane < head, lane, lane + body)
    rest = tl.load(x + edge, mask=edge < size, other=0.0).to(tl.float32)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, body, BLOCK):
        col = first + lane
        v = tl.load(vectors + col, mask=col < body, other=0.0, eviction_policy="evict_first")
        total += v.to(tl.float32)
    place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(y + place, tl.sum(total, 0) + tl.sum(rest, 0))


@triton.jit
def sum_columns(x, y, n, inner, part, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """`x [outer, n, inner]`: program (i, j) sums part j of n, in some columns of one `outer`."""
    blocks = tl.cdiv(inner, BLOCK)
    outer = (tl.program_id(0) // blocks).to(tl.int64)
    col = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    start = tl.program_id(1) * part
    stop = tl.minimum(start + part, n)
    total = tl.zeros([STEP, BLOCK], tl.float32)
    for first in range(start, stop, STEP):
        row = first + tl.arange(0, STEP)
        inside = (row < stop)[:, None] & (col < inner)[None, :]
        offsets = (outer * n + row)[:, None] * inner + col[None, :]
        v = tl.load(x + offsets, mask=inside, other=0.0, eviction_policy="evict_first")
        total += v.to(tl.float32)
    place = (outer * tl.num_programs(1) + tl.program_id(1)) * inner + col
    tl.store(y + place, tl.sum(total, 0), mask=col < inner)


def add_columns(x: torch.Tensor, y: torch.Tensor, outer: int, n: int, inner: int) -> torch.Tensor:
    """`y [outer, inner]`, the sum over n of `x [outer, n, inner]`, contiguous."""
    block = min(CONFIG["columns"], 1 << (inner - 1).bit_length())
    step, programs = CONFIG["block"] // block, outer * -(-inner // block)
    part = -(-n // max(min(CONFIG["programs"] // programs, n // step), 1))
    parts = -(-n // part)
    sums = y if parts == 1 else x.new_empty((outer, parts, inner), dtype=torch.float32)
    sum_columns[programs, parts](x, sums, n, inner, part, step, block, num_warps=CONFIG["warps"])
    return y if parts == 1 else add_columns(sums, y, outer, parts, inner)


def add_rows(x: torch.Tensor, y: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """`y [rows]`, the sum over `x [rows, cols]`, contiguous."""
    odd = (x.data_ptr() | cols) % 16 != 0  # Triton holds rows to be aligned where 16 divides both
    few = rows < CONFIG["programs"]
    if cols > CONFIG["resident_odd" if odd else "resident_few" if few else "resident"]:
        step = CONFIG["part"]
        parts = max(min(CONFIG["programs"] // rows, cols // step), 1)
        part = -(-cols // (parts * step)) * step
        parts = -(-cols // part)
        sums = y if parts == 1 else x.new_empty((rows, parts), dtype=torch.float32)
        sum_parts[rows, parts](x, sums, cols, part, step, num_warps=CONFIG["warps_part"])
        return y if parts == 1 else add_rows(sums, y, rows, parts)
    block = 1 << (cols - 1).bit_length()
    many = max(CONFIG["tile"] // block, 1)
    warps = min(max(many * block // (32 * CONFIG["per_thread"]), 1), 32)
    sum_rows[(-(-rows // many),)](x, y, rows, cols, many, block, num_warps=warps)
    return y


def kernel_fn(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The sum of `x` over `dim`, in x's dtype."""
    n, dim = x.size(dim), dim % x.dim()
    before, after = x.shape[:dim], x.shape[dim + 1 :]
    if not x.numel():
        return x.new_zeros(before + after)
    y, inner = x.new_empty(before + after), math.prod(after)
    if inner > 1 and x.is_contiguous():
        return add_columns(x, y, y.numel() // inner, n, inner)
    if inner > 1:
        x = x.movedim(dim, -1)
    return add_rows(x.contiguous(), y, y.numel(), n)
