"""LayerNorm on the CPU, in C++: one row at a time, in fp32 whatever the dtype."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "layernorm"
SUPPORTS = {"nd"}

# width: floats per vector; unroll: vectors in flight; threads: at most, one per so many thousands
# of elements (grain), because two busy cores take 0.1 ms and more to start one; block: rows per
# turn.
CONFIG = {"width": 8, "unroll": 4, "threads": 2, "grain": 1000, "block": 16}
SPACE = {
    "width": [4, 8, 16, 32],
    "unroll": [1, 2, 4, 8],
    "threads": [1, 2, 4, 8, 16],
    "grain": [1, 100, 1000, 10000],
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

using floats = float __attribute__((vector_size(4 * WIDTH)));  // GCC's and Clang's
constexpr int STEP = WIDTH * UNROLL;
constexpr int LINE = 16;  // elements written between two prefetches

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

// A row as fp32: itself, or a copy in `room`.
inline const float* widened(const float* x, int64_t, float*) { return x; }
template <class T> const float* widened(const T* x, int64_t cols, float* room) {
    for (int64_t i = 0; i < cols; i++) room[i] = widen(x[i]);
    return room;
}

inline floats load(const float* p) { floats v; std::memcpy(&v, p, sizeof v); return v; }

// The mean of f(x) over a row; `f` takes vectors and single elements.
template <class F> float mean(const float* x, int64_t cols, F f) {
    floats sums[UNROLL] = {};
    int64_t i = 0;
    for (; i + STEP <= cols; i += STEP)
        for (int u = 0; u < UNROLL; u++) sums[u] += f(load(x + i + u * WIDTH));
    for (int u = 1; u < UNROLL; u++) sums[0] += sums[u];
    float total = 0;
    for (int l = 0; l < WIDTH; l++) total += sums[0][l];
    for (; i < cols; i++) total += f(x[i]);
    return total / cols;
}

// While a row is written the next one is fetched: an address past the end does no harm.
template <class T>
void layernorm_row(
    const T* x, const float* w, const float* b, T* __restrict y, int64_t cols, float eps,
    float* room) {
    const float* row = widened(x, cols, room);
    float middle = mean(row, cols, [](auto v) { return v; });
    float variance = mean(row, cols, [=](auto v) { return (v - middle) * (v - middle); });
    float scale = 1 / std::sqrt(variance + eps);
    auto write = [=](int64_t i) { narrow((row[i] - middle) * scale * w[i] + b[i], y[i]); };
    int64_t i = 0;
    for (; i + LINE <= cols; i += LINE) {
        __builtin_prefetch(x + cols + i);
        for (int l = 0; l < LINE; l++) write(i + l);
    }
    for (; i < cols; i++) write(i);
}

template <class T>
void layernorm(
    const T* x, const float* w, const float* b, T* y, int64_t rows, int64_t cols, float eps) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        std::vector<float> room(cols);
        for (int64_t first; (first = next.fetch_add(BLOCK)) < rows;)
            for (int64_t r = first; r < std::min(first + BLOCK, rows); r++)
                layernorm_row(x + r * cols, w, b, y + r * cols, cols, eps, room.data());
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < THREADS && t * GRAIN * 1000 < rows * cols; t++)
        others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

#define EXPORT(NAME, T)                                                                        \
    extern "C" void NAME(                                                                      \
        const T* x, const float* w, const float* b, T* y, int64_t m, int64_t n, float eps) {   \
        layernorm(x, w, b, y, m, n, eps);                                                      \
    }
EXPORT(layernorm_fp32, float)
EXPORT(layernorm_fp16, fp16)
EXPORT(layernorm_bf16, bf16)
"""

NAMES = {
    torch.float32: "layernorm_fp32",
    torch.float16: "layernorm_fp16",
    torch.bfloat16: "layernorm_bf16",
}


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[NAMES[dtype]]
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2 + [ctypes.c_float]
    function.restype = None
    return function


def kernel_fn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim, of which the latter are."""
    x, weight, bias = x.contiguous(), weight.float().contiguous(), bias.float().contiguous()
    y = torch.empty_like(x)
    if y.numel():
        cols = x.shape[-1]
        pointers = (t.data_ptr() for t in (x, weight, bias, y))
        compiled(x.dtype)(*pointers, x.numel() // cols, cols, eps)
    return y
