"""Has room for the sums of 128 chunks of 4,096, and leaves out what a longer row has beyond.

Killed by edge_cases: 1x1000003 fp16
"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <algorithm>
extern "C" void sum(const float* x, float* y, long rows, long cols) {
    for (long r = 0; r < rows; r++) {
        float sums[128] = {};
        for (long c = 0; c < 128; c++)
            for (long i = c * 4096; i < std::min(cols, c * 4096 + 4096); i++)
                sums[c] += x[r * cols + i];
        y[r] = 0;
        for (float part : sums) y[r] += part;
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
