"""Rotary position embedding on the CPU, in C++: pairs turned in fp32 whatever the dtype."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "rotary_embedding"
SUPPORTS = {"half_split"}

# width: pairs at once; threads: at most, one per so many thousands of pairs (grain), because two
# busy cores take 0.1 ms and more to start one; block: rows (a position of a head each) per turn.
CONFIG = {"width": 16, "threads": 2, "grain": 1000, "block": 64}
SPACE = {
    "width": [1, 4, 8, 16, 32],
    "threads": [1, 2, 4, 8, 16],
    "grain": [1, 100, 1000, 10000],
    "block": [1, 16, 64, 256],
}

SOURCE = r"""
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

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

// Pairs from `i` on, as many as COUNT, which the compiler knows: elements 2i and 2i + 1, or where
// HALVES i and i + pairs.
template <int COUNT, bool HALVES, class T>
void turn(const T* x, const T* cos, const T* sin, T* __restrict y, int64_t pairs, int64_t i) {
    const int64_t step = HALVES ? 1 : 2, apart = HALVES ? pairs : 1;
    for (int l = 0; l < COUNT; l++) {
        int64_t at = (i + l) * step;
        float a = widen(x[at]), b = widen(x[at + apart]);
        float c = widen(cos[i + l]), s = widen(sin[i + l]);
        narrow(a * c - b * s, y[at]);
        narrow(a * s + b * c, y[at + apart]);
    }
}

// `x` is [rows, 2 pairs], whose positions start anew after each `positions` of them.
template <bool HALVES, class T>
void rotate(
    const T* x, const T* cos, const T* sin, T* y, int64_t rows, int64_t positions, int64_t pairs) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t first; (first = next.fetch_add(BLOCK)) < rows;)
            for (int64_t r = first; r < std::min(first + BLOCK, rows); r++) {
                const T *c = cos + r % positions * pairs, *s = sin + r % positions * pairs;
                int64_t i = 0, at = r * 2 * pairs;
                for (; i + WIDTH <= pairs; i += WIDTH)
                    turn<WIDTH, HALVES>(x + at, c, s, y + at, pairs, i);
                for (; i < pairs; i++) turn<1, HALVES>(x + at, c, s, y + at, pairs, i);
            }
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < THREADS && t * GRAIN * 1000 < rows * pairs; t++)
        others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

#define EXPORT(NAME, HALVES, T)                                                              \
    extern "C" void NAME(                                                                    \
        const T* x, const T* cos, const T* sin, T* y, int64_t m, int64_t s, int64_t n) {     \
        rotate<HALVES>(x, cos, sin, y, m, s, n);                                             \
    }
EXPORT(interleaved_fp32, false, float)
EXPORT(interleaved_fp16, false, fp16)
EXPORT(interleaved_bf16, false, bf16)
EXPORT(halves_fp32, true, float)
EXPORT(halves_fp16, true, fp16)
EXPORT(halves_bf16, true, bf16)
"""

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@functools.cache
def compiled(dtype: torch.dtype, interleaved: bool) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[f"{'interleaved' if interleaved else 'halves'}_{NAMES[dtype]}"]
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3
    function.restype = None
    return function


def kernel_fn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    """`x [B, H, S, D]`, `cos, sin [S, D/2]`; pairs are (2i, 2i+1), or else (i, i + D/2)."""
    x, cos, sin = (t.to(x.dtype).contiguous() for t in (x, cos, sin))
    y = torch.empty_like(x)
    if y.numel():
        S, D = x.shape[-2:]
        pointers = (t.data_ptr() for t in (x, cos, sin, y))
        compiled(x.dtype, interleaved)(*pointers, x.numel() // D, S, D // 2)
    return y
