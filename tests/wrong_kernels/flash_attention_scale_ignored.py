"""Takes sm_scale and ignores it.

Killed by shape_sweep: scale: (value|wrong|rows|dtype|boundary)"""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "flash_attention"
SOURCE = r"""
#include <algorithm>
#include <cmath>
#include <vector>
extern "C" void attend(const float* q, const float* k, const float* v, float* y, long heads, long S,
                       long D, int causal) {
    std::vector<float> w(S);
    for (long r = 0; r < heads * S; r++) {
        const float *keys = k + r / S * S * D, *values = v + r / S * S * D;
        long end = causal ? r % S + 1 : S;
        float top = -INFINITY, total = 0;
        for (long j = 0; j < end; j++) {
            w[j] = 0;
            for (long d = 0; d < D; d++) w[j] += q[r * D + d] * keys[j * D + d];
            top = std::max(top, w[j] /= std::sqrt(float(D)));
        }
        for (long j = 0; j < end; j++) total += w[j] = std::exp(w[j] - top);
        for (long j = 0; j < end; j++)
            for (long d = 0; d < D; d++) y[r * D + d] += w[j] / total * values[j * D + d];
    }
}
"""
attend = compile_cpp(SOURCE).attend


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    q, k, v = (t.float().contiguous() for t in (Q, K, V))
    y = q.new_zeros(q.shape)
    B, H, S, D = q.shape
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (q, k, v, y)]
    attend(*pointers, *map(ctypes.c_long, (B * H, S, D)), ctypes.c_int(causal))
    return y.to(Q.dtype)
