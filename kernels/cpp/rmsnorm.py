"""RMSNorm on the CPU, in C++: one row at a time, in fp32 whatever the dtype. The starter."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "rmsnorm"
SUPPORTS = {"nd"}

# width: floats per vector; unroll: vectors in flight; threads: at most; block: rows per turn.
CONFIG = {"width": 1, "unroll": 1, "threads": 1, "block": 1}
SPACE = {
    "width": [1, 4, 8, 16, 32],
    "unroll": [1, 2, 4, 8],
    "threads": [1, 2, 4, 8],
    "block": [1, 4, 16, 64],
    "rules": ["width * unroll <= 128"],
}

SOURCE = r"""
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if WIDTH == 1
using floats = float;
inline float lane(floats v, int) { return v; }
#else  // the vectors that GCC and Clang share
using floats = float __attribute__((vector_size(4 * WIDTH)));
inline float lane(floats v, int l) { return v[l]; }
#endif
constexpr int STEP = WIDTH * UNROLL;

template <class To, class From> To bits(From value) {
    To same;
    static_assert(sizeof same == sizeof value);
    std::memcpy(&same, &value, sizeof same);
    return same;
}

struct fp16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

inline float widen(float v) { return v; }
inline float widen(bf16 v) { return bits<float>(uint32_t(v.bits) << 16); }
inline float widen(fp16 v) {
    uint32_t magnitude = (v.bits & 0x7fffu) << 13;
    float scaled = bits<float>(magnitude) * 0x1p112f;  // 127 - 15: right for subnormals too
    uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity and NaN
    return bits<float>(bits<uint32_t>(scaled) | special | (v.bits & 0x8000u) << 16);
}

// To nearest, ties to even.
inline void narrow(float v, float& out) { out = v; }
inline void narrow(float v, bf16& out) {
    uint32_t b = bits<uint32_t>(v);
    out.bits = v != v ? 0x7fc0u : (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
}
inline void narrow(float v, fp16& out) {
    // The FPU rounds: 4 |v| is added to the power of two whose last bit weighs what fp16's does.
    uint32_t b = bits<uint32_t>(v), exponent = std::max(b & 0x7f800000u, 0x38800000u);
    float four_v = std::fabs(v) * 0x1p112f * 0x1p-110f;  // infinite where fp16 overflows
    uint32_t sum = bits<uint32_t>(bits<float>(exponent + 0x07800000u) + four_v);
    uint32_t magnitude = (sum >> 13 & 0x7c00u) + (sum & 0x0fffu);
    out.bits = (b >> 16 & 0x8000u) | (v != v ? 0x7e00u : magnitude);
}

// WIDTH elements from `p` on, as fp32.
template <class T> floats load(const T* p) {
    float lanes[WIDTH];
    for (int l = 0; l < WIDTH; l++) lanes[l] = widen(p[l]);
    floats v;
    std::memcpy(&v, lanes, sizeof v);
    return v;
}

template <class T> float mean_square(const T* x, int64_t cols) {
    floats sums[UNROLL] = {};
    int64_t i = 0;
    for (; i + STEP <= cols; i += STEP)
        for (int u = 0; u < UNROLL; u++) {
            floats v = load(x + i + u * WIDTH);
            sums[u] += v * v;
        }
    float total = 0;
    for (auto& sum : sums)
        for (int l = 0; l < WIDTH; l++) total += lane(sum, l);
    for (; i < cols; i++) total += widen(x[i]) * widen(x[i]);
    return total / cols;
}

template <class T>
void rmsnorm(const T* x, const T* weight, T* y, int64_t rows, int64_t cols, float eps) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t first; (first = next.fetch_add(BLOCK)) < rows;)
            for (int64_t r = first; r < std::min(first + BLOCK, rows); r++) {
                const T* from = x + r * cols;
                float scale = 1 / std::sqrt(mean_square(from, cols) + eps);
                for (int64_t i = 0; i < cols; i++)
                    narrow(widen(from[i]) * scale * widen(weight[i]), y[r * cols + i]);
            }
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < THREADS && t * BLOCK < rows; t++) others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

#define EXPORT(NAME, T)                                                                      \
    extern "C" void NAME(const T* x, const T* w, T* y, int64_t m, int64_t n, float eps) {    \
        rmsnorm(x, w, y, m, n, eps);                                                         \
    }
EXPORT(rmsnorm_fp32, float)
EXPORT(rmsnorm_fp16, fp16)
EXPORT(rmsnorm_bf16, bf16)
"""

NAMES = {
    torch.float32: "rmsnorm_fp32",
    torch.float16: "rmsnorm_fp16",
    torch.bfloat16: "rmsnorm_bf16",
}


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[NAMES[dtype]]
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2 + [ctypes.c_float]
    function.restype = None
    return function


def kernel_fn(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dim; `weight` is [x.shape[-1]]."""
    x, weight = x.contiguous(), weight.to(x.dtype).contiguous()
    y = torch.empty_like(x)
    if y.numel():
        cols = x.shape[-1]
        pointers = (x.data_ptr(), weight.data_ptr(), y.data_ptr())
        compiled(x.dtype)(*pointers, x.numel() // cols, cols, eps)
    return y
