"""Row sums on the CPU, in C++: summed in fp32 whatever the dtype, by vectors."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SUPPORTS = {"dim", "nd"}

# width: floats per vector; unroll: vectors in flight; threads: at most (on two cores to start the
# second takes as long as it saves); block: rows per turn.
CONFIG = {"width": 16, "unroll": 4, "threads": 1, "block": 16}
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

template <> inline floats load(const float* p) {
    floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T> float sum_row(const T* x, int64_t cols) {
    floats sums[UNROLL] = {};
    int64_t i = 0;
    for (; i + STEP <= cols; i += STEP)
        for (int u = 0; u < UNROLL; u++) sums[u] += load(x + i + u * WIDTH);
    float total = 0;
    for (auto& sum : sums)
        for (int l = 0; l < WIDTH; l++) total += lane(sum, l);
    for (; i < cols; i++) total += widen(x[i]);
    return total;
}

template <class T> void reduce(const T* x, T* y, int64_t rows, int64_t cols) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t first; (first = next.fetch_add(BLOCK)) < rows;)
            for (int64_t r = first; r < std::min(first + BLOCK, rows); r++)
                narrow(sum_row(x + r * cols, cols), y[r]);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < THREADS && t * BLOCK < rows; t++) others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

extern "C" {
void reduce_fp32(const float* x, float* y, int64_t m, int64_t n) { reduce(x, y, m, n); }
void reduce_fp16(const fp16* x, fp16* y, int64_t m, int64_t n) { reduce(x, y, m, n); }
void reduce_bf16(const bf16* x, bf16* y, int64_t m, int64_t n) { reduce(x, y, m, n); }
}
"""

NAMES = {
    torch.float32: "reduce_fp32",
    torch.float16: "reduce_fp16",
    torch.bfloat16: "reduce_bf16",
}


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[NAMES[dtype]]
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    function.restype = None
    return function


def kernel_fn(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The sum of `x` over `dim`, in x's dtype."""
    rows = x.movedim(dim, -1).contiguous()
    y = torch.empty(rows.shape[:-1], dtype=x.dtype)
    if y.numel():
        compiled(x.dtype)(rows.data_ptr(), y.data_ptr(), y.numel(), rows.shape[-1])
    return y
