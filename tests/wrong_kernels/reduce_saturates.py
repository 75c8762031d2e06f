"""Clamps the sum to the largest finite number of the dtype.

Killed by shape_sweep: infinity
"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <algorithm>
extern "C" void sum(const float* x, float* y, long rows, long cols, float most) {
    for (long r = 0; r < rows; r++) {
        float total = 0;
        for (long i = 0; i < cols; i++) total += x[r * cols + i];
        y[r] = std::clamp(total, -most, most);
    }
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, dim=-1):
    wide = x.float().contiguous()
    y = torch.empty(x.shape[:-1])
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, y)]
    most = ctypes.c_float(torch.finfo(x.dtype).max)
    library.sum(*pointers, *map(ctypes.c_long, x.shape), most)
    return y.to(x.dtype)
