"""The lanes past the row's end hold zero while the maximum is sought, and it may be theirs.

Killed by numerical_stability: deep
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"


@triton.jit
def softmax_rows(x, y, cols, BLOCK: tl.constexpr):
    start = tl.program_id(0) * cols
    col = tl.arange(0, BLOCK)
    v = tl.load(x + start + col, mask=col < cols, other=0.0).to(tl.float32)
    e = tl.where(col < cols, tl.exp(v - tl.max(v, 0)), 0.0)
    tl.store(y + start + col, e / tl.sum(e, 0), mask=col < cols)


def kernel_fn(x, dim=-1):
    x = x.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        softmax_rows[(len(x),)](x, y, x.shape[1], triton.next_power_of_2(x.shape[1]))
    return y
