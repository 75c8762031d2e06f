"""Compensated sums (Kahan's), one result at a time, from B's columns copied into rows."""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "matmul"
SUPPORTS = ["batched"]

SOURCE = r"""
#include <cstdint>
extern "C" void product(const float* a, const float* bt, float* c,
                        int64_t M, int64_t N, int64_t K) {
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            float total = 0, lost = 0;
            for (int64_t k = 0; k < K; k++) {
                float term = a[i * K + k] * bt[j * K + k] - lost;
                float next = total + term;
                lost = (next - total) - term;
                total = next;
            }
            c[i * N + j] = total;
        }
}
"""
PRODUCT = compile_cpp(SOURCE, flags=["-O1"]).product
PRODUCT.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3


@torch.inference_mode()
def kernel_fn(A, B):
    a, bt = A.float().contiguous(), B.mT.float().contiguous()
    c = torch.empty(*A.shape[:-1], B.shape[-1])
    for index in range(A.shape[0] if A.dim() == 3 else 1):
        at = (index,) if A.dim() == 3 else ()
        pointers = (t[at].data_ptr() for t in (a, bt, c))
        PRODUCT(*pointers, A.shape[-2], B.shape[-1], A.shape[-1])
    return c.to(A.dtype)
