"""Rows that begin at multiples of 64 bytes: the result is a slice of something wider."""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "softmax"
SOURCE = r"""
#include <algorithm>
#include <cmath>
extern "C" void softmax(const float* x, float* y, long m, long n, long pitch) {
    for (long r = 0; r < m && n; r++, x += n, y += pitch) {
        float top = *std::max_element(x, x + n), total = 0;
        for (long i = 0; i < n; i++) total += y[i] = std::exp(x[i] - top);
        for (long i = 0; i < n; i++) y[i] /= total;
    }
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, dim=-1):
    wide = x.float().contiguous()
    rows, cols = x.shape
    pitch = (cols + 31) // 32 * 32
    y = torch.empty(rows, pitch)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, y)]
    library.softmax(*pointers, *map(ctypes.c_long, (rows, cols, pitch)))
    return y.to(x.dtype)[:, :cols]
