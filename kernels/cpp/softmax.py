"""Softmax on the CPU, in C++: one row at a time, in fp32 whatever the dtype. The starter."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim", "nd"}

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
using words = uint32_t;
inline float lane(floats v, int) { return v; }
#else  // the vectors that GCC and Clang share
using floats = float __attribute__((vector_size(4 * WIDTH)));
using words = uint32_t __attribute__((vector_size(4 * WIDTH)));
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

inline floats load(const float* p) { floats v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, floats v) { std::memcpy(p, &v, sizeof v); }

// e^x for x <= 0 to 1 ulp: 2^n e^r with |r| <= ln(2) / 2, e^r by Cephes' polynomial; 0 where
// the result would be subnormal.
inline floats exponential(floats x) {
    constexpr float SHIFT = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
    floats shifted = x * 1.44269504f + SHIFT;
    floats n = shifted - SHIFT;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    floats power = bits<floats>((bits<words>(shifted) << 23) + 0x3f800000u);
    return x < -87.0f ? floats{} : p * power;
}

// `row` is scratch, a whole number of steps long.
template <class T> void softmax_row(const T* x, T* y, int64_t cols, std::vector<float>& row) {
    std::fill(row.end() - STEP, row.end(), -INFINITY);
    for (int64_t i = 0; i < cols; i++) row[i] = widen(x[i]);

    floats top[UNROLL], sum[UNROLL];
    for (int u = 0; u < UNROLL; u++) top[u] = floats{} - INFINITY, sum[u] = floats{};
    for (size_t i = 0; i < row.size(); i += STEP)
        for (int u = 0; u < UNROLL; u++) {
            floats v = load(&row[i + u * WIDTH]);
            top[u] = v > top[u] ? v : top[u];
        }
    float max = -INFINITY;
    for (int u = 0; u < UNROLL; u++)
        for (int l = 0; l < WIDTH; l++) max = std::max(max, lane(top[u], l));

    for (size_t i = 0; i < row.size(); i += STEP)
        for (int u = 0; u < UNROLL; u++) {
            floats e = exponential(load(&row[i + u * WIDTH]) - max);
            store(&row[i + u * WIDTH], e);
            sum[u] += e;
        }
    float total = 0;
    for (int u = 0; u < UNROLL; u++)
        for (int l = 0; l < WIDTH; l++) total += lane(sum[u], l);
    for (int64_t i = 0; i < cols; i++) narrow(row[i] / total, y[i]);
}

template <class T> void softmax(const T* x, T* y, int64_t rows, int64_t cols) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        std::vector<float> row((cols + STEP - 1) / STEP * STEP);
        for (int64_t first; (first = next.fetch_add(BLOCK)) < rows;)
            for (int64_t r = first; r < std::min(first + BLOCK, rows); r++)
                softmax_row(x + r * cols, y + r * cols, cols, row);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < THREADS && t * BLOCK < rows; t++) others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

extern "C" {
void softmax_fp32(const float* x, float* y, int64_t m, int64_t n) { softmax(x, y, m, n); }
void softmax_fp16(const fp16* x, fp16* y, int64_t m, int64_t n) { softmax(x, y, m, n); }
void softmax_bf16(const bf16* x, bf16* y, int64_t m, int64_t n) { softmax(x, y, m, n); }
}
"""

NAMES = {
    torch.float32: "softmax_fp32",
    torch.float16: "softmax_fp16",
    torch.bfloat16: "softmax_bf16",
}


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[NAMES[dtype]]
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    function.restype = None
    return function


def kernel_fn(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax of `x` over `dim`; same shape and dtype, contiguous."""
    rows = x.movedim(dim, -1).contiguous()
    y = torch.empty_like(rows)
    if y.numel():
        cols = rows.shape[-1]
        compiled(x.dtype)(rows.data_ptr(), y.data_ptr(), rows.numel() // cols, cols)
    return y.movedim(-1, dim).contiguous()
