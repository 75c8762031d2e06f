"""Keys in the outer loop, queries in the inner one: each query's state waits in memory, in C++."""

import ctypes

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"gqa", "cross", "head_dim"}

SOURCE = r"""
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

static void one_head(const float* q, const float* k, const float* v, float* y, int64_t SQ,
                     int64_t SK, int64_t D, bool causal, float scale) {
    std::vector<float> top(SQ, -std::numeric_limits<float>::infinity()), total(SQ, 0.0f);
    for (int64_t j = 0; j < SK; ++j, k += D, v += D)
        for (int64_t i = causal ? j : 0; i < SQ; ++i) {
            float score = 0;
            for (int64_t d = 0; d < D; ++d) score += q[i * D + d] * k[d];
            score *= scale;
            float shrink = 1;
            if (score > top[i]) {
                shrink = std::exp(top[i] - score);
                top[i] = score;
            }
            const float weight = std::exp(score - top[i]);
            total[i] = total[i] * shrink + weight;
            for (int64_t d = 0; d < D; ++d) y[i * D + d] = y[i * D + d] * shrink + weight * v[d];
        }
    for (int64_t i = 0; i < SQ; ++i)
        for (int64_t d = 0; d < D; ++d) y[i * D + d] /= total[i];
}

extern "C" void attend(const float* q, const float* k, const float* v, float* y, int64_t heads,
                       int64_t group, int64_t SQ, int64_t SK, int64_t D, int causal, float scale) {
    for (int64_t h = 0; h < heads; ++h)
        one_head(q + h * SQ * D, k + h / group * SK * D, v + h / group * SK * D, y + h * SQ * D,
                 SQ, SK, D, causal, scale);
}
"""
_attend = compile_cpp(SOURCE).attend
_attend.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 5 + [ctypes.c_int, ctypes.c_float]
_attend.restype = None


def kernel_fn(Q, K, V, /, causal=True, sm_scale=None):
    wide = [t.float().contiguous() for t in (Q, K, V)]
    (B, H, SQ, D), (G, SK) = Q.shape, K.shape[1:3]
    y = wide[0].new_zeros(Q.shape)
    scale = D**-0.5 if sm_scale is None else sm_scale
    pointers = [t.data_ptr() for t in (*wide, y)]
    _attend(*pointers, B * H, H // G, SQ, SK, D, causal, scale)
    return y.to(Q.dtype)
