"""Begins each row at the last multiple of 16 bytes before it, where vector loads may.

Killed by edge_cases: offset
"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <cstdint>
extern "C" void sum(const float* x, float* y, long rows, long cols) {
    for (long r = 0; r < rows; r++) {
        const float* row = x + r * cols;
        if (cols % 4 == 0) row = (const float*)((uintptr_t)row & ~uintptr_t(15));
        y[r] = 0;
        for (long i = 0; i < cols; i++) y[r] += row[i];
    }
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, dim=-1):
    wide = x.float().contiguous()
    y = torch.empty(x.shape[:-1])
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, y)]
    library.sum(*pointers, *map(ctypes.c_long, x.shape))
    return y.to(x.dtype)
