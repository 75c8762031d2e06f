"""Rotary position embedding in CUDA C++: a thread has some pairs of one position, whose cosines and
sines it reads once for several heads. By 16 bytes where all lies so, else by element."""

from __future__ import annotations

import functools
import math

import torch

from pytest_autokernel.cuda import CudaKernel, Launch, compile_cuda

KERNEL_TYPE = "rotary_embedding"
SUPPORTS = {"half_split"}

# heads: per thread; threads: per block.
CONFIG = {"heads": 4, "threads": 128}
SPACE = {"heads": [1, 2, 4, 8], "threads": [64, 128, 256, 512]}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using T = TYPE;

template <int BYTES> struct Raw { using type = unsigned short; };
template <> struct Raw<8> { using type = uint2; };
template <> struct Raw<16> { using type = uint4; };
template <int N> union Run { typename Raw<N * sizeof(T)>::type raw; T item[N]; };
using Pairs = Run<PAIRS>;

template <int N> __device__ void load(Run<N>& run, const T* p) {
#if WHOLE
    run.raw = *(const decltype(run.raw)*)p;
#else
    for (int i = 0; i < N; i++) run.item[i] = p[i];
#endif
}

template <int N> __device__ void store(T* p, const Run<N>& run) {
#if WHOLE
    *(decltype(run.raw)*)p = run.raw;
#else
    for (int i = 0; i < N; i++) p[i] = run.item[i];
#endif
}

__device__ void rotate(T& first, T& second, T c, T s) {
    float a = first, b = second;
    first = T(a * float(c) - b * float(s));
    second = T(a * float(s) + b * float(c));
}

// `blocks` for the positions of one head, as often as there are groups of HEADS heads.
extern "C" __global__ void __launch_bounds__(THREADS) rotate_heads(
    const T* x, const T* cos, const T* sin, T* y, long long heads, long long positions, int half,
    int blocks) {
    long long pair = (blockIdx.x % blocks * (long long)THREADS + threadIdx.x) * PAIRS;
    if (pair >= positions * half) return;
    Pairs c, s;
    load(c, cos + pair);
    load(s, sin + pair);
    long long head = (long long)(blockIdx.x / blocks) * HEADS, step = positions * half * 2;
#if INTERLEAVED
    long long at = head * step + pair * 2;
    Run<2 * PAIRS> v[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        if (head + h < heads) load(v[h], x + at + h * step);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        for (int i = 0; i < PAIRS; i++)
            rotate(v[h].item[2 * i], v[h].item[2 * i + 1], c.item[i], s.item[i]);
        if (head + h < heads) store(y + at + h * step, v[h]);
    }
#else
    long long at = head * step + pair + pair / half * half;
    Pairs a[HEADS], b[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        if (head + h < heads) {
            load(a[h], x + at + h * step);
            load(b[h], x + at + h * step + half);
        }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        for (int i = 0; i < PAIRS; i++) rotate(a[h].item[i], b[h].item[i], c.item[i], s.item[i]);
        if (head + h < heads) {
            store(y + at + h * step, a[h]);
            store(y + at + h * step + half, b[h]);
        }
    }
#endif
}
"""

TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}


@functools.cache
def compiled(dtype: torch.dtype, interleaved: bool, pairs: int, whole: bool) -> CudaKernel:
    sizes = {name.upper(): size for name, size in CONFIG.items()}
    how = {"INTERLEAVED": int(interleaved), "PAIRS": pairs, "WHOLE": int(whole)}
    return compile_cuda(SOURCE, defines={"TYPE": TYPES[dtype], **sizes, **how}).rotate_heads


@functools.lru_cache(maxsize=1024)
def prepared(dtype: torch.dtype, shape: torch.Size, interleaved: bool, aligned: bool) -> Launch:
    """The launch for an x of this shape, where all begins at multiples of 16 bytes or not; kept,
    to find it takes longer than to make it."""
    *outer, positions, width = shape
    heads, half = math.prod(outer), width // 2
    # Pairs of 16 bytes of x, or of each of its halves.
    pairs = (8 if interleaved else 16) // dtype.itemsize
    whole = aligned and half % pairs == 0
    pairs = pairs if whole else 1
    threads = CONFIG["threads"]
    blocks = -(-positions * half // (pairs * threads))
    grid = blocks * -(-heads // CONFIG["heads"])
    kernel = compiled(dtype, interleaved, pairs, whole)
    return kernel.prepared(grid, threads, heads, positions, half, blocks)


def kernel_fn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    """`x [B, H, S, D]`, `cos, sin [S, D/2]`; pairs are (2i, 2i+1), or else (i, i + D/2)."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    y = torch.empty_like(x)
    if not y.numel():
        return y
    places = x.data_ptr() | cos.data_ptr() | sin.data_ptr()
    prepared(x.dtype, x.shape, interleaved, places % 16 == 0)(x, cos, sin, y)
    return y
