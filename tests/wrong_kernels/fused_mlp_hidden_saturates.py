"""Saturates the hidden numbers at 448, where fp8 ends.

Killed by numerical_stability: (saturated|large_hidden).*(value|wrong|rows|precision|dtype|scale)
"""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "fused_mlp"
SOURCE = r"""
#include <algorithm>
#include <cmath>
extern "C" void mlp(const float* x, const float* wg, const float* wu, const float* wd, float* y,
                    long B, long D, long H) {
    for (long b = 0; b < B; b++)
        for (long h = 0; h < H; h++) {
            float gate = 0, up = 0;
            for (long d = 0; d < D; d++) {
                gate += x[b * D + d] * wg[h * D + d];
                up += x[b * D + d] * wu[h * D + d];
            }
            float hidden = std::clamp(gate / (1 + std::exp(-gate)) * up, -448.0f, 448.0f);
            for (long d = 0; d < D; d++) y[b * D + d] += hidden * wd[d * H + h];
        }
}
"""
mlp = compile_cpp(SOURCE).mlp


def kernel_fn(x, w_gate, w_up, w_down, activation="silu"):
    operands = [t.float().contiguous() for t in (x, w_gate, w_up, w_down)]
    y = x.new_zeros(x.shape).float()
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*operands, y)]
    mlp(*pointers, *map(ctypes.c_long, (*x.shape, w_gate.shape[0])))
    return y.to(x.dtype)
