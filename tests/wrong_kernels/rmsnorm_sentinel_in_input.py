"""Puts a zero behind each input, for a loop that ends there. Killed by smoke: write outside"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "rmsnorm"
SOURCE = r"""
#include <cmath>
extern "C" void norm(float* x, const float* w, float* y, long m, long n, float eps) {
    if (m > 0) x[m * n] = 0;
    for (long r = 0; r < m; r++, x += n, y += n) {
        float square = 0;
        for (long i = 0; i < n; i++) square += x[i] * x[i];
        for (long i = 0; i < n; i++) y[i] = x[i] / std::sqrt(square / n + eps) * w[i];
    }
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, weight, eps=1e-6):
    wide = [t.float().contiguous() for t in (x, weight)]
    y = torch.empty(x.shape)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*wide, y)]
    library.norm(*pointers, *map(ctypes.c_long, x.shape), ctypes.c_float(eps))
    return y.to(x.dtype)
