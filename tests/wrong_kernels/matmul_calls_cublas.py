"""Calls cuBLAS by its C interface, where no torch operator is seen.

Needs a GPU. Killed by roofline: launches .*(nvjet|gemm|cutlass|cublas)
"""

import ctypes

import torch

KERNEL_TYPE = "matmul"
TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}


def library():
    for name in ("libcublas.so.13", "libcublas.so.12"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ImportError("no cuBLAS")


blas = library()
handle = ctypes.c_void_p()


def kernel_fn(A, B):
    A, B = A.contiguous(), B.contiguous()
    (m, k), n = A.shape, B.shape[1]
    C = torch.zeros(m, n, dtype=A.dtype, device=A.device)
    if not (m and n and k):
        return C
    if not handle:
        blas.cublasCreate_v2(ctypes.byref(handle))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    blas.cublasSetStream_v2(handle, stream)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    kind = TYPES[A.dtype]
    blas.cublasGemmEx(
        handle,
        0,
        0,
        n,
        m,
        k,
        ctypes.byref(one),
        ctypes.c_void_p(B.data_ptr()),
        kind,
        n,
        ctypes.c_void_p(A.data_ptr()),
        kind,
        k,
        ctypes.byref(zero),
        ctypes.c_void_p(C.data_ptr()),
        kind,
        n,
        68,
        -1,
    )
    return C
