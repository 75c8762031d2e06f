"""Rotary position embedding in Triton: some positions of one head per program. The starter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rotary_embedding"
SUPPORTS = {"half_split"}

# positions: per program; warps: of a program.
CONFIG = {"positions": 8, "warps": 4}
SPACE = {"positions": [1, 2, 4, 8, 16, 32, 64], "warps": [1, 2, 4, 8]}


@triton.jit
def rotate(
    x, cos, sin, y, S, HALF, STEP: tl.constexpr, APART, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """`STEP` lies between the first elements of two pairs, `APART` between those of one."""
    blocks = tl.cdiv(S, ROWS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    position = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    pair = tl.arange(0, BLOCK)
    inside = (position < S)[:, None] & (pair < HALF)[None, :]
    entry = position.to(tl.int64)[:, None] * HALF + pair[None, :]
    c = tl.load(cos + entry, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + entry, mask=inside, other=0.0).to(tl.float32)
    first = (head * S + position[:, None]) * 2 * HALF + pair[None, :] * STEP
    a = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + first + APART, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + first, a * c - b * s, mask=inside)
    tl.store(y + first + APART, a * s + b * c, mask=inside)


def kernel_fn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    """`x [B, H, S, D]`, `cos, sin [S, D/2]`; pairs are (2i, 2i+1), or else (i, i + D/2)."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    S, D = x.shape[-2:]
    rows = CONFIG["positions"]
    step, apart = (2, 1) if interleaved else (1, D // 2)
    rotate[(x.numel() // (S * D) * triton.cdiv(S, rows),)](
        x, cos, sin, y, S, D // 2, step, apart, rows, triton.next_power_of_2(D // 2),
        num_warps=CONFIG["warps"],
    )  # fmt: skip
    return y
