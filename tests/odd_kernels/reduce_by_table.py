"""Widens halves by tables that are made at import, 65,536 entries each."""

import ctypes

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
#include <cstdint>
extern "C" void sum(const uint16_t* x, const float* table, float* y, int64_t m, int64_t n) {
    for (int64_t r = 0; r < m; r++)
        for (int64_t i = 0; i < n; i++) y[r] += table[*x++];
}
extern "C" void sum_wide(const float* x, const float*, float* y, int64_t m, int64_t n) {
    for (int64_t r = 0; r < m; r++)
        for (int64_t i = 0; i < n; i++) y[r] += *x++;
}
"""
LIBRARY = compile_cpp(SOURCE)
EVERY = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
TABLES = {dtype: EVERY.view(dtype).float() for dtype in (torch.float16, torch.bfloat16)}


def kernel_fn(x, dim=-1):
    x, y = x.contiguous(), torch.zeros(x.shape[0])
    table = TABLES.get(x.dtype)
    function = LIBRARY.sum_wide if table is None else LIBRARY.sum
    pointers = [None if t is None else t.data_ptr() for t in (x, table, y)]
    function(*map(ctypes.c_void_p, pointers), *map(ctypes.c_int64, x.shape))
    return y.to(x.dtype)
