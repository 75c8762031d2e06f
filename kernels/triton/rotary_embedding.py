"""Rotary position embedding in Triton: some positions of some heads per program, so that the tables
are read once for several heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rotary_embedding"
SUPPORTS = {"half_split"}

# positions, heads: per program, of so many warps.
CONFIG = {"positions": 8, "heads": 4, "warps": 4}
SPACE = {
    "positions": [1, 2, 4, 8, 16, 32, 64],
    "heads": [1, 2, 4, 8, 16],
    "warps": [1, 2, 4, 8],
    "rules": ["positions * heads <= 32 * warps"],
}


@triton.jit(do_not_specialize=["heads", "S"])
def rotate(
    x, cos, sin, y, heads, S, D: tl.constexpr, INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(S, ROWS)
    head = (tl.program_id(0) // blocks * HEADS + tl.arange(0, HEADS))[:, None, None]
    position = (tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS))[None, :, None]
    pair = tl.arange(0, BLOCK // 2)[None, None, :]
    entry = position.to(tl.int64) * (D // 2) + pair
    known = (position < S) & (pair < D // 2)
    c = tl.load(cos + entry, mask=known, other=0.0).to(tl.float32)
    s = tl.load(sin + entry, mask=known, other=0.0).to(tl.float32)
    row = (head.to(tl.int64) * S + position) * D
    inside = (head < heads) & (position < S)
    if INTERLEAVED:  # whole pairs by one load, parted in registers
        col = tl.arange(0, BLOCK)[None, None, :]
        v = tl.load(x + row + col, mask=inside & (col < D), other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(v, (HEADS, ROWS, BLOCK // 2, 2)))
        turned = tl.reshape(tl.join(a * c - b * s, a * s + b * c), (HEADS, ROWS, BLOCK))
        tl.store(y + row + col, turned, mask=inside & (col < D))
    else:
        first, inside = row + pair, inside & (pair < D // 2)
        a = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(x + first + D // 2, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + first, a * c - b * s, mask=inside)
        tl.store(y + first + D // 2, a * s + b * c, mask=inside)


def kernel_fn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    """`x [B, H, S, D]`, `cos, sin [S, D/2]`; pairs are (2i, 2i+1), or else (i, i + D/2)."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    B, H, S, D = x.shape
    rows = CONFIG["positions"] if S > 1 else 1
    grid = (-(-B * H // CONFIG["heads"]) * -(-S // rows),)
    rotate[grid](
        x, cos, sin, y, B * H, S, D, interleaved, CONFIG["heads"], rows,
        1 << (D - 1).bit_length(), num_warps=CONFIG["warps"],
    )  # fmt: skip
    return y
