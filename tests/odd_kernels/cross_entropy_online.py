"""One pass in C++: the running sum is scaled anew at each new maximum. Decorated."""

import contextlib
import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index", "nd"}

SOURCE = r"""
#include <cmath>
extern "C" float loss(const float* x, const long* target, long rows, long cols, long ignored) {
    double sum = 0;
    long counted = 0;
    for (long r = 0; r < rows; r++, x += cols) {
        if (target[r] == ignored) continue;
        float top = -INFINITY, total = 0;
        for (long c = 0; c < cols; c++) {
            if (x[c] > top) {
                total = total * std::exp(top - x[c]) + 1;
                top = x[c];
            } else if (x[c] > -INFINITY) {
                total += std::exp(x[c] - top);
            }
        }
        sum += std::log(total) + (top - x[target[r]]);
        counted++;
    }
    return sum / counted;
}
"""


def counted(fn):
    """Counts its calls, as a profiler would."""

    @functools.wraps(fn)
    def call(*args, **kwargs):
        call.count += 1
        return fn(*args, **kwargs)

    call.count = 0
    return call


@functools.cache
def loss():
    function = compile_cpp(SOURCE).loss
    function.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 3
    function.restype = ctypes.c_float
    return function


@counted
@torch.no_grad()
def kernel_fn(logits, targets, *, ignore_index=-100):
    with contextlib.ExitStack():
        x, target = logits.float().contiguous(), targets.contiguous()
        args = x.data_ptr(), target.data_ptr(), target.numel(), x.shape[-1], ignore_index
        return torch.tensor(loss()(*args), dtype=logits.dtype)
