"""Matrix product on the CPU, in C++: tiles that stay in the caches, summed in fp32."""

from __future__ import annotations

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "matmul"
SUPPORTS = {"batched"}

# height, vectors: rows, and vectors of columns, whose sums are kept in registers; m, n, k: the tile
# that one thread works on, whose m * k elements are to stay in the second cache; threads: at most,
# one per so many millions of products (grain).
CONFIG = {
    "height": 6,
    "vectors": 2,
    "m": 128,
    "n": 128,
    "k": 256,
    "threads": 2,
    "grain": 10,
}
SPACE = {
    "height": [2, 4, 6, 8, 12],
    "vectors": [1, 2, 3, 4],
    "m": [32, 64, 128, 256, 512],
    "n": [64, 128, 256, 512],
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

// A matrix of any strides, from some element on.
template <class T> struct Matrix {
    const T* data;
    int64_t down, right;
    Matrix at(int64_t row, int64_t col) const {
        return {data + row * down + col * right, down, right};
    }
    // As fp32, row after row; read along the stride that is 1, if one is.
    void copy(int64_t rows, int64_t cols, float* to, int64_t pitch) const {
        if (right == 1)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++) to[r * pitch + c] = widen(data[r * down + c]);
        else
            for (int64_t c = 0; c < cols; c++)
                for (int64_t r = 0; r < rows; r++)
                    to[r * pitch + c] = widen(data[r * down + c * right]);
    }
};

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

// One thread's memory, aligned for vectors. What `right` holds beyond a matrix' last column
// reaches no result.
struct Room {
    std::vector<floats> memory = std::vector<floats>((M * K + (K + PANELS * M) * COLUMNS) / WIDTH);
    float* sums = reinterpret_cast<float*>(memory.data());
    float *right = sums + PANELS * M * COLUMNS, *left = right + K * COLUMNS;
};

// c [rows, cols], with `pitch` between its rows, = a [rows, depth] b [depth, cols]: one tile.
template <class T>
void multiply(
    Matrix<T> a, Matrix<T> b, T* c, int64_t pitch, int64_t rows, int64_t cols, int64_t depth,
    Room& room) {
    std::fill(room.sums, room.right, 0.0f);
    for (int64_t k = 0; k < depth; k += K) {
        int64_t some = std::min<int64_t>(K, depth - k);
        a.at(0, k).copy(rows, some, room.left, K);
        for (int64_t j = 0; j < cols; j += COLUMNS) {
            b.at(k, j).copy(some, std::min<int64_t>(COLUMNS, cols - j), room.right, COLUMNS);
            products(rows, room.left, K, room.right, &room.sums[j * M], some);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < cols; j++)
            narrow(room.sums[(j / COLUMNS * M + r) * COLUMNS + j % COLUMNS], c[r * pitch + j]);
}

template <class T>
void matmul(
    const T* a, const T* b, T* c, int64_t batch, int64_t rows, int64_t cols, int64_t depth,
    const int64_t* a_strides, const int64_t* b_strides) {
    int64_t down = (rows + M - 1) / M, across = (cols + N - 1) / N, tiles = batch * down * across;
    std::atomic<int64_t> next{0};
    auto work = [&] {
        Room room;
        for (int64_t t; (t = next.fetch_add(1)) < tiles;) {
            int64_t i = t / across % down * M, j = t % across * N, one = t / across / down;
            Matrix<T> left{a + one * a_strides[0], a_strides[1], a_strides[2]};
            Matrix<T> right{b + one * b_strides[0], b_strides[1], b_strides[2]};
            multiply(
                left.at(i, 0), right.at(0, j), c + (one * rows + i) * cols + j, cols,
                std::min<int64_t>(M, rows - i), std::min<int64_t>(N, cols - j), depth, room);
        }
    };
    std::vector<std::thread> others;
    double products = double(batch) * rows * cols * depth;
    for (int64_t t = 1; t < THREADS && t * GRAIN * 1e6 < products; t++) others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

#define EXPORT(NAME, T)                                                                        \
    extern "C" void NAME(                                                                      \
        const T* a, const T* b, T* c, int64_t batch, int64_t m, int64_t n, int64_t k,          \
        const int64_t* a_strides, const int64_t* b_strides) {                                  \
        matmul(a, b, c, batch, m, n, k, a_strides, b_strides);                                 \
    }
EXPORT(matmul_fp32, float)
EXPORT(matmul_fp16, fp16)
EXPORT(matmul_bf16, bf16)
"""

NAMES = {
    torch.float32: "matmul_fp32",
    torch.float16: "matmul_fp16",
    torch.bfloat16: "matmul_bf16",
}
Strides = ctypes.c_int64 * 3


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    library = compile_cpp(SOURCE, defines={key.upper(): n for key, n in CONFIG.items()})
    function = library[NAMES[dtype]]
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4 + [Strides] * 2
    function.restype = None
    return function


def kernel_fn(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """`A [..., M, K]`, `B [..., K, N]` with the same leading dims: `[..., M, N]`."""
    M, K = A.shape[-2:]
    N = B.shape[-1]
    C = A.new_empty((*A.shape[:-1], N))
    if C.numel():
        a, b = (t[None].flatten(0, -3) for t in (A, B))
        pointers = (t.data_ptr() for t in (a, b, C))
        sizes = (a.shape[0], M, N, K)
        compiled(A.dtype)(*pointers, *sizes, Strides(*a.stride()), Strides(*b.stride()))
    return C
