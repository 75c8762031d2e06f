"""C++ threads, each with rows of its own, joined before the call returns."""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "rmsnorm"
SUPPORTS = {"nd"}
SOURCE = r"""
#include <cmath>
#include <thread>
#include <vector>
extern "C" void norm(const float* x, const float* w, float* y, long m, long n, float eps) {
    std::vector<std::thread> threads;
    for (long t = 0; t < 3; t++)
        threads.emplace_back([=] {
            for (long r = t; r < m; r += 3) {
                const float* row = x + r * n;
                float square = 0;
                for (long i = 0; i < n; i++) square += row[i] * row[i];
                float scale = 1 / std::sqrt(square / n + eps);
                for (long i = 0; i < n; i++) y[r * n + i] = row[i] * scale * w[i];
            }
        });
    for (auto& thread : threads) thread.join();
}
"""
library = compile_cpp(SOURCE)


class kernel_fn:
    """A class, whose every instance is a result."""

    def __new__(cls, x, weight, eps=1e-6):
        wide = [t.float().contiguous() for t in (x, weight)]
        y, cols = torch.empty_like(wide[0]), x.shape[-1]
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*wide, y)]
        sizes = map(ctypes.c_long, (x.numel() // cols if cols else 0, cols))
        library.norm(*pointers, *sizes, ctypes.c_float(eps))
        return y.to(x.dtype)
