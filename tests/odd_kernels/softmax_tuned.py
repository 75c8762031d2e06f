"""An autotuner with two configurations over heuristics; programs stride over the rows."""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"


@triton.autotune([triton.Config({}, num_warps=warps) for warps in (4, 8)], key=["cols"])
@triton.heuristics({"BLOCK": lambda args: min(triton.next_power_of_2(args["cols"]), 8192)})
@triton.jit
def softmax(x, y, rows, cols, BLOCK: tl.constexpr):
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.full([BLOCK], row, tl.int64) * cols + tl.arange(0, BLOCK)
        top = tl.full([BLOCK], -float("inf"), tl.float32)
        for start in range(0, cols, BLOCK):
            inside = start + tl.arange(0, BLOCK) < cols
            v = tl.load(x + at + start, mask=inside, other=-float("inf")).to(tl.float32)
            top = tl.maximum(top, v)
        highest, total = tl.max(top, 0), tl.zeros([BLOCK], tl.float32)
        for start in range(0, cols, BLOCK):
            inside = start + tl.arange(0, BLOCK) < cols
            v = tl.load(x + at + start, mask=inside, other=-float("inf")).to(tl.float32)
            total += tl.exp(v - highest)
        scale = 1.0 / tl.sum(total, 0)
        for start in range(0, cols, BLOCK):
            inside = start + tl.arange(0, BLOCK) < cols
            v = tl.load(x + at + start, mask=inside).to(tl.float32)
            tl.store(y + at + start, tl.exp(v - highest) * scale, mask=inside)


def kernel_fn(x, dim=-1):
    y = torch.empty_like(x := x.contiguous())
    if y.numel():
        softmax[(min(len(x), 1024) if x.is_cuda else 8,)](x, y, *x.shape)
    return y
