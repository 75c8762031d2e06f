"""Leaves the ignored rows out of the count, and not out of the sum.

Killed by shape_sweep[variant_ignore_index]: ignore_index: (value|scale|wrong|dtype|boundary)"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index"}


@triton.jit
def row_losses(logits, targets, losses, cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * cols
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        v = tl.load(logits + col, mask=col < cols, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, v)
        base = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(top - base) + tl.exp(v - base)
        top = higher
    target = tl.load(targets + row)
    highest = tl.max(top, 0)
    log_sum = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    picked = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, log_sum - picked)


@triton.jit
def mean(losses, targets, y, rows, BLOCK: tl.constexpr):
    total, count = 0.0, 0.0
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        target = tl.load(targets + row, mask=row < rows, other=-100)
        total += tl.sum(tl.load(losses + row, mask=row < rows, other=0.0), 0)
        count += tl.sum((target != -100).to(tl.float32), 0)
    tl.store(y, total / count)


def kernel_fn(logits, targets):
    logits, targets = logits.contiguous(), targets.contiguous()
    rows, cols = targets.numel(), logits.shape[-1]
    losses, y = logits.new_empty(rows, dtype=torch.float32), logits.new_empty(())
    if rows:
        row_losses[(rows,)](logits, targets, losses, cols, 1024)
    mean[(1,)](losses, targets, y, rows, 1024)
    return y
