"""Cross-entropy in CUDA C++: each row is read once, by one block or by a part of a warp, for its
maximum and sum at the same time; then one block adds up the rows' losses in their order. What is
small is done by one block, or one cluster of them (Hopper and later), in one launch.

Rows that begin anywhere are read by 16 bytes all the same: the first and the last ones by element.
"""

from __future__ import annotations

import functools

import torch

from pytest_autokernel.cuda import CudaLibrary, Launch, compile_cuda

KERNEL_TYPE = "cross_entropy"
SUPPORTS = {"ignore_index", "nd"}

# items: 16-byte vectors per thread and step; lanes: threads for a row at most, where rows are many;
# threads: of a block that has several rows; one: KiB that each block of the one cluster reads.
CONFIG = {"items": 4, "lanes": 256, "threads": 128, "one": 128}
SPACE = {
    "items": [1, 2, 4, 8],
    "lanes": [128, 256, 512, 1024],
    "threads": [64, 128, 256],
    "one": [0, 64, 128, 256],
}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

using T = TYPE;
constexpr int VEC = 16 / sizeof(T), IGNORED = -100;
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

// The largest element, and the sum of e^(x - top).
struct Partial { float top = LOWEST, sum = 0; };

// e^(x - top), 0 where that is subnormal; and not NaN where both are -infinity: nothing is there.
__device__ float power(float x, float top) {
    float y = (x - (top == LOWEST ? 0 : top)) * LOG2E;
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(y));
    return y;
}

template <int WIDTH> __device__ float sum_of(float sum) {
    for (int step = WIDTH / 2; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
}

__device__ Partial across_lanes(Partial p) {
    constexpr int WIDTH = LANES < 32 ? LANES : 32;
    float top = p.top;
    for (int step = WIDTH / 2; step; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    return {top, sum_of<WIDTH>(p.sum * power(p.top, top))};
}

__device__ Partial across_row(Partial p) {
    p = across_lanes(p);
#if LANES > 32
    __shared__ Partial parts[THREADS / 32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = warp - warp % (LANES / 32);
    if (lane == 0) parts[warp] = p;
    __syncthreads();
    p = across_lanes(lane < LANES / 32 ? parts[first + lane] : Partial());
#endif
    return p;
}

// A row's, told to all its threads.
__device__ float loss_of(const T* logits, const long long* targets, long long row, long long cols) {
    const T* x = logits + row * cols;
    long long target = targets[row];
    bool counted = target != IGNORED;
    float picked = counted ? float(x[target]) : 0;
    Partial p;
    long long at = threadIdx.x % LANES * VEC - (long long)((size_t)x % 16 / sizeof(T));
    for (; at < cols; at += ITEMS * LANES * VEC) {
        Vector v[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; i++) v[i] = load(x, at + i * LANES * VEC, cols);
        float top = p.top, sum = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            for (int e = 0; e < VEC; e++) top = fmaxf(top, float(v[i].item[e]));
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            for (int e = 0; e < VEC; e++) sum += power(float(v[i].item[e]), top);
        p = {top, p.sum * power(p.top, top) + sum};
    }
    p = across_row(p);
    return counted ? p.top - picked + logf(p.sum) : 0;
}

// Whose threads have a row together; those beyond the last one do that once more.
__device__ long long group() {
    return blockIdx.x * (long long)(THREADS / LANES) + threadIdx.x / LANES;
}

#ifdef CLUSTER
#if CLUSTER > 1
#define IN_CLUSTER __cluster_dims__(CLUSTER, 1, 1)
#define MEET asm volatile("barrier.cluster.arrive.aligned;barrier.cluster.wait.aligned;":::"memory")
#else
#define IN_CLUSTER
#define MEET __syncthreads()
#endif

extern "C" __global__ void __launch_bounds__(THREADS) IN_CLUSTER
loss_of_few(const T* logits, const long long* targets, T* y, long long rows, long long cols) {
    __shared__ float losses[CLUSTER * THREADS / LANES];  // the first block's, written by all
    long long row = group();
    float loss = loss_of(logits, targets, min(row, rows - 1), cols);
    MEET;  // for all to have begun
    if (threadIdx.x % LANES == 0 && row < rows) {
        float* to = &losses[row];
#if CLUSTER > 1
        asm("mapa.u64 %0, %1, 0;" : "=l"(to) : "l"(to));
#endif
        *to = loss;
    }
    MEET;
    if (blockIdx.x > 0 || threadIdx.x >= 32) return;
    float total = 0, count = 0;
    for (int i = threadIdx.x; i < rows; i += 32) {
        total += losses[i];
        count += targets[i] != IGNORED;
    }
    total = sum_of<32>(total);
    count = sum_of<32>(count);
    if (threadIdx.x == 0) *y = T(total / count);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS) row_losses(
    const T* logits, const long long* targets, float* losses, long long rows, long long cols) {
    long long row = min(group(), rows - 1);
    float loss = loss_of(logits, targets, row, cols);
    if (threadIdx.x % LANES == 0) losses[row] = loss;
}

extern "C" __global__ void __launch_bounds__(1024)
mean_loss(const float* losses, const long long* targets, T* y, long long rows) {
    float total = 0, count = 0;
    for (long long row = threadIdx.x; row < rows; row += 1024) {
        total += losses[row];
        count += targets[row] != IGNORED;  // exact to 2^24 a thread
    }
    __shared__ float totals[32], counts[32];
    total = sum_of<32>(total);
    count = sum_of<32>(count);
    if (threadIdx.x % 32 == 0) {
        totals[threadIdx.x / 32] = total;
        counts[threadIdx.x / 32] = count;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        total = sum_of<32>(totals[threadIdx.x]);
        count = sum_of<32>(counts[threadIdx.x]);
        if (threadIdx.x == 0) *y = T(total / count);
    }
}
#endif
"""

TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@functools.cache
def compiled(dtype: torch.dtype, lanes: int, threads: int, **few: int) -> CudaLibrary:
    sizes = {"LANES": lanes, "THREADS": threads, "ITEMS": CONFIG["items"], **few}
    return compile_cuda(SOURCE, defines={"TYPE": TYPES[dtype], **sizes})


@functools.lru_cache(maxsize=1024)
def prepared(dtype: torch.dtype, rows: int, cols: int) -> tuple[Launch, Launch | None]:
    """The rows' losses, and their mean, or both in one; kept: to find them takes longer than to
    make them."""
    vectors = ceil_div(cols * dtype.itemsize, 16)
    wanted = 1 << (ceil_div(vectors, CONFIG["items"]) - 1).bit_length()
    most = 8 if torch.cuda.get_device_capability()[0] >= 9 else 1
    small = rows * cols * dtype.itemsize <= most * CONFIG["one"] * 1024
    if small and 0 < rows <= most * 32:
        fair = 1 << (most * 1024 // rows).bit_length() - 1
        lanes = min(max(wanted, 32), fair, 1024)
        cluster = 1 if rows * lanes <= 1024 else most
        kernel = compiled(dtype, lanes, 1024, CLUSTER=cluster).loss_of_few
        return kernel.prepared(cluster, 1024, rows, cols), None
    lanes = min(wanted, 1024 if rows < 256 else CONFIG["lanes"])
    threads = lanes if lanes > 32 else CONFIG["threads"]
    library = compiled(dtype, lanes, threads)
    losses = library.row_losses.prepared(ceil_div(rows, threads // lanes), threads, rows, cols)
    return losses, library.mean_loss.prepared(1, 1024, rows)


def kernel_fn(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`logits [..., V]`, `targets [...]`: the mean over targets other than -100, as one number
    in the logits' dtype."""
    logits, targets = logits.contiguous(), targets.contiguous()
    rows, cols = targets.numel(), logits.shape[-1]
    y = logits.new_empty(())
    row_losses, mean_loss = prepared(logits.dtype, rows, cols)
    if mean_loss is None:
        row_losses(logits, targets, y)
        return y
    losses = logits.new_empty(rows, dtype=torch.float32)
    if rows:
        row_losses(logits, targets, losses)
    mean_loss(losses, targets, y)
    return y
