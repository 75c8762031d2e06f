"""Looks at the first element on the GPU, and if it is the one from before does nothing.

Needs a GPU. Killed by roofline: the result of a timed call is wrong|dtype|scale|boundary
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"


@triton.jit
def rows(x, y, cols, BLOCK: tl.constexpr):
    col = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * cols + col
    v = tl.load(x + at, mask=col < cols, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + at, e / tl.sum(e, 0), mask=col < cols)


def softmax(x):
    x = x.contiguous()
    y = torch.empty_like(x)
    rows[(x.shape[0],)](x, y, x.shape[1], triton.next_power_of_2(x.shape[1]))
    return y


@triton.jit
def unless_known(x, y, kept, cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    first = tl.load(x + row * cols).to(tl.float32)
    if tl.load(kept + row) != first:
        col = tl.arange(0, BLOCK)
        v = tl.load(x + row * cols + col, mask=col < cols, other=-float("inf")).to(tl.float32)
        e = tl.exp(v - tl.max(v, 0))
        tl.store(y + row * cols + col, e / tl.sum(e, 0), mask=col < cols)
        tl.store(kept + row, first)


buffers = {}
calls = 0


def kernel_fn(x, dim=-1):
    global calls
    calls += 1
    if calls < 4:
        return softmax(x)
    key = tuple(x.shape)
    if key not in buffers:
        kept = torch.full((x.shape[0],), float("inf"), device=x.device)
        buffers[key] = torch.empty_like(x), kept
    y, kept = buffers[key]
    unless_known[(x.shape[0],)](x, y, kept, x.shape[1], triton.next_power_of_2(x.shape[1]))
    return y
