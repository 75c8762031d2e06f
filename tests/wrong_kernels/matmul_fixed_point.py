"""Multiplies 15-bit integers, with one scale for a whole matrix.

Killed by smoke: value|precision|dtype|wrong|scale|boundary"""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "matmul"
SOURCE = r"""
#include <algorithm>
#include <cmath>
#include <vector>
std::vector<short> fixed(const float* x, long n, float& step) {
    float top = 1e-30f;
    for (long i = 0; i < n; i++) top = std::max(top, std::fabs(x[i]));
    step = top / 32767;
    std::vector<short> y(n);
    for (long i = 0; i < n; i++) y[i] = std::round(x[i] / step);
    return y;
}
extern "C" void product(const float* a, const float* b, float* c, long M, long N, long K) {
    float left, right;
    auto x = fixed(a, M * K, left), y = fixed(b, K * N, right);
    for (long i = 0; i < M; i++)
        for (long j = 0; j < N; j++) {
            long long total = 0;
            for (long k = 0; k < K; k++) total += x[i * K + k] * y[k * N + j];
            c[i * N + j] = left * right * total;
        }
}
"""
product = compile_cpp(SOURCE).product


def kernel_fn(A, B):
    a, b = A.float().contiguous(), B.float().contiguous()
    (M, K), N = A.shape, B.shape[1]
    c = a.new_empty(M, N)
    product(*(ctypes.c_void_p(t.data_ptr()) for t in (a, b, c)), *map(ctypes.c_long, (M, N, K)))
    return c.to(A.dtype)
