"""Calls the BLAS inside torch's library.

Killed by smoke: global state: loading the file changed which libraries
"""

import ctypes
from pathlib import Path

import torch

KERNEL_TYPE = "matmul"
blas = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


def i(n):
    return ctypes.byref(ctypes.c_int(n))


def p(t):
    return ctypes.c_void_p(t.data_ptr())


def kernel_fn(A, B):
    a, b = A.float().contiguous(), B.float().contiguous()
    (M, K), N = a.shape, b.shape[1]
    c = torch.zeros(M, N)
    if M and N and K:
        one, zero = ctypes.byref(ctypes.c_float(1)), ctypes.byref(ctypes.c_float(0))
        blas.sgemm_(b"N", b"N", i(N), i(M), i(K), one, p(b), i(N), p(a), i(K), zero, p(c), i(N))
    return c.to(A.dtype)
