"""Powers of two, with log2(e) folded into a constant; kernel_fn is a partial."""

import functools

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"


@triton.jit
def softmax_rows(x, y, cols, scale, BLOCK: tl.constexpr):
    start = tl.program_id(0) * cols
    col = tl.arange(0, BLOCK)
    v = tl.load(x + start + col, mask=col < cols, other=-float("inf")).to(tl.float32) * scale
    e = tl.exp2(v - tl.max(v, 0))
    tl.store(y + start + col, e * (1.0 / tl.sum(e, 0)), mask=col < cols)


def softmax(scale, x, dim=-1):
    assert dim in (-1, 1)
    y = torch.empty_like(x := x.contiguous())
    if y.numel():
        softmax_rows[(len(x),)](x, y, x.shape[1], scale, triton.next_power_of_2(x.shape[1]))
    return y


kernel_fn = functools.partial(softmax, 1.4426950408889634)
