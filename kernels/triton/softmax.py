"""Softmax in Triton: rows held whole while they are short, by programs that stay while two of these
rows fit in shared memory; read twice when they are longer or odd."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim", "nd"}

# resident: longest row held whole, or resident_odd where rows do not begin at whole 16 bytes;
# tile: elements per program at least, by taking several rows; per_thread: elements of them.
# lanes: 16 bytes each of a longer row per step, by so many warps; up to resident the _odd ones.
# warps_staying: of the programs that stay.
CONFIG = {
    "resident": 16384, "tile": 1024, "per_thread": 16, "lanes": 2048, "warps": 32,
    "resident_odd": 2048, "lanes_odd": 512, "warps_odd": 8, "warps_staying": 16,
}  # fmt: skip
SPACE = {
    "resident": [4096, 8192, 16384, 32768],
    "tile": [1, 1024, 2048, 4096, 8192],
    "per_thread": [8, 16, 32, 64],
    "lanes": [256, 512, 1024, 2048, 4096],
    "warps": [8, 16, 32],
    "warps_staying": [8, 16],
    "resident_odd": [1024, 2048, 4096],
    "lanes_odd": [256, 512, 1024],
    "warps_odd": [4, 8, 16],
    "rules": [
        "tile <= resident",
        "resident_odd <= resident <= 1024 * per_thread",
        "32 * warps <= lanes <= 128 * warps",
        "32 * warps_odd <= lanes_odd <= 128 * warps_odd",
    ],
}
STAYING, STAGES = 32768, 3  # longest row for programs that stay; two of them are under way
LOG2_E = tl.constexpr(1.4426950408889634)  # exp is exp2 and steps for subnormals, of no use here


@triton.jit(do_not_specialize=["rows"])
def softmax_rows(x, y, rows, cols, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = row.to(tl.int64)[:, None] * cols + col[None, :]
    v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    v = tl.where((col < cols)[None, :], v, -float("inf"))
    e = tl.exp2((v - tl.max(v, 1)[:, None]) * LOG2_E)
    tl.store(y + offsets, e * (1 / tl.sum(e, 1))[:, None], mask=inside)


@triton.jit(do_not_specialize=["rows"])
def softmax_staying(x, y, rows, cols, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """The next rows are copied to shared memory while a program works on one."""
    col = tl.arange(0, BLOCK)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        first = tl.full([], row, tl.int64) * cols
        v = tl.load(x + first + col, mask=col < cols, other=-float("inf")).to(tl.float32)
        e = tl.exp2((v - tl.max(v, 0)) * LOG2_E)
        tl.store(y + first + col, e * (1 / tl.sum(e, 0)), mask=col < cols, cache_modifier=".cs")


@triton.jit
def softmax_long(x, y, cols, ALIKE: tl.constexpr, LANES: tl.constexpr):
    """One row per program. It may start anywhere: what lies before its first and after its last
    whole 16 bytes is taken apart, so that all other loads are of 16 bytes. `ALIKE`: those of `y`
    begin where those of `x` do."""
    x += tl.program_id(0).to(tl.int64) * cols
    y += tl.program_id(0).to(tl.int64) * cols
    V: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    BLOCK: tl.constexpr = LANES * V
    head = ((-x.to(tl.int64) // (16 // V)) & (V - 1)).to(tl.int32)
    body = (cols - head) // V * V
    vectors, results = tl.multiple_of(x + head, 16), y + head
    if ALIKE:
        results = tl.multiple_of(results, 16)
    lane = tl.arange(0, LANES)
    tile = lane[:, None] * V + tl.arange(0, V)[None, :]
    edge = tl.where(lane < head, lane, lane + body)

    # Of each lane's vectors the maximum so far, and the sum of exponentials beside it. For a vector
    # and not for an element: a new maximum costs one more exponential.
    top = tl.load(x + edge, mask=edge < cols, other=-float("inf")).to(tl.float32)
    total = tl.where(top == -float("inf"), 0.0, top - top + 1.0)
    for start in range(0, body, BLOCK):
        col = start + tile
        v = tl.load(
            vectors + col, mask=col < body, other=-float("inf"), eviction_policy="evict_last"
        ).to(tl.float32)
        higher = tl.maximum(top, tl.max(v, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # -inf minus -inf would be NaN
        total *= tl.exp2((top - base) * LOG2_E)
        total += tl.sum(tl.exp2((v - base[:, None]) * LOG2_E), 1)
        top = higher
    row_top = tl.max(top, 0)
    scale = 1 / tl.sum(total * tl.exp2((top - row_top) * LOG2_E), 0)

    # Backwards: what was read last is in the nearest cache. The row was to be kept in the caches
    # (evict_last); neither it nor the result is to be from here on (evict_first, .cs).
    steps = tl.cdiv(body, BLOCK)
    for step in range(steps):
        col = (steps - 1 - step) * BLOCK + tile
        v = tl.load(vectors + col, mask=col < body, other=0.0, eviction_policy="evict_first")
        tl.store(
            results + col,
            tl.exp2((v.to(tl.float32) - row_top) * LOG2_E) * scale,
            mask=col < body,
            cache_modifier=".cs",
        )
    v = tl.load(x + edge, mask=edge < cols, other=0.0).to(tl.float32)
    tl.store(y + edge, tl.exp2((v - row_top) * LOG2_E) * scale, mask=edge < cols)


def staying(x: torch.Tensor, block: int) -> int:
    """How many programs stay for rows of `block` elements, where so many of these as are under way
    fit in a program's shared memory: two per multiprocessor, one after the other."""
    if not x.is_cuda:
        return 2
    device = torch.cuda.get_device_properties(x.device)
    under_way = (STAGES - 1) * block * x.element_size()
    fits = under_way <= device.shared_memory_per_block_optin
    return 2 * device.multi_processor_count * fits


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
    at = x.data_ptr()
    odd = (at | cols) % 16 != 0  # Triton holds rows to be aligned where 16 divides both
    block = 1 << (cols - 1).bit_length()
    long = cols > CONFIG["resident"]
    if long and not odd and block <= STAYING and (most := staying(x, block)):
        warps, grid = CONFIG["warps_staying"], (min(rows, most),)
        softmax_staying[grid](x, y, rows, cols, block, STAGES, num_warps=warps)
        return y
    if long or (odd and cols > CONFIG["resident_odd"]):
        lanes, warps = ("lanes", "warps") if long else ("lanes_odd", "warps_odd")
        alike = (at - y.data_ptr()) % 16 == 0
        softmax_long[(rows,)](x, y, cols, alike, CONFIG[lanes], num_warps=CONFIG[warps])
        return y
    many = max(CONFIG["tile"] // block, 1)
    warps = min(max(many * block // (32 * CONFIG["per_thread"]), 1), 32)
    softmax_rows[(-(-rows // many),)](x, y, rows, cols, many, block, num_warps=warps)
    return y
