"""Rotates in fp16 whatever the dtype.

Killed by smoke: value|precision|dtype|infinity|scale|boundary"""

import triton
import triton.language as tl

KERNEL_TYPE = "rotary_embedding"


@triton.jit
def rotate(x, cos, sin, y, rows, S, HALF, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    pair = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (pair < HALF)
    entry = (row % S) * HALF + pair
    c = tl.load(cos + entry, mask=inside, other=0.0).to(tl.float16)
    s = tl.load(sin + entry, mask=inside, other=0.0).to(tl.float16)
    first = row * 2 * HALF + 2 * pair
    a = tl.load(x + first, mask=inside, other=0.0).to(tl.float16)
    b = tl.load(x + first + 1, mask=inside, other=0.0).to(tl.float16)
    tl.store(y + first, a * c - b * s, mask=inside)
    tl.store(y + first + 1, a * s + b * c, mask=inside)


def kernel_fn(x, cos, sin):
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    y, (B, H, S, D) = x.new_empty(x.shape), x.shape
    grid = (triton.cdiv(B * H * S, 64),)
    if y.numel() and grid[0]:
        rotate[grid](x, cos, sin, y, B * H * S, S, D // 2, 64, triton.next_power_of_2(D // 2))
    return y
