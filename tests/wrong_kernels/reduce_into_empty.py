"""Adds to what torch.empty gave it. Killed by smoke: NaN"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
extern "C" void sum(const float* x, float* y, long rows, long cols) {
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < cols; i++) y[r] += x[r * cols + i];
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, dim=-1):
    wide = x.float().contiguous()
    y = torch.empty(x.shape[:-1])
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, y)]
    library.sum(*pointers, *map(ctypes.c_long, x.shape))
    return y.to(x.dtype)
