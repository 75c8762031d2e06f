"""Returns at once, and has a thread fill the result later. Killed by smoke: NaN"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <chrono>
#include <thread>
#include <vector>
extern "C" void sum(const float* x, float* y, long rows, long cols) {
    std::vector<float> copy(x, x + rows * cols);
    std::thread([=, x = std::move(copy)] {
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        for (long r = 0; r < rows; r++) {
            y[r] = 0;
            for (long i = 0; i < cols; i++) y[r] += x[r * cols + i];
        }
    }).detach();
}
"""
library, kept = compile_cpp(SOURCE), []


def kernel_fn(x, dim=-1):
    wide = x.float().contiguous()
    y = torch.empty(x.shape[:-1])
    kept.append(y)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, y)]
    library.sum(*pointers, *map(ctypes.c_long, x.shape))
    return y if x.dtype == y.dtype else y.to(x.dtype)
