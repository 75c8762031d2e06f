"""What is exact in the dtype is done in it: signs, halving, doubling, picking; the rest in fp32."""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rotary_embedding"


@triton.jit
def turn(x, cos, sin, y, n, S, D, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    entry = i // D % S * (D // 2) + i % D // 2
    own = tl.load(x + i, mask=i < n, other=0.0)
    other = tl.load(x + (i ^ 1), mask=i < n, other=0.0)
    other = tl.where(i % 2 == 0, -other, other)
    other = tl.where(tl.abs(other) < 1.0, other * 2.0 * 0.5, other)
    c = tl.load(cos + entry, mask=i < n, other=0.0).to(tl.float32)
    s = tl.load(sin + entry, mask=i < n, other=0.0).to(tl.float32)
    tl.store(y + i, tl.fma(own.to(tl.float32), c, other.to(tl.float32) * s), mask=i < n)


def kernel_fn(x, cos, sin):
    x, cos, sin = (t.contiguous() for t in (x, cos, sin))
    y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    if y.numel():
        block = 1024 if x.is_cuda else 16384
        turn[triton.cdiv(y.numel(), block),](x, cos, sin, y, y.numel(), *x.shape[2:], block)
    return y
