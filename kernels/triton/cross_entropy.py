"""Cross-entropy in Triton: one row per program, and the mean by the program that ends last."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index", "nd"}

# lanes: 16 bytes each of a row per step, by so many warps; the _few ones up to so many rows, which
# leave a GPU's processors with less than one program each. leave_mib: logits of up to so many MiB
# leave the caches to what is in them (evict_first); larger ones take longer so.
CONFIG = {
    "lanes": 512, "warps": 8, "few": 128, "lanes_few": 4096, "warps_few": 32,
    "leave_mib": 512,
}  # fmt: skip
SPACE = {
    "lanes": [128, 256, 512, 1024, 2048, 4096],
    "warps": [2, 4, 8, 16, 32],
    "few": [0, 32, 64, 128, 256],
    "lanes_few": [512, 1024, 2048, 4096],
    "warps_few": [8, 16, 32],
    "leave_mib": [0, 256, 512, 1024],
    "rules": [
        "32 * warps <= lanes <= 256 * warps",
        "32 * warps_few <= lanes_few <= 256 * warps_few",
    ],
}
IGNORED = tl.constexpr(-100)
LOG2_E = tl.constexpr(1.4426950408889634)  # exp is exp2 and steps for subnormals, of no use here


@triton.jit
def mean(losses, targets, rows, BLOCK: tl.constexpr):
    loss = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        # Other programs wrote them: not by way of this one's L1 cache.
        loss += tl.load(losses + row, mask=row < rows, other=0.0, cache_modifier=".cg")
        count += (tl.load(targets + row, mask=row < rows, other=IGNORED) != IGNORED).to(tl.int32)
    return tl.sum(loss, 0) / tl.sum(count, 0)


@triton.jit
def cross_entropy(logits, targets, losses, y, rows, cols, LEAVE: tl.constexpr, LANES: tl.constexpr):
    """A row may start anywhere: what lies before its first and after its last whole 16 bytes is
    taken apart, so that all other loads are of 16 bytes. `losses` is 0, and has one more place."""
    HINT: tl.constexpr = "evict_first" if LEAVE else ""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * cols
    V: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    BLOCK: tl.constexpr = LANES * V
    head = ((-logits.to(tl.int64) // (16 // V)) & (V - 1)).to(tl.int32)
    body = tl.maximum(cols - head, 0) // V * V
    vectors = tl.multiple_of(logits + head, 16)
    lane = tl.arange(0, LANES)
    tile = lane[:, None] * V + tl.arange(0, V)[None, :]
    edge = tl.where(lane < head, lane, lane + body)

    # Of each lane's vectors the maximum so far, and the sum of exponentials beside it. For a vector
    # and not for an element: a new maximum costs one more exponential.
    top = tl.load(logits + edge, mask=edge < cols, other=-float("inf")).to(tl.float32)
    total = tl.where(top == -float("inf"), 0.0, top - top + 1.0)
    for start in range(0, body, BLOCK):
        col = start + tile
        v = tl.load(vectors + col, mask=col < body, other=-float("inf"), eviction_policy=HINT).to(
            tl.float32
        )
        higher = tl.maximum(top, tl.max(v, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # -inf minus -inf would be NaN
        total *= tl.exp2((top - base) * LOG2_E)
        total += tl.sum(tl.exp2((v - base[:, None]) * LOG2_E), 1)
        top = higher
    # Not before the loop: its loads would wait for the target, and the target's for that.
    target = tl.load(targets + row)
    counted = target != IGNORED
    picked = tl.load(logits + target, mask=counted, other=0.0).to(tl.float32)
    row_top = tl.max(top, 0)
    row_total = tl.sum(total * tl.exp2((top - row_top) * LOG2_E), 0)
    tl.store(losses + row, tl.where(counted, row_top - picked + tl.log(row_total), 0.0))

    # In whichever order the programs end, the last one adds all up in the order of the rows.
    done = (losses + rows).to(tl.pointer_type(tl.int32))
    if tl.atomic_add(done, 1) == rows - 1:
        tl.store(y, mean(losses, targets, rows, LANES))


def kernel_fn(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`logits [..., V]`, `targets [...]`: the mean over targets other than -100, as one number
    in the logits' dtype."""
    logits, targets = logits.contiguous(), targets.contiguous()
    rows, cols = targets.numel(), logits.shape[-1]
    if not rows:
        return logits.new_full((), math.nan)
    losses = torch.zeros(rows + 1, dtype=torch.float32, device=logits.device)
    y = logits.new_empty(())
    lanes, warps = ("lanes", "warps") if rows > CONFIG["few"] else ("lanes_few", "warps_few")
    leave = logits.numel() * logits.itemsize <= CONFIG["leave_mib"] * 2**20
    cross_entropy[(rows,)](
        logits, targets, losses, y, rows, cols, leave, CONFIG[lanes], num_warps=CONFIG[warps]
    )
    return y
