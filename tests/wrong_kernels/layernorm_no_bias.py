"""Takes a bias, and leaves it out. Killed by smoke: off by"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "layernorm"
SOURCE = r"""
#include <cmath>
extern "C" void norm(const float* x, const float* w, const float* b, float* y, long m, long n,
                     float eps) {
    for (long r = 0; r < m; r++, x += n, y += n) {
        float mean = 0, variance = 0;
        for (long i = 0; i < n; i++) mean += x[i] / n;
        for (long i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean) / n;
        for (long j = 0; j < n; j++)
            y[j] = (x[j] - mean) / std::sqrt(variance + eps) * w[j];
    }
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, weight, bias, eps=1e-5):
    wide = [t.float().contiguous() for t in (x, weight, bias)]
    y = torch.empty(x.shape)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*wide, y)]
    library.norm(*pointers, *map(ctypes.c_long, x.shape), ctypes.c_float(eps))
    return y.to(x.dtype)
