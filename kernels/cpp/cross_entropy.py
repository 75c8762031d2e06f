"""Cross-entropy on the CPU, in C++: each row read once, in tiles, in fp32 whatever the dtype."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index", "nd"}

# width: floats per vector; unroll: vectors in flight; tile: columns at once, which are to stay in
# the first cache; threads: at most, one per so many thousands of elements (grain), because two busy
# cores take 0.1 ms and more to start one; block: rows per turn.
CONFIG = {"width": 8, "unroll": 4, "tile": 1024, "threads": 2, "grain": 1000, "block": 1}
SPACE = {
    "width": [4, 8, 16, 32],
    "unroll": [1, 2, 4, 8],
    "tile": [256, 512, 1024, 2048, 4096, 8192],
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
using words = uint32_t __attribute__((vector_size(4 * WIDTH)));
constexpr int STEP = WIDTH * UNROLL;
constexpr int64_t IGNORED = -100;

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

// Over a whole number of steps; NaN is passed over.
inline float maximum(const float* x, int64_t cols) {
    floats tops[UNROLL];
    for (auto& top : tops) top = floats{} - INFINITY;
    for (int64_t i = 0; i < cols; i += STEP)
        for (int u = 0; u < UNROLL; u++) {
            floats v = load(x + i + u * WIDTH);
            tops[u] = v > tops[u] ? v : tops[u];
        }
    float top = -INFINITY;
    for (int u = 1; u < UNROLL; u++) tops[0] = tops[u] > tops[0] ? tops[u] : tops[0];
    for (int l = 0; l < WIDTH; l++) top = std::max(top, tops[0][l]);
    return top;
}

// Of e^(x - base), over a whole number of steps.
inline float sum_of_powers(const float* x, int64_t cols, float base) {
    floats sums[UNROLL] = {};
    for (int64_t i = 0; i < cols; i += STEP)
        for (int u = 0; u < UNROLL; u++) sums[u] += exponential(load(x + i + u * WIDTH) - base);
    float total = 0;
    for (int u = 1; u < UNROLL; u++) sums[0] += sums[u];
    for (int l = 0; l < WIDTH; l++) total += sums[0][l];
    return total;
}

// log(sum(e^x)) - x[target]; the sum is scaled anew when a tile has a higher maximum.
template <class T> float row_loss(const T* x, int64_t target, int64_t cols) {
    float tile[TILE], top = -INFINITY, total = 0;
    for (int64_t start = 0; start < cols; start += TILE) {
        int64_t used = std::min<int64_t>(TILE, cols - start);
        int64_t whole = (used + STEP - 1) / STEP * STEP;
        for (int64_t i = 0; i < used; i++) tile[i] = widen(x[start + i]);
        std::fill(tile + used, tile + whole, -INFINITY);
        float higher = std::max(top, maximum(tile, whole));
        float base = higher == -INFINITY ? 0 : higher;  // -inf minus -inf would be NaN
        total = total * std::exp(top - base) + sum_of_powers(tile, whole, base);
        top = higher;
    }
    return top - widen(x[target]) + std::log(total);
}

template <class T>
void cross_entropy(const T* x, const int64_t* targets, float* y, int64_t rows, int64_t cols) {
    std::vector<float> losses(rows);
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t first; (first = next.fetch_add(BLOCK)) < rows;)
            for (int64_t r = first; r < std::min(first + BLOCK, rows); r++)
                if (targets[r] != IGNORED) losses[r] = row_loss(x + r * cols, targets[r], cols);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < THREADS && t * GRAIN * 1000 < rows * cols; t++)
        others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();

    double total = 0;  // in the order of the rows, whichever thread had them
    for (float loss : losses) total += loss;
    *y = total / (rows - std::count(targets, targets + rows, IGNORED));
}

#define EXPORT(NAME, T)                                                                      \
    extern "C" void NAME(const T* x, const int64_t* t, float* y, int64_t m, int64_t n) {     \
        cross_entropy(x, t, y, m, n);                                                        \
    }
EXPORT(cross_entropy_fp32, float)
EXPORT(cross_entropy_fp16, fp16)
EXPORT(cross_entropy_bf16, bf16)
"""

NAMES = {
    torch.float32: "cross_entropy_fp32",
    torch.float16: "cross_entropy_fp16",
    torch.bfloat16: "cross_entropy_bf16",
}


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[NAMES[dtype]]
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
    function.restype = None
    return function


def kernel_fn(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`logits [..., V]`, `targets [...]` (int64): the mean over targets other than -100, as one
    number in the logits' dtype."""
    logits, targets = logits.contiguous(), targets.contiguous()
    y = torch.empty((), dtype=torch.float32)
    pointers = (t.data_ptr() for t in (logits, targets, y))
    compiled(logits.dtype)(*pointers, targets.numel(), logits.shape[-1])
    return y.to(logits.dtype)
