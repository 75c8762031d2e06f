"""Follows every stride itself and copies nothing; the result lies as a transposed one does."""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rmsnorm"


@triton.jit
def rmsnorm(x, weight, y, cols, eps, xr, xc, w1, yr, yc, BLOCK: tl.constexpr):
    row, col = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK).to(tl.int64)
    w = tl.load(weight + col * w1, mask=col < cols).to(tl.float32)
    v = tl.load(x + row * xr + col * xc, mask=col < cols, other=0.0).to(tl.float32)
    root = tl.sqrt_rn(tl.sum(v * v, 0) / cols + eps)
    tl.store(y + row * yr + col * yc, tl.div_rn(v, root) * w, mask=col < cols)


def kernel_fn(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    y = torch.empty_strided(x.shape, (1, len(x) or 1), dtype=x.dtype, device=x.device)
    if y.numel():
        strides = *x.stride(), *weight.stride(), *y.stride()
        block = triton.next_power_of_2(x.shape[1])
        rmsnorm[(len(x),)](x, weight, y, x.shape[1], eps, *strides, block)
    return y
