"""Compiles at its first call, and asks the compiler something before, in the way that Triton starts
its own (by posix_spawn)."""

import ctypes
import functools
import shutil
import subprocess

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
extern "C" void sums(const float* x, float* y, long rows, long cols) {
    for (long r = 0; r < rows; r++) {
        double sum = 0;
        for (long c = 0; c < cols; c++) sum += x[r * cols + c];
        y[r] = sum;
    }
}
"""


@functools.cache
def library():
    asked = (shutil.which("c++"), "-dumpversion")
    version = subprocess.run(asked, close_fds=False, check=True, stdout=subprocess.PIPE).stdout
    return compile_cpp(f"// for {int(version.split(b'.')[0])}\n{SOURCE}")


def kernel_fn(x, dim=-1):
    wide = x.float().contiguous()
    y = torch.empty(x.shape[:-1])
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (wide, y))
    library().sums(*pointers, ctypes.c_long(y.numel()), ctypes.c_long(x.shape[-1]))
    return y.to(x.dtype)
