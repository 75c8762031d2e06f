"""Row sums in CUDA C++: a row is read by one block, or by a part of a warp while it is short; a
few long rows are cut into parts, whose sums are then added up in their order.

Rows that begin anywhere are read by 16 bytes all the same: the first and the last ones by element.
"""

from __future__ import annotations

import functools
import math

import torch

from pytest_autokernel.cuda import CudaKernel, Launch, compile_cuda

KERNEL_TYPE = "reduce"
SUPPORTS = {"dim", "nd"}

# items: 16-byte vectors per thread and step; lanes: threads for a row at most, where rows are many;
# threads: of a block that has several rows; part: vectors that are worth a block of their own.
CONFIG = {"items": 4, "lanes": 256, "threads": 128, "part": 8192}
SPACE = {
    "items": [1, 2, 4, 8],
    "lanes": [128, 256, 512, 1024],
    "threads": [64, 128, 256],
    "part": [2048, 4096, 8192, 16384],
}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using T = TYPE;
using Sum = RESULT;
constexpr int VEC = 16 / sizeof(T);

union Vector { uint4 raw; T item[VEC]; };

__device__ bool whole(const T* p, long long first, long long cols) {
    return first >= 0 && first + VEC <= cols && (size_t)(p + first) % 16 == 0;
}

// What is outside of the row is zero.
__device__ Vector load(const T* row, long long first, long long cols) {
    Vector v;
    if (whole(row, first, cols)) v.raw = *(const uint4*)(row + first);
    else
        for (int e = 0; e < VEC; e++)
            v.item[e] = first + e >= 0 && first + e < cols ? row[first + e] : T(0.0f);
    return v;
}

__device__ float total(const Vector& v) {
    float sum = 0;
    for (int e = 0; e < VEC; e++) sum += float(v.item[e]);
    return sum;
}

__device__ float across_lanes(float sum) {
    for (int step = LANES < 32 ? LANES / 2 : 16; step; step /= 2)
        sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
}

__device__ float across_row(float sum) {
    sum = across_lanes(sum);
#if LANES > 32
    __shared__ float parts[LANES / 32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) parts[warp] = sum;
    __syncthreads();
    sum = across_lanes(lane < LANES / 32 ? parts[lane] : 0);
#endif
    return sum;
}

// Rows are cut into `parts` of `length` columns, the last of which may be shorter.
extern "C" __global__ void __launch_bounds__(THREADS) sum_rows(
    const T* x, Sum* y, long long count, long long cols, int parts, long long length) {
    // Threads beyond the last one do it once more, with the same result.
    long long which = blockIdx.x * (long long)(THREADS / LANES) + threadIdx.x / LANES;
    which = min(which, count - 1);
    long long first = parts == 1 ? 0 : which % parts * length;
    x += (parts == 1 ? which : which / parts) * cols + first;
    length = min(length, cols - first);
    float sum = 0;
    long long at = threadIdx.x % LANES * VEC - (long long)((size_t)x % 16 / sizeof(T));
    for (; at < length; at += ITEMS * LANES * VEC) {
        Vector v[ITEMS];
        float sums[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; i++) v[i] = load(x, at + i * LANES * VEC, length);
#pragma unroll
        for (int i = 0; i < ITEMS; i++) sums[i] = total(v[i]);
#pragma unroll
        for (int i = 0; i < ITEMS; i++) sum += sums[i];
    }
    sum = across_row(sum);
    if (threadIdx.x % LANES == 0) y[which] = Sum(sum);
}
"""

TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@functools.cache
def compiled(of: torch.dtype, to: torch.dtype, lanes: int, threads: int) -> CudaKernel:
    sizes = {"LANES": lanes, "THREADS": threads, "ITEMS": CONFIG["items"]}
    names = {"TYPE": TYPES[of], "RESULT": TYPES[to]}
    return compile_cuda(SOURCE, defines={**names, **sizes}).sum_rows


def chosen(of: torch.dtype, to: torch.dtype, cols: int, few: bool) -> tuple[CudaKernel, int, int]:
    """The kernel for rows of so many columns, its threads and rows per block."""
    vectors = ceil_div(cols * of.itemsize, 16)
    wanted = 1 << (ceil_div(vectors, CONFIG["items"]) - 1).bit_length()
    lanes = min(wanted, 1024 if few else CONFIG["lanes"])
    threads = lanes if lanes > 32 else CONFIG["threads"]
    return compiled(of, to, lanes, threads), threads, threads // lanes


def summing(of: torch.dtype, to: torch.dtype, rows: int, cols: int, parts: int = 1) -> Launch:
    """Of rows of `cols` columns the sums, or those of each of `parts` of them."""
    vec = 16 // of.itemsize
    length = ceil_div(ceil_div(cols, parts), vec) * vec if parts > 1 else cols
    kernel, threads, many = chosen(of, to, length, rows * parts < 256)
    grid = ceil_div(rows * parts, many)
    return kernel.prepared(grid, threads, rows * parts, cols, parts, length)


@functools.lru_cache(maxsize=1024)
def prepared(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], int, Launch, Launch | None]:
    """Of rows of the last dim: their sums' shape, so many parts that there are some hundred blocks,
    their sums, and these parts' own; kept: to find it takes longer than to make it."""
    *lead, cols = shape
    rows = math.prod(lead)
    parts = min(ceil_div(cols, CONFIG["part"] * 16 // dtype.itemsize), ceil_div(512, rows))
    if parts == 1:
        return tuple(lead), 1, summing(dtype, dtype, rows, cols), None
    halfway = torch.float32
    first, last = summing(dtype, halfway, rows, cols, parts), summing(halfway, dtype, rows, parts)
    return tuple(lead), parts, first, last


def kernel_fn(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The sum of `x` over `dim`, in x's dtype."""
    x = (x if dim == -1 else x.movedim(dim, -1)).contiguous()
    if not x.numel():
        return x.new_zeros(x.shape[:-1])
    shape, parts, first, last = prepared(x.dtype, x.shape)
    y = x.new_empty(shape)
    if last is None:
        first(x, y)
    else:
        halfway = x.new_empty((y.numel(), parts), dtype=torch.float32)
        first(x, halfway)
        last(halfway, y)
    return y
