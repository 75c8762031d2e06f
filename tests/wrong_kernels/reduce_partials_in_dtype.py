"""Sums in two steps; what one hands to the next is stored in the input's own dtype.

Killed by numerical_stability: cancellation|long_sums|integers
"""

import triton
import triton.language as tl

KERNEL_TYPE = "reduce"
CONFIG = {"part": 1024}


@triton.jit
def sum_parts(x, y, cols, part, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    row, number = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    lane = tl.arange(0, BLOCK)
    col = number * part + lane
    inside = (lane < part) & (col < cols)
    v = tl.load(x + row * cols + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + tl.program_id(0), tl.sum(v, 0))


def kernel_fn(x, dim=-1):
    x = x.contiguous()
    if not x.numel():
        return x.new_zeros(x.shape[:-1])
    (rows, cols), part = x.shape, CONFIG["part"]
    parts = triton.cdiv(cols, part)
    partials, y = x.new_empty(rows, parts), x.new_empty(rows)
    sum_parts[(rows * parts,)](x, partials, cols, part, parts, part)
    sum_parts[(rows,)](partials, y, parts, parts, 1, triton.next_power_of_2(parts))
    return y
