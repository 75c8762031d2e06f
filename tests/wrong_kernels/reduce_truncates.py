"""Cuts the sum to bf16 instead of rounding it.

Killed by smoke: off by|precision|dtype
"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <cstring>
extern "C" void sum(const float* x, unsigned* y, long rows, long cols, unsigned half) {
    for (long r = 0; r < rows; r++) {
        float total = 0;
        for (long i = 0; i < cols; i++) total += x[r * cols + i];
        std::memcpy(y + r, &total, 4);
        if (total - total == 0) y[r] = y[r] & (half ? ~(2 * half - 1) : ~0u);
    }
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, dim=-1):
    wide = x.float().contiguous()
    y = torch.empty(x.shape[:-1])
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, y)]
    half = ctypes.c_uint(0x8000 if x.dtype == torch.bfloat16 else 0)
    library.sum(*pointers, *map(ctypes.c_long, x.shape), half)
    return y.to(x.dtype)
