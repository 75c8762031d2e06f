"""Multiplies complex numbers, which pairs of neighbours are in C++."""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "rotary_embedding"

SOURCE = r"""
#include <complex>
using number = std::complex<double>;
extern "C" void rotate(number* x, const double* cos, const double* sin, long heads, long entries) {
    for (number* end = x + heads * entries; x < end; x += entries)
        for (long i = 0; i < entries; ++i) x[i] *= number(cos[i], sin[i]);
}
"""
rotate = compile_cpp(SOURCE, flags=["-fcx-limited-range"]).rotate


def kernel_fn(x, cos, sin):
    y, c, s = (t.double().contiguous() for t in (x, cos, sin))
    sizes = x.shape[0] * x.shape[1], cos.numel()
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (y, c, s)]
    rotate(*pointers, *map(ctypes.c_long, sizes))
    return y.to(x.dtype)
