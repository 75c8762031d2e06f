"""Begins with the last block and ends with the first; the result begins as zeros."""

import triton
import triton.language as tl

KERNEL_TYPE = "reduce"
SUPPORTS = {"dim", "nd"}


@triton.jit
def sum_backwards(x, y, cols, BLOCK: tl.constexpr):
    x += tl.program_id(0).to(tl.int64) * cols
    lane = BLOCK - 1 - tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for done in range(0, cols, BLOCK):
        col = cols - BLOCK - done + lane
        total += tl.load(x + col, mask=col >= 0, other=0.0).to(tl.float32)
    tl.store(y + tl.program_id(0), tl.sum(total, 0))


def kernel_fn(x, dim=-1):
    x = x.movedim(dim, -1).contiguous()
    y = x.new_zeros(x.shape[:-1])
    if x.numel():
        sum_backwards[(y.numel(),)](x, y, x.shape[-1], 1024)
    return y
