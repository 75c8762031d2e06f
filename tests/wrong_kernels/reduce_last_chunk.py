"""Sums whole chunks, and leaves out what does not fill the last.

Killed by edge_cases: zeros where
"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
extern "C" void sum(const float* x, float* y, long rows, long cols) {
    for (long r = 0; r < rows; r++) {
        float total = 0;
        for (long i = 0; i + 64 <= cols; i += 64)
            for (long l = 0; l < 64; l++) total += x[r * cols + i + l];
        y[r] = total;
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
