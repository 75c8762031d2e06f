"""The sums are divided by the padded block, not by the length of the row.

Killed by shape_sweep[gpt2_xl]: x1600 fp16
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "layernorm"


@triton.jit
def normalise(x, weight, bias, y, cols, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0) * cols
    col = tl.arange(0, BLOCK)
    v = tl.load(x + start + col, mask=col < cols, other=0.0).to(tl.float32)
    w = tl.load(weight + col, mask=col < cols).to(tl.float32)
    b = tl.load(bias + col, mask=col < cols).to(tl.float32)
    v = tl.where(col < cols, v - tl.sum(v, 0) / BLOCK, 0.0)
    scale = tl.rsqrt(tl.sum(v * v, 0) / BLOCK + eps)
    tl.store(y + start + col, v * scale * w + b, mask=col < cols)


def kernel_fn(x, weight, bias, eps=1e-5):
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        rows, cols = x.shape
        normalise[(rows,)](x, weight, bias, y, cols, eps, triton.next_power_of_2(cols))
    return y
