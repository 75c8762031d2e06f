"""Cross-entropy in Triton: one row per program, then one program for the mean. The starter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index", "nd"}

# block: elements per step of a row, in `stages` steps at once; per_thread: elements.
CONFIG = {"block": 4096, "stages": 1, "per_thread": 16}
SPACE = {
    "block": [1024, 2048, 4096, 8192, 16384, 32768],
    "stages": [1, 2, 3, 4],
    "per_thread": [4, 8, 16, 32],
    "rules": ["block <= 1024 * per_thread"],
}
IGNORED = tl.constexpr(-100)


@triton.jit
def row_losses(logits, targets, losses, cols, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """One row per program. Each lane keeps its own maximum and sum; they are joined once."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * cols
    lane = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, cols, BLOCK, num_stages=STAGES):
        col = start + lane
        v = tl.load(logits + col, mask=col < cols, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, v)
        base = tl.where(higher == -float("inf"), 0.0, higher)  # -inf minus -inf would be NaN
        total = total * tl.exp(top - base) + tl.exp(v - base)
        top = higher
    row_top = tl.max(top, 0)
    row_total = tl.sum(total * tl.exp(top - row_top), 0)
    target = tl.load(targets + row)
    counted = target != IGNORED
    picked = tl.load(logits + target, mask=counted, other=0.0).to(tl.float32)
    tl.store(losses + row, tl.where(counted, row_top - picked + tl.log(row_total), 0.0))


@triton.jit
def mean_loss(losses, targets, y, rows, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, rows, BLOCK):
        row = start + lane
        total += tl.load(losses + row, mask=row < rows, other=0.0)
        count += (tl.load(targets + row, mask=row < rows, other=IGNORED) != IGNORED).to(tl.int32)
    tl.store(y, tl.sum(total, 0) / tl.sum(count, 0))


def kernel_fn(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`logits [..., V]`, `targets [...]`: the mean over targets other than -100, as one number
    in the logits' dtype."""
    logits, targets = logits.contiguous(), targets.contiguous()
    rows, cols = targets.numel(), logits.shape[-1]
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    y = logits.new_empty(())
    block = min(CONFIG["block"], triton.next_power_of_2(cols))
    warps = min(max(block // (32 * CONFIG["per_thread"]), 1), 32)
    if rows:
        row_losses[(rows,)](logits, targets, losses, cols, block, CONFIG["stages"], num_warps=warps)
    mean_loss[(1,)](losses, targets, y, rows, 1024)
    return y
