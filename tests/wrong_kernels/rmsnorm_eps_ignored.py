"""Takes an eps, and uses 1e-6 whatever it is. Killed by shape_sweep[variant_eps]: eps: .*off by"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rmsnorm"


@triton.jit
def normalise(x, weight, y, cols, BLOCK: tl.constexpr):
    start = tl.program_id(0) * cols
    col = tl.arange(0, BLOCK)
    w = tl.load(weight + col, mask=col < cols).to(tl.float32)
    v = tl.load(x + start + col, mask=col < cols, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(v * v, 0) / cols + 1e-6)
    tl.store(y + start + col, v * scale * w, mask=col < cols)


def kernel_fn(x, weight, eps=1e-6):
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    if y.numel():
        rows, cols = x.shape
        normalise[(rows,)](x, weight, y, cols, triton.next_power_of_2(cols))
    return y
