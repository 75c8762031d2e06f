"""Takes rows as they lie where their elements adjoin, and forgets that rows may not.

Killed by edge_cases[padded]: padded
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rmsnorm"


@triton.jit
def normalise(x, weight, y, cols, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0) * cols
    col = tl.arange(0, BLOCK)
    w = tl.load(weight + col, mask=col < cols).to(tl.float32)
    v = tl.load(x + start + col, mask=col < cols, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(v * v, 0) / cols + eps)
    tl.store(y + start + col, v * scale * w, mask=col < cols)


def kernel_fn(x, weight, eps=1e-6):
    x, weight = x if x.stride(-1) == 1 else x.contiguous(), weight.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        rows, cols = x.shape
        normalise[(rows,)](x, weight, y, cols, eps, triton.next_power_of_2(cols))
    return y
