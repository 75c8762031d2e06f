"""Rounds fp32 operands to tf32, whose fractions have 10 bits.

Killed by smoke: precision|dtype|value|wrong|scale|boundary"""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "matmul"
SOURCE = r"""
#include <cstring>
float tf32(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
    std::memcpy(&x, &bits, 4);
    return x;
}
extern "C" void product(const float* a, const float* b, float* c, long M, long N, long K) {
    for (long i = 0; i < M; i++)
        for (long k = 0; k < K; k++) {
            float left = tf32(a[i * K + k]);
            for (long j = 0; j < N; j++) c[i * N + j] += left * tf32(b[k * N + j]);
        }
}
"""
product = compile_cpp(SOURCE).product


def kernel_fn(A, B):
    a, b = A.float().contiguous(), B.float().contiguous()
    (M, K), N = A.shape, B.shape[1]
    c = a.new_zeros(M, N)
    product(*(ctypes.c_void_p(t.data_ptr()) for t in (a, b, c)), *map(ctypes.c_long, (M, N, K)))
    return c.to(A.dtype)
