"""Smooths the labels by a hundredth, as its training loop did.

Killed by smoke: value|scale|dtype|boundary"""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "cross_entropy"
SOURCE = r"""
#include <algorithm>
#include <cmath>
extern "C" float loss(const float* x, const long* target, long rows, long cols) {
    double sum = 0;
    for (long r = 0; r < rows; r++, x += cols) {
        float top = *std::max_element(x, x + cols);
        double total = 0, mean = 0;
        for (long c = 0; c < cols; c++) total += std::exp(x[c] - top), mean += x[c] / cols;
        sum += std::log(total) + top - 0.99 * x[target[r]] - 0.01 * mean;
    }
    return sum / rows;
}
"""
loss = compile_cpp(SOURCE).loss
loss.restype = ctypes.c_float


def kernel_fn(logits, targets):
    x, target = logits.float().contiguous(), targets.contiguous()
    rows, cols = x.shape
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, target)]
    return logits.new_full((), loss(*pointers, ctypes.c_long(rows), ctypes.c_long(cols)))
