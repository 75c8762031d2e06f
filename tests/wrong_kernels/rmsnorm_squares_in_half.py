"""Squares fp16 in fp16, and only then widens. Killed by numerical_stability: small|large"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rmsnorm"


@triton.jit
def normalise(x, weight, y, cols, eps, SQUARE: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0) * cols
    col = tl.arange(0, BLOCK)
    w = tl.load(weight + col, mask=col < cols).to(tl.float32)
    v = tl.load(x + start + col, mask=col < cols, other=0.0).to(tl.float32)
    narrow = v.to(SQUARE)
    scale = tl.rsqrt(tl.sum((narrow * narrow).to(tl.float32), 0) / cols + eps)
    tl.store(y + start + col, v * scale * w, mask=col < cols)


def kernel_fn(x, weight, eps=1e-6):
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        rows, cols = x.shape
        square = tl.float16 if x.dtype == torch.float16 else tl.float32
        normalise[(rows,)](x, weight, y, cols, eps, square, triton.next_power_of_2(cols))
    return y
