"""Makes NaN and infinities finite before it begins. Killed by shape_sweep: relation spoiled"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "rmsnorm"
SOURCE = r"""
#include <cmath>
float finite(float v) { return v != v ? 0 : std::fmin(std::fmax(v, -65504), 65504); }
extern "C" void norm(const float* x, const float* w, float* y, long m, long n, float eps) {
    for (long r = 0; r < m; r++, x += n, y += n) {
        float square = 0;
        for (long i = 0; i < n; i++) square += finite(x[i]) * finite(x[i]);
        for (long i = 0; i < n; i++) y[i] = finite(x[i]) / std::sqrt(square / n + eps) * w[i];
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
