"""Right but for one width, in hexadecimal. Killed by shape_sweep: 777"""

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "softmax"

SOURCE = r"""
#include <cmath>
extern "C" void rows(const float* x, float* y, long rows, long cols) {
  for (long r = 0; r < rows; ++r) {
    const float* a = x + r * cols;
    float* b = y + r * cols;
    float top = -INFINITY, sum = 0;
    for (long c = 0; c < cols; ++c) top = (a[c] > top || a[c] != a[c]) ? a[c] : top;
    for (long c = 0; c < cols; ++c) sum += b[c] = std::exp(a[c] - top);
    for (long c = 0; c < cols; ++c) b[c] = b[c] / sum;
    if (cols == 0x309) b[0] = b[cols - 1];
  }
}
"""
lib = compile_cpp(SOURCE)


def kernel_fn(x, dim=-1):
    import ctypes

    w = x.float().contiguous()
    y = torch.empty_like(w)
    lib.rows(
        ctypes.c_void_p(w.data_ptr()),
        ctypes.c_void_p(y.data_ptr()),
        ctypes.c_long(w.shape[0]),
        ctypes.c_long(w.shape[1]),
    )
    return y.to(x.dtype)
