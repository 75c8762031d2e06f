"""Loads whole rows, and takes the pairs apart and together again within the program."""

import triton
import triton.language as tl

KERNEL_TYPE = "rotary_embedding"


@triton.jit
def rotate(x, cos, sin, y, rows, S, D, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    d, pair = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH // 2)[None, :]
    known = (row < rows) & (2 * pair < D)
    c = tl.load(cos + row % S * (D // 2) + pair, mask=known, other=0.0).to(tl.float32)
    s = tl.load(sin + row % S * (D // 2) + pair, mask=known, other=0.0).to(tl.float32)
    inside = (row < rows) & (d < D)
    whole = tl.load(x + row * D + d, mask=inside, other=0.0).to(tl.float32)
    a, b = tl.split(tl.reshape(whole, [ROWS, WIDTH // 2, 2]))
    tl.store(y + row * D + d, tl.interleave(a * c - b * s, b * c + a * s), mask=inside)


def kernel_fn(x, cos, sin):
    B, H, S, D = x.shape
    y = x.new_empty(x.shape)
    if y.numel():
        grid = (triton.cdiv(B * H * S, 64),)
        operands = x.contiguous(), cos.contiguous(), sin.contiguous(), y
        rotate[grid](*operands, B * H * S, S, D, 64, triton.next_power_of_2(D))
    out = x.new_empty(B, S, H, D).transpose(1, 2)
    return out.copy_(y)
