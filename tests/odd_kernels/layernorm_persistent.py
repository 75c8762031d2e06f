"""A fixed number of programs, each of which goes on to every so-manyth row; kernel_fn is an
object."""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "layernorm"


@triton.jit
def layernorm(x, weight, bias, y, rows, cols, eps, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    col = tl.arange(0, BLOCK)
    w = tl.load(weight + col, mask=col < cols).to(tl.float32)
    b = tl.load(bias + col, mask=col < cols).to(tl.float32)
    for done in range(0, rows, PROGRAMS):
        row = done + tl.program_id(0).to(tl.int64)
        at = row * cols + col
        inside = (col < cols) & (row < rows)
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.where(col < cols, v - tl.sum(v, 0) / cols, 0.0)
        v /= tl.sqrt(tl.sum(v * v, 0) / cols + eps)
        tl.store(y + at, v * w + b, mask=inside)


PROGRAMS = {"cpu": 4, "cuda": 128}


class LayerNorm:
    def __call__(self, x, weight, bias, *, eps=1e-5):
        rows, cols = x.shape
        y = torch.empty(rows, cols, dtype=x.dtype, device=x.device)
        if rows and cols:
            block = triton.next_power_of_2(cols)
            args = [t.contiguous() for t in (x, weight, bias)]
            programs, warps = PROGRAMS[x.device.type], min(32, max(4, block // 1024))
            layernorm[(programs,)](*args, y, rows, cols, eps, block, programs, num_warps=warps)
        return y


kernel_fn = LayerNorm()
