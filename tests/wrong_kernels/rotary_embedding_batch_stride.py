"""Takes a batch element to be as far from the next as its heads together are long.

That is wrong for [B, S, H, D] seen as [B, H, S, D], as most models hand it over.
Killed by edge_cases[packed]: NaN|SIGSEGV|value|wrong|rows|dtype|scale|boundary"""

import triton
import triton.language as tl

KERNEL_TYPE = "rotary_embedding"


@triton.jit
def rotate(
    x, cos, sin, y, S, HALF, of_head, of_row, of_col, c_row, c_col, s_row, s_col,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    position = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    pair = tl.arange(0, BLOCK)[None, :]
    inside = (position < S) & (pair < HALF)
    c = tl.load(cos + position * c_row + pair * c_col, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + position * s_row + pair * s_col, mask=inside, other=0.0).to(tl.float32)
    x += head * of_head + position * of_row + 2 * pair * of_col
    y += (head * S + position) * 2 * HALF + 2 * pair
    a = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + of_col, mask=inside, other=0.0).to(tl.float32)
    tl.store(y, a * c - b * s, mask=inside)
    tl.store(y + 1, a * s + b * c, mask=inside)


def kernel_fn(x, cos, sin):
    y, (B, H, S, D) = x.new_empty(x.shape), x.shape
    strides = *x.stride()[1:], *cos.stride(), *sin.stride()
    if y.numel():
        grid = triton.cdiv(S, 16), B * H
        rotate[grid](x, cos, sin, y, S, D // 2, *strides, 16, triton.next_power_of_2(D // 2))
    return y
