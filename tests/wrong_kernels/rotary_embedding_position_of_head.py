"""Takes each head's position from where the head lies in memory.

Killed by smoke: value|wrong|rows|dtype|scale|boundary"""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "rotary_embedding"
SOURCE = r"""
extern "C" void rotate(const float* x, const float* cos, const float* sin, float* y, long heads,
                       long S, long half) {
    for (long h = 0; h < heads; h++)
        for (long s = 0; s < S; s++)
            for (long i = 0; i < half; i++, x += 2, y += 2) {
                long entry = ((h + s) % S) * half + i;
                y[0] = x[0] * cos[entry] - x[1] * sin[entry];
                y[1] = x[0] * sin[entry] + x[1] * cos[entry];
            }
}
"""
rotate = compile_cpp(SOURCE).rotate


def kernel_fn(x, cos, sin):
    operands = [t.float().contiguous() for t in (x, cos, sin)]
    y, (B, H, S, D) = operands[0].new_empty(x.shape), x.shape
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*operands, y)]
    rotate(*pointers, *map(ctypes.c_long, (B * H, S, D // 2)))
    return y.to(x.dtype)
