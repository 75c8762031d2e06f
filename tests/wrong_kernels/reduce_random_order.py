"""Begins each row's sum at a random place, as atomics would. Killed by determinism: not determ"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <chrono>
#include <random>
extern "C" void sum(const float* x, float* y, long rows, long cols) {
    std::minstd_rand next(std::chrono::steady_clock::now().time_since_epoch().count());
    for (long r = 0; r < rows; r++) {
        long first = cols ? next() % cols : 0;
        float total = 0;
        for (long i = first; i < cols; i++) total += x[r * cols + i];
        for (long i = 0; i < first; i++) total += x[r * cols + i];
        y[r] = total;
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
