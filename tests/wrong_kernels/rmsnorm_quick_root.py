"""The root by its famous bits, and one step of Newton's. Killed by smoke: off by|precision|dtype"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "rmsnorm"
SOURCE = r"""
#include <cstring>
extern "C" void norm(const float* x, const float* w, float* y, long m, long n, float eps) {
    for (long r = 0; r < m; r++, x += n, y += n) {
        float square = 0;
        for (long i = 0; i < n; i++) square += x[i] * x[i];
        float mean = square / n + eps, root;
        int bits;
        std::memcpy(&bits, &mean, 4);
        bits = 0x5f3759df - (bits >> 1);
        std::memcpy(&root, &bits, 4);
        root *= 1.5f - 0.5f * mean * root * root;
        for (long i = 0; i < n; i++) y[i] = x[i] * root * w[i];
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
