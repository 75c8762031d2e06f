"""Adds what lies behind a row's end to fill the last block.

Killed by shape_sweep: x(14336|128256) fp16
"""

import triton
import triton.language as tl

KERNEL_TYPE = "reduce"
CONFIG = {"block": 4096}


@triton.jit
def sum_rows(x, y, cols, BLOCK: tl.constexpr):
    x += tl.program_id(0) * cols
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        total += tl.load(x + start + lane).to(tl.float32)
    tl.store(y + tl.program_id(0), tl.sum(total, 0))


def kernel_fn(x, dim=-1):
    x = x.contiguous()
    y = x.new_zeros(x.shape[:-1])
    if x.numel():
        block = min(CONFIG["block"], triton.next_power_of_2(x.shape[1]))
        sum_rows[(len(x),)](x, y, x.shape[1], block)
    return y
