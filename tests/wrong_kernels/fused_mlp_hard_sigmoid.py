"""Approximates the sigmoid by a ramp.

Killed by smoke: value|wrong|precision|dtype|rows|scale|boundary
"""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "fused_mlp"
SOURCE = r"""
#include <algorithm>
extern "C" void mlp(const float* x, const float* wg, const float* wu, const float* wd, float* y,
                    long B, long D, long H) {
    for (long b = 0; b < B; b++)
        for (long h = 0; h < H; h++) {
            float gate = 0, up = 0;
            for (long d = 0; d < D; d++) {
                gate += x[b * D + d] * wg[h * D + d];
                up += x[b * D + d] * wu[h * D + d];
            }
            float hidden = gate * std::clamp(gate / 6 + 0.5f, 0.0f, 1.0f) * up;
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
