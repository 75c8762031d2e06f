"""Softmax in CUDA C++: a row is read once and held in registers, of a part of a warp while it is
short and of a cluster of blocks (Hopper and later) when it is long; longer ones are read twice.

Rows that begin anywhere are read by 16 bytes all the same: the first and the last ones by element.
"""

from __future__ import annotations

import functools
import math

import torch

from pytest_autokernel.cuda import CudaKernel, CudaLibrary, Launch, compile_cuda

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim", "nd"}

# items: 16-byte vectors of a row per thread; lanes: threads of a block that has a part of a row,
# where a cluster of eight has room for it; threads: of a block that has several rows; most:
# vectors that a thread holds. What is longer is read twice.
CONFIG = {"items": 4, "lanes": 256, "threads": 128, "most": 12}
SPACE = {
    "items": [1, 2, 4, 8],
    "lanes": [128, 256, 512],
    "threads": [64, 128, 256],
    "most": [4, 8, 12],
    "rules": ["items <= most"],
}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

using T = TYPE;
constexpr int VEC = 16 / sizeof(T), SPAN = CLUSTER * LANES;
constexpr float LOG2E = 1.44269504f;
#define LOWEST -CUDART_INF_F

union Vector { uint4 raw; T item[VEC]; };

__device__ bool whole(const T* p, long long first, long long cols) {
    return first >= 0 && first + VEC <= cols && (size_t)(p + first) % 16 == 0;
}

// What is outside of the row is the least that there is.
__device__ Vector load(const T* row, long long first, long long cols) {
    Vector v;
    if (whole(row, first, cols)) v.raw = *(const uint4*)(row + first);
    else
        for (int e = 0; e < VEC; e++)
            v.item[e] = first + e >= 0 && first + e < cols ? row[first + e] : T(LOWEST);
    return v;
}

__device__ void store(T* row, long long first, long long cols, Vector v) {
    if (whole(row, first, cols)) *(uint4*)(row + first) = v.raw;
    else
        for (int e = 0; e < VEC; e++)
            if (first + e >= 0 && first + e < cols) row[first + e] = v.item[e];
}

// The largest element, and the sum of e^(x - top).
struct Partial { float top = LOWEST, sum = 0; };

// e^(x - top), 0 where that is subnormal; and not NaN where both are -infinity: nothing is there.
__device__ float power(float x, float top) {
    float y = (x - (top == LOWEST ? 0 : top)) * LOG2E;
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(y));
    return y;
}

__device__ Partial across_lanes(Partial p) {
    float top = p.top;
    for (int step = LANES < 32 ? LANES / 2 : 16; step; step /= 2)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    p.sum *= power(p.top, top);
    for (int step = LANES < 32 ? LANES / 2 : 16; step; step /= 2)
        p.sum += __shfl_xor_sync(~0u, p.sum, step);
    return {top, p.sum};
}

__device__ void add(Partial& to, const Vector& v) {
    float top = to.top, sum = 0;
    for (int e = 0; e < VEC; e++) top = fmaxf(top, float(v.item[e]));
    for (int e = 0; e < VEC; e++) sum += power(float(v.item[e]), top);
    to = {top, to.sum * power(to.top, top) + sum};
}

#if CLUSTER > 1
#define IN_CLUSTER __cluster_dims__(CLUSTER, 1, 1)
__device__ void arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ void wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
#else
#define IN_CLUSTER
__device__ void arrive() { __syncthreads(); }
__device__ void wait() {}
#endif

// Of all that have a part of the row: each warp tells every block of the cluster.
__device__ Partial across_row(Partial p) {
    p = across_lanes(p);
#if LANES > 32
    constexpr int WARPS = LANES / 32;
    __shared__ Partial parts[CLUSTER * WARPS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    wait();  // for all to have begun
    if (lane < CLUSTER) {
        Partial *theirs = &parts[blockIdx.x % CLUSTER * WARPS + warp];
#if CLUSTER > 1
        asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(theirs), "r"(lane));
#endif
        *theirs = p;
    }
    arrive();
    wait();
    p = {};
    for (int i = lane; i < CLUSTER * WARPS; i += 32) {
        float top = fmaxf(p.top, parts[i].top);
        p = {top, p.sum * power(p.top, top) + parts[i].sum * power(parts[i].top, top)};
    }
    p = across_lanes(p);
#endif
    return p;
}

__device__ Vector quotients(const Vector& v, Partial p) {
    Vector y;
    float scale = 1 / p.sum;
    for (int e = 0; e < VEC; e++) y.item[e] = T(power(float(v.item[e]), p.top) * scale);
    return y;
}

#ifdef HELD
extern "C" __global__ void __launch_bounds__(THREADS) IN_CLUSTER
softmax_held(const T* x, T* y, long long rows, int cols) {
    arrive();
    // Threads beyond the last row do it once more, with the same result.
    long long row = blockIdx.x / CLUSTER * (long long)(THREADS / LANES) + threadIdx.x / LANES;
    row = min(row, rows - 1) * cols;
    int start = (blockIdx.x % CLUSTER * LANES + threadIdx.x % LANES) * VEC;
    start -= (size_t)(x + row) % 16 / sizeof(T);
    Vector v[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) v[i] = load(x + row, start + i * SPAN * VEC, cols);
    Partial p;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) add(p, v[i]);
    p = across_row(p);
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
        store(y + row, start + i * SPAN * VEC, cols, quotients(v[i], p));
}
#else
extern "C" __global__ void __launch_bounds__(THREADS) IN_CLUSTER
softmax_long(const T* x, T* y, long long rows, long long cols) {
    arrive();
    long long row = blockIdx.x / CLUSTER * cols;
    long long start = (blockIdx.x % CLUSTER * LANES + threadIdx.x) * VEC;
    start -= (size_t)(x + row) % 16 / sizeof(T);
    Partial p;
    for (long long at = start; at < cols; at += ITEMS * SPAN * VEC) {
        Vector v[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; i++) v[i] = load(x + row, at + i * SPAN * VEC, cols);
#pragma unroll
        for (int i = 0; i < ITEMS; i++) add(p, v[i]);
    }
    p = across_row(p);
#pragma unroll 2
    for (long long at = start; at < cols; at += SPAN * VEC)
        store(y + row, at, cols, quotients(load(x + row, at, cols), p));
}
#endif
"""

TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@functools.cache
def compiled(dtype: torch.dtype, **sizes: int) -> CudaLibrary:
    defines = {name.upper(): size for name, size in sizes.items()}
    return compile_cuda(SOURCE, defines={"TYPE": TYPES[dtype], **defines})


def chosen(dtype: torch.dtype, vectors: int, few: bool) -> tuple[CudaKernel, int, int, int]:
    """The kernel for rows of so many vectors, its threads, rows per block, blocks per row."""
    most_blocks = 8 if torch.cuda.get_device_capability()[0] >= 9 else 1
    wanted = 1 << (ceil_div(vectors, CONFIG["items"]) - 1).bit_length()
    cluster = min(max(wanted // CONFIG["lanes"], 1), most_blocks)
    lanes = min(wanted // cluster, 512)
    items = ceil_div(vectors, lanes * cluster)
    if items > CONFIG["most"]:
        cluster = most_blocks if few else 1
        library = compiled(dtype, lanes=1024, threads=1024, items=2, cluster=cluster)
        return library.softmax_long, 1024, 1, cluster
    threads = lanes if lanes > 32 else CONFIG["threads"]
    library = compiled(dtype, lanes=lanes, threads=threads, items=items, cluster=cluster, held=1)
    return library.softmax_held, threads, threads // lanes, cluster


@functools.lru_cache(maxsize=1024)
def prepared(dtype: torch.dtype, shape: tuple[int, ...], aligned: bool) -> Launch | None:
    """The launch for rows from an address that is `aligned` or not, if there are any elements;
    kept: to find it takes longer than to make it."""
    vec, cols, rows = 16 // dtype.itemsize, shape[-1], math.prod(shape[:-1])
    if not rows * cols:
        return None
    # Rows that begin between the multiples of 16 bytes touch one vector more.
    more = 0 if cols % vec == 0 and aligned else vec - 1
    kernel, threads, many, cluster = chosen(dtype, ceil_div(cols + more, vec), rows < 64)
    return kernel.prepared(ceil_div(rows, many) * cluster, threads, rows, cols)


def kernel_fn(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax of `x` over `dim`; same shape and dtype, contiguous."""
    if dim != -1 and dim != x.dim() - 1:
        return kernel_fn(x.movedim(dim, -1)).movedim(-1, dim).contiguous()
    x = x.contiguous()
    y = torch.empty_like(x)
    launch = prepared(x.dtype, x.shape, x.data_ptr() % 16 == 0)
    if launch:
        launch(x, y)
    return y
