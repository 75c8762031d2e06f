"""Attention on the CPU, in C++: a block of queries side by side in vectors, over blocks of keys."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"gqa", "cross", "head_dim"}

# height: rows whose sums are kept in registers; vectors: of queries; keys: at once; threads: at
# most, one per so many millions of products (grain).
CONFIG = {"height": 6, "vectors": 2, "keys": 64, "threads": 2, "grain": 10}
SPACE = {
    "height": [2, 4, 6, 8, 12],
    "vectors": [1, 2, 3, 4],
    "keys": [16, 32, 64, 128, 256],
    "threads": [1, 2, 4, 8, 16],
    "grain": [1, 10, 100],
    "rules": ["height * vectors <= 24"],  # AVX-512 has 32 registers, AVX2 16
}

SOURCE = r"""
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

// The widest vectors that the processor has; GCC's and Clang's.
#if defined __AVX512F__
constexpr int WIDTH = 16;
#elif defined __AVX__
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
using floats = float __attribute__((vector_size(4 * WIDTH)));
using ints = int32_t __attribute__((vector_size(4 * WIDTH)));
using words = uint32_t __attribute__((vector_size(4 * WIDTH)));
constexpr int COLUMNS = WIDTH * VECTORS;
#define UNROLLED _Pragma("GCC unroll 16")

template <class To, class From> To bits(From value) {
    To same;
    static_assert(sizeof same == sizeof value);
    std::memcpy(&same, &value, sizeof same);
    return same;
}

struct fp16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

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

// out [H, COLUMNS] += a [H, depth] b [depth, COLUMNS], where a's elements lie `down` and `right`
// apart: all sums are in registers, which takes loops unrolled to the end.
template <int H>
void product(
    const float* a, int64_t down, int64_t right, const float* b, float* out, int64_t depth) {
    floats sums[H][VECTORS];
    UNROLLED for (int h = 0; h < H; h++)
        UNROLLED for (int v = 0; v < VECTORS; v++)
            sums[h][v] = load(out + h * COLUMNS + v * WIDTH);
    for (int64_t k = 0; k < depth; k++)
        UNROLLED for (int v = 0; v < VECTORS; v++) {
            floats factor = load(b + k * COLUMNS + v * WIDTH);
            UNROLLED for (int h = 0; h < H; h++) sums[h][v] += a[h * down + k * right] * factor;
        }
    UNROLLED for (int h = 0; h < H; h++)
        UNROLLED for (int v = 0; v < VECTORS; v++)
            store(out + h * COLUMNS + v * WIDTH, sums[h][v]);
}

// The same for any number of rows: H at once, then half as many, and so on.
template <int H = HEIGHT>
void products(
    int64_t rows, const float* a, int64_t down, int64_t right, const float* b, float* out,
    int64_t depth) {
    int64_t r = 0;
    for (; r + H <= rows; r += H)
        product<H>(a + r * down, down, right, b, out + r * COLUMNS, depth);
    if constexpr (H > 1)
        products<H / 2>(rows - r, a + r * down, down, right, b, out + r * COLUMNS, depth);
}

// One vector of queries: the highest score so far, and the sum of the weights by it.
struct Softmax {
    floats top = floats{} - INFINITY, total = {};
    ints last_key;  // that each may see

    // `scores`, of keys from `first` on, become weights; returns what scales the earlier ones.
    floats weigh(float* scores, int first, int keys) {
        floats higher = top, before = top;
        for (int j = 0; j < keys; j++) {
            floats score = load(scores + j * COLUMNS);
            score = first + j > last_key ? floats{} - INFINITY : score;
            higher = score > higher ? score : higher;
            store(scores + j * COLUMNS, score);
        }
        top = higher;
        floats base = top == -INFINITY ? floats{} : top;  // -inf minus -inf would be NaN
        floats shrink = exponential(before - base);
        total *= shrink;
        for (int j = 0; j < keys; j++) {
            floats weight = exponential(load(scores + j * COLUMNS) - base);
            total += weight;
            store(scores + j * COLUMNS, weight);
        }
        return shrink;
    }
};

struct Sizes {
    int64_t heads, groups, queries, keys, dim;
};

// COLUMNS queries of one head, from `first` on. In memory they are columns: `q` and `out` are
// [dim, COLUMNS], `scores` is [KEYS, COLUMNS].
template <class T>
void attend_block(
    const float* Q, const float* K, const float* V, T* y, Sizes n, int64_t first, bool causal,
    float scale, std::vector<floats>& room) {
    float *q = reinterpret_cast<float*>(room.data()), *out = q + n.dim * COLUMNS;
    float* scores = out + n.dim * COLUMNS;
    std::fill(q, scores, 0.0f);
    int64_t used = std::min<int64_t>(COLUMNS, n.queries - first);
    for (int64_t i = 0; i < used; i++)
        for (int64_t d = 0; d < n.dim; d++) q[d * COLUMNS + i] = Q[(first + i) * n.dim + d] * scale;

    Softmax softmax[VECTORS];
    for (int i = 0; i < COLUMNS; i++)
        softmax[i / WIDTH].last_key[i % WIDTH] = causal ? first + i : n.keys;
    int64_t end = causal ? std::min(n.keys, first + used) : n.keys;
    for (int64_t start = 0; start < end; start += KEYS) {
        int64_t some = std::min<int64_t>(KEYS, end - start);
        std::fill(scores, scores + some * COLUMNS, 0.0f);
        products(some, K + start * n.dim, n.dim, 1, q, scores, n.dim);
        for (int v = 0; v < VECTORS; v++) {
            floats shrink = softmax[v].weigh(scores + v * WIDTH, start, some);
            for (float* o = out + v * WIDTH; o < scores; o += COLUMNS) store(o, load(o) * shrink);
        }
        products(n.dim, V + start * n.dim, 1, n.dim, scores, out, some);
    }
    for (int64_t i = 0; i < used; i++)
        for (int64_t d = 0; d < n.dim; d++)
            narrow(out[d * COLUMNS + i] / softmax[i / WIDTH].total[i % WIDTH],
                   y[(first + i) * n.dim + d]);
}

template <class T>
void attend(
    const float* Q, const float* K, const float* V, T* y, int64_t batch, Sizes n, bool causal,
    float scale) {
    int64_t blocks = (n.queries + COLUMNS - 1) / COLUMNS, all = batch * n.heads * blocks;
    std::atomic<int64_t> next{0};
    auto work = [&] {
        std::vector<floats> room((2 * n.dim + KEYS) * VECTORS);
        for (int64_t block; (block = next.fetch_add(1)) < all;) {
            int64_t head = block / blocks, i = head * n.queries * n.dim;
            int64_t group = head / n.heads * n.groups + head % n.heads / (n.heads / n.groups);
            int64_t j = group * n.keys * n.dim;
            attend_block(
                Q + i, K + j, V + j, y + i, n, block % blocks * COLUMNS, causal, scale, room);
        }
    };
    std::vector<std::thread> others;
    double products = 2.0 * batch * n.heads * n.queries * n.keys * n.dim / (causal ? 2 : 1);
    for (int64_t t = 1; t < THREADS && t * GRAIN * 1e6 < products; t++) others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

#define EXPORT(NAME, T)                                                                      \
    extern "C" void NAME(                                                                    \
        const float* Q, const float* K, const float* V, T* y, int64_t batch, int64_t heads,  \
        int64_t groups, int64_t queries, int64_t keys, int64_t dim, int causal,              \
        float scale) {                                                                       \
        attend(Q, K, V, y, batch, {heads, groups, queries, keys, dim}, causal, scale);       \
    }
EXPORT(attention_fp32, float)
EXPORT(attention_fp16, fp16)
EXPORT(attention_bf16, bf16)
"""

NAMES = {
    torch.float32: "attention_fp32",
    torch.float16: "attention_fp16",
    torch.bfloat16: "attention_bf16",
}


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[NAMES[dtype]]
    sizes = [ctypes.c_int64] * 6
    function.argtypes = [ctypes.c_void_p] * 4 + sizes + [ctypes.c_int, ctypes.c_float]
    function.restype = None
    return function


def kernel_fn(
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    causal: bool = True,
    sm_scale: float | None = None,
) -> torch.Tensor:
    """`Q [B, H, Sq, D]`, `K, V [B, G, Sk, D]` where G divides H: `[B, H, Sq, D]`."""
    B, H, SQ, D = Q.shape
    G, SK = K.shape[1:3]
    y = torch.empty(Q.shape, dtype=Q.dtype)
    if y.numel():
        q, k, v = (t.float().contiguous() for t in (Q, K, V))
        pointers = (t.data_ptr() for t in (q, k, v, y))
        scale = D**-0.5 if sm_scale is None else sm_scale
        compiled(Q.dtype)(*pointers, B, H, G, SQ, SK, D, causal, scale)
    return y
