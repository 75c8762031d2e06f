"""The variance as mean of squares minus square of the mean, in one pass and in fp32.

Killed by numerical_stability: far_from_zero
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "layernorm"


@triton.jit
def one_pass(x, weight, bias, y, cols, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0) * cols
    col = tl.arange(0, BLOCK)
    v = tl.load(x + start + col, mask=col < cols, other=0.0).to(tl.float32)
    w = tl.load(weight + col, mask=col < cols).to(tl.float32)
    b = tl.load(bias + col, mask=col < cols).to(tl.float32)
    mean = tl.sum(v, 0) / cols
    variance = tl.sum(v * v, 0) / cols - mean * mean
    tl.store(y + start + col, (v - mean) * tl.rsqrt(variance + eps) * w + b, mask=col < cols)


def kernel_fn(x, weight, bias, eps=1e-5):
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        rows, cols = x.shape
        one_pass[(rows,)](x, weight, bias, y, cols, eps, triton.next_power_of_2(cols))
    return y
