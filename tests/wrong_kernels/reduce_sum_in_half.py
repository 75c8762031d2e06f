"""Sums block by block, in accumulators of fp16. Killed by smoke: off by|precision|dtype"""

import triton
import triton.language as tl

KERNEL_TYPE = "reduce"


@triton.jit
def sum_rows(x, y, cols, BLOCK: tl.constexpr):
    x += tl.program_id(0) * cols
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float16)
    for start in range(0, cols, BLOCK):
        v = tl.load(x + start + lane, mask=start + lane < cols, other=0.0).to(tl.float32)
        total += v.to(tl.float16)
    tl.store(y + tl.program_id(0), tl.sum(total.to(tl.float32), 0))


def kernel_fn(x, dim=-1):
    x = x.contiguous()
    y = x.new_zeros(x.shape[:-1])
    if x.numel():
        sum_rows[(len(x),)](x, y, x.shape[1], 64)
    return y
