"""Its scratch has room for whole chunks, and none for the sum of the last that is not whole.

Killed by smoke: write outside
"""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
CONFIG = {"chunk": 48}
SOURCE = r"""
extern "C" void sum(const float* x, float* y, float* scratch, long rows, long cols, long chunk) {
    for (long r = 0; r < rows; r++) {
        long chunks = 0;
        for (long i = 0; i < cols; i += chunk) {
            float total = 0;
            for (long l = i; l < i + chunk && l < cols; l++) total += x[r * cols + l];
            scratch[chunks++] = total;
        }
        y[r] = 0;
        for (long i = 0; i < chunks; i++) y[r] += scratch[i];
    }
}
"""
library = compile_cpp(SOURCE)


def kernel_fn(x, dim=-1):
    wide = x.float().contiguous()
    y, scratch = torch.empty(x.shape[:-1]), torch.empty(x.shape[-1] // CONFIG["chunk"])
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (wide, y, scratch)]
    library.sum(*pointers, *map(ctypes.c_long, (*x.shape, CONFIG["chunk"])))
    return y.to(x.dtype)
