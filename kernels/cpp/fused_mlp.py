"""Gated MLP on the CPU, in C++: rows of x side by side in vectors, hidden numbers in fp32."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "fused_mlp"
SUPPORTS = {"gelu", "relu2"}

# height, vectors: weights' rows, and vectors of x's rows, whose sums stay in registers; m, n, k:
# weights' rows, x's rows and depth that one thread works on, of which m * k elements are to stay in
# the second cache; threads: at most, one per so many millions of products (grain).
CONFIG = {
    "height": 6,
    "vectors": 2,
    "m": 64,
    "n": 512,
    "k": 256,
    "threads": 2,
    "grain": 10,
}
SPACE = {
    "height": [2, 4, 6, 8, 12],
    "vectors": [1, 2, 3, 4],
    "m": [16, 32, 64, 128, 256],
    "n": [64, 128, 256, 512, 1024],
    "k": [64, 128, 256, 512],
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
constexpr int COLUMNS = WIDTH * VECTORS;
constexpr int64_t PANELS = (N + COLUMNS - 1) / COLUMNS;
#define UNROLLED _Pragma("GCC unroll 16")

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

// out [H, COLUMNS] += a [H, depth] b [depth, COLUMNS]: all sums are in registers, which takes
// loops unrolled to the end.
template <int H>
void product(const float* a, int64_t pitch, const float* b, float* out, int64_t depth) {
    floats sums[H][VECTORS];
    UNROLLED for (int h = 0; h < H; h++)
        UNROLLED for (int v = 0; v < VECTORS; v++)
            sums[h][v] = load(out + h * COLUMNS + v * WIDTH);
    for (int64_t k = 0; k < depth; k++)
        UNROLLED for (int v = 0; v < VECTORS; v++) {
            floats right = load(b + k * COLUMNS + v * WIDTH);
            UNROLLED for (int h = 0; h < H; h++) sums[h][v] += a[h * pitch + k] * right;
        }
    UNROLLED for (int h = 0; h < H; h++)
        UNROLLED for (int v = 0; v < VECTORS; v++)
            store(out + h * COLUMNS + v * WIDTH, sums[h][v]);
}

// The same for any number of rows: H at once, then half as many, and so on.
template <int H = HEIGHT>
void products(
    int64_t rows, const float* a, int64_t pitch, const float* b, float* out, int64_t depth) {
    int64_t r = 0;
    for (; r + H <= rows; r += H) product<H>(a + r * pitch, pitch, b, out + r * COLUMNS, depth);
    if constexpr (H > 1)
        products<H / 2>(rows - r, a + r * pitch, pitch, b, out + r * COLUMNS, depth);
}

// One thread's memory, aligned for vectors.
struct Room {
    std::vector<floats> memory = std::vector<floats>((M * K + 2 * PANELS * M * COLUMNS) / WIDTH);
    float *sums = reinterpret_cast<float*>(memory.data()), *more = sums + PANELS * M * COLUMNS;
    float* left = more + PANELS * M * COLUMNS;
};

// Panels of COLUMNS rows of x, whose elements lie side by side: panel p is [depth, COLUMNS].
struct Panels {
    std::vector<floats> memory;
    int64_t depth;
    Panels(int64_t count, int64_t depth) : memory(count * depth * VECTORS), depth(depth) {}
    float* at(int64_t panel, int64_t k) {
        return reinterpret_cast<float*>(memory.data()) + (panel * depth + k) * COLUMNS;
    }
};

// Some rows of weights by some panels from `first` on; `sums` is [PANELS, M, COLUMNS].
template <class T>
void linear(
    const T* w, int64_t rows, Panels& x, int64_t first, int64_t panels, float* sums, float* left) {
    std::fill(sums, sums + PANELS * M * COLUMNS, 0.0f);
    for (int64_t k = 0; k < x.depth; k += K) {
        int64_t some = std::min<int64_t>(K, x.depth - k);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < some; i++) left[r * K + i] = widen(w[r * x.depth + k + i]);
        for (int64_t p = 0; p < panels; p++)
            products(rows, left, K, x.at(first + p, k), sums + p * M * COLUMNS, some);
    }
}

enum Activation { SILU, GELU, RELU2 };

inline float activate(float gate, Activation activation) {
    if (activation == SILU) return gate / (1 + std::exp(-gate));
    if (activation == GELU) return 0.5f * gate * std::erfc(gate * -0.707106781f);
    float positive = std::max(gate, 0.0f);
    return positive * positive;
}

// f(item, room) for all items, which the threads take in turn.
template <class F> void each(int64_t items, double products, F f) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        Room room;
        for (int64_t item; (item = next.fetch_add(1)) < items;) f(item, room);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < THREADS && t * GRAIN * 1e6 < products; t++) others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

template <class T>
void fused_mlp(
    const T* x, const T* w_gate, const T* w_up, const T* w_down, T* y, int64_t batch, int64_t dim,
    int64_t width, Activation activation) {
    int64_t panels = (batch + COLUMNS - 1) / COLUMNS, groups = (panels + PANELS - 1) / PANELS;
    double products = double(batch) * dim * width;
    Panels in(panels, dim), hidden(panels, width);
    for (int64_t r = 0; r < batch; r++)
        for (int64_t d = 0; d < dim; d++)
            in.at(r / COLUMNS, d)[r % COLUMNS] = widen(x[r * dim + d]);

    each((width + M - 1) / M * groups, 2 * products, [&](int64_t item, Room& room) {
        int64_t row = item / groups * M, first = item % groups * PANELS;
        int64_t rows = std::min<int64_t>(M, width - row), some = std::min(PANELS, panels - first);
        linear(w_gate + row * dim, rows, in, first, some, room.sums, room.left);
        linear(w_up + row * dim, rows, in, first, some, room.more, room.left);
        for (int64_t p = 0; p < some; p++) {
            float *gate = room.sums + p * M * COLUMNS, *up = room.more + p * M * COLUMNS;
            float* to = hidden.at(first + p, row);
            for (int64_t i = 0; i < rows * COLUMNS; i++)
                to[i] = activate(gate[i], activation) * up[i];
        }
    });
    each((dim + M - 1) / M * groups, products, [&](int64_t item, Room& room) {
        int64_t row = item / groups * M, first = item % groups * PANELS;
        int64_t rows = std::min<int64_t>(M, dim - row), some = std::min(PANELS, panels - first);
        linear(w_down + row * width, rows, hidden, first, some, room.sums, room.left);
        for (int64_t c = 0; c < std::min(some * COLUMNS, batch - first * COLUMNS); c++)
            for (int64_t r = 0; r < rows; r++)
                narrow(room.sums[(c / COLUMNS * M + r) * COLUMNS + c % COLUMNS],
                       y[(first * COLUMNS + c) * dim + row + r]);
    });
}

#define EXPORT(NAME, T)                                                                      \
    extern "C" void NAME(                                                                    \
        const T* x, const T* w_gate, const T* w_up, const T* w_down, T* y, int64_t batch,    \
        int64_t dim, int64_t width, int activation) {                                        \
        fused_mlp(x, w_gate, w_up, w_down, y, batch, dim, width, Activation(activation));    \
    }
EXPORT(fused_mlp_fp32, float)
EXPORT(fused_mlp_fp16, fp16)
EXPORT(fused_mlp_bf16, bf16)
"""

NAMES = {
    torch.float32: "fused_mlp_fp32",
    torch.float16: "fused_mlp_fp16",
    torch.bfloat16: "fused_mlp_bf16",
}
ACTIVATIONS = ("silu", "gelu", "relu2")


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[NAMES[dtype]]
    function.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    function.restype = None
    return function


def kernel_fn(
    x: torch.Tensor,
    w_gate: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
    activation: str = "silu",
) -> torch.Tensor:
    """`x [batch, dim]`, `w_gate, w_up [hidden, dim]`, `w_down [dim, hidden]`: `[batch, dim]`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"expected activation silu, gelu or relu2, got {activation=}")
    x, w_gate, w_up, w_down = (t.contiguous() for t in (x, w_gate, w_up, w_down))
    y = torch.empty_like(x)
    if y.numel():
        pointers = (t.data_ptr() for t in (x, w_gate, w_up, w_down, y))
        sizes = (*x.shape, w_gate.shape[0])
        compiled(x.dtype)(*pointers, *sizes, ACTIVATIONS.index(activation))
    return y
