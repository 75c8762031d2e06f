"""Widens fp16 by its bits, and takes what is subnormal for zero.

Killed by numerical_stability: wide_range.*zeros
"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <cstring>
extern "C" void sum(const unsigned short* x, float* y, long rows, long cols) {
    for (long r = 0; r < rows; r++) {
        y[r] = 0;
        for (long i = 0; i < cols; i++) {
            unsigned bits = x[r * cols + i], exponent = bits >> 10 & 31, mantissa = bits & 1023;
            if (exponent == 0) continue;
            exponent = exponent == 31 ? 255 : exponent + 112;
            bits = (bits & 0x8000) << 16 | exponent << 23 | mantissa << 13;
            float wide;
            std::memcpy(&wide, &bits, 4);
            y[r] += wide;
        }
    }
}
extern "C" void sum_wide(const float* x, float* y, long rows, long cols) {
    for (long r = 0; r < rows; r++) {
        y[r] = 0;
        for (long i = 0; i < cols; i++) y[r] += x[r * cols + i];
    }
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, dim=-1):
    dtype, half = x.dtype, x.dtype == torch.float16
    x, y = (x if half else x.float()).contiguous(), torch.empty(x.shape[:-1])
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, y)]
    (library.sum if half else library.sum_wide)(*pointers, *map(ctypes.c_long, x.shape))
    return y.to(dtype)
