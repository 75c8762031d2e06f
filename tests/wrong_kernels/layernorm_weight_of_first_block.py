"""Long rows go through in blocks, each of which gets the weights and biases of the first.

Killed by shape_sweep: x8192 fp16
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "layernorm"
CONFIG = {"block": 512}


@triton.jit
def normalise(x, weight, bias, y, cols, eps, BLOCK: tl.constexpr):
    x += tl.program_id(0) * cols
    y += tl.program_id(0) * cols
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        total += tl.load(x + start + lane, mask=start + lane < cols, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / cols
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        inside = start + lane < cols
        v = tl.load(x + start + lane, mask=inside, other=0.0).to(tl.float32)
        v = tl.where(inside, v - mean, 0.0)
        squares += v * v
    scale = tl.rsqrt(tl.sum(squares, 0) / cols + eps)
    for start in range(0, cols, BLOCK):
        inside = start + lane < cols
        v = tl.load(x + start + lane, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(bias + lane, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + start + lane, (v - mean) * scale * w + b, mask=inside)


def kernel_fn(x, weight, bias, eps=1e-5):
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        rows, cols = x.shape
        normalise[(rows,)](x, weight, bias, y, cols, eps, CONFIG["block"])
    return y
