"""Exactly, by a bin of integers for each exponent. Names in a chain; kernel_fn in a branch."""

import ctypes
import sys

import torch

from pytest_autokernel import compile as cpp

OP = KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
extern "C" void sum(const float* x, float* y, long m, long n) {
    for (; m--; y++) {
        int64_t bins[255] = {};
        float special = 0;  // what is no number, or not finite
        for (long i = 0; i < n; i++, x++) {
            uint32_t bits;
            std::memcpy(&bits, x, 4);
            const uint32_t exponent = bits >> 23 & 255, low = bits & 0x7fffff;
            if (exponent == 255) {
                special += *x;
                continue;
            }
            const int64_t significand = exponent ? low | 0x800000 : low;
            bins[exponent ? exponent : 1] += bits >> 31 ? -significand : significand;
        }
        long double total = 0;
        for (int e = 1; e < 255; e++) total += std::ldexp((long double)bins[e], e - 150);
        *y = special != 0 ? special : (float)total;
    }
}
"""
if sys.byteorder == "little":
    library = cpp.compile_cpp(SOURCE)

    def kernel_fn(x, dim=-1):
        wide, y = x.float().contiguous(), torch.empty(x.shape[0])
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, y)]
        library.sum(*pointers, *map(ctypes.c_long, x.shape))
        return y.to(x.dtype)

else:
    kernel_fn = None
