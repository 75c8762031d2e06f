"""Each product stores its result in the dtype, as where the activation is a kernel of its own."""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "fused_mlp"
SOURCE = r"""
#include <cmath>
extern "C" void product(const float* a, const float* b, float* c, long m, long n, long k) {
    for (long i = 0; i < m; i++)
        for (long j = 0; j < n; j++, c++) {
            float lanes[16] = {};
            for (long l = 0; l < k; l++) lanes[l % 16] += a[i * k + l] * b[j * k + l];
            *c = 0;
            for (float lane : lanes) *c += lane;
        }
}
extern "C" void gated(const float* gate, const float* up, float* hidden, long count) {
    for (long i = 0; i < count; i++) hidden[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}
"""
library = compile_cpp(SOURCE)


def product(a, b):
    c = a.new_empty(len(a), len(b), dtype=torch.float32)
    wide = [t.float().contiguous() for t in (a, b)]
    sizes = map(ctypes.c_long, (len(a), len(b), a.shape[1]))
    library.product(*(ctypes.c_void_p(t.data_ptr()) for t in (*wide, c)), *sizes)
    return c.to(a.dtype)


def kernel_fn(x, w_gate, w_up, w_down, activation="silu"):
    gate, up = product(x, w_gate).float(), product(x, w_up).float()
    hidden = torch.empty_like(gate)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (gate, up, hidden)]
    library.gated(*pointers, ctypes.c_long(hidden.numel()))
    return product(hidden.to(x.dtype), w_down)
