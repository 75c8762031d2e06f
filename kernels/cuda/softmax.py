"""Softmax in CUDA C++: a row is read once and held in registers, of a part of a warp while it is
short and of a cluster of blocks (Hopper and later) when it is long; longer ones are read twice.
Many long rows are done by blocks that stay: the next ones are copied meanwhile (Hopper and later).

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
# vectors that a thread holds, what is longer is read twice; staying: vectors of a row at least for
# blocks that stay.
CONFIG = {"items": 4, "lanes": 256, "threads": 128, "most": 12, "staying": 1536}
SPACE = {
    "items": [1, 2, 4, 8],
    "lanes": [128, 256, 512],
    "threads": [64, 128, 256],
    "most": [4, 8, 12],
    "staying": [512, 1024, 1536, 4096, 32768],
    "rules": ["items <= most"],
}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

using T = TYPE;
using Barrier = unsigned long long;
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
    if (whole(row, first, cols)) __stcs((uint4*)(row + first), v.raw);
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

// Of all that have a part of the row: each warp tells every block of the cluster. A warp that is a
// turn ahead of another writes to the other half; two turns it cannot be.
__device__ Partial across_row(Partial p, int turn = 0) {
    p = across_lanes(p);
#if LANES > 32
    constexpr int WARPS = LANES / 32;
    __shared__ __align__(8) Partial halves[2][CLUSTER * WARPS];
    Partial *parts = halves[turn % 2], *mine = parts + blockIdx.x % CLUSTER * WARPS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane < CLUSTER) {
        Partial* theirs = mine + warp;
#if CLUSTER > 1
        asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(theirs), "r"(lane));
#endif
        *theirs = p;
    }
    arrive(), wait();
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
    wait();  // for all to have begun
    p = across_row(p);
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
        store(y + row, start + i * SPAN * VEC, cols, quotients(v[i], p));
}
#elif defined(STAGES)
__device__ unsigned address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ void wait_for(const Barrier* barrier, int parity) {
    unsigned done;
    do asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
        " selp.u32 %0, 1, 0, p;}"
        : "=r"(done) : "r"(address(barrier)), "r"(parity) : "memory");
    while (!done);
}

// Elements by which a row begins after a multiple of 128 bytes, where the copies of it begin. What
// they read before the first row is in its allocation, which begins at a multiple of 256.
__device__ int shift(const T* row) { return (size_t)row % 128 / sizeof(T); }

// A bulk copy of a row, but for what of a vector is beyond the last one.
__device__ void fetch(Vector* to, Barrier* full, const T* row, int cols, bool last) {
    int bytes = (shift(row) + cols + (last ? 0 : VEC - 1)) / VEC * 16;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(address(full)), "r"(bytes) : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :: "r"(address(to)), "l"(row - shift(row)), "r"(bytes), "r"(address(full)) : "memory");
}

// While a block works on a row, the next ones are fetched.
extern "C" __global__ void __launch_bounds__(LANES, BLOCKS)
softmax_staying(const T* x, T* y, long long rows, int cols) {
    extern __shared__ __align__(128) Vector ring[];
    __shared__ Barrier full[STAGES];
    long long at = blockIdx.x, step = gridDim.x;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(address(full + i)));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        for (long long s = 0, row = at; s < STAGES && row < rows; s++, row += step)
            fetch(ring + s * ITEMS * LANES, full + s, x + row * cols, cols, row == rows - 1);
    }
    __syncthreads();
    for (int turn = 0; at < rows; at += step, turn++) {
        Vector* mine = ring + turn % STAGES * ITEMS * LANES + threadIdx.x;
        const T* row = x + at * cols;
        int start = (int)threadIdx.x * VEC - shift(row);
        wait_for(full + turn % STAGES, turn / STAGES % 2);
        // Each thread's powers, of its own largest element: what is left to do is one product.
        float e[ITEMS * VEC], own = LOWEST, sums[4] = {};
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            Vector v = mine[i * LANES];
            int first = start + i * LANES * VEC;
            if (first < 0 || first + VEC > cols)
                for (int j = 0; j < VEC; j++)
                    if (first + j < 0 || first + j >= cols) v.item[j] = T(LOWEST);
                    else if (at == rows - 1) v.item[j] = row[first + j];
            for (int j = 0; j < VEC; j++) own = fmaxf(own, e[i * VEC + j] = float(v.item[j]));
        }
#pragma unroll
        for (int i = 0; i < ITEMS * VEC; i++) sums[i % 4] += e[i] = power(e[i], own);
        float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        Partial p = across_row({own, sum}, turn);
        // All of this block have read the stage.
        if (long long next = at + STAGES * step; threadIdx.x == 0 && next < rows)
            fetch(mine, full + turn % STAGES, x + next * cols, cols, next == rows - 1);
        float scale = power(own, p.top) / p.sum;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            Vector v;
            for (int j = 0; j < VEC; j++) v.item[j] = T(e[i * VEC + j] * scale);
            store(y + at * cols, start + i * LANES * VEC, cols, v);
        }
    }
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
    wait();  // for all to have begun
    p = across_row(p);
#pragma unroll 2
    for (long long at = start; at < cols; at += SPAN * VEC)
        store(y + row, at, cols, quotients(load(x + row, at, cols), p));
}
#endif
"""

SHARED = 224 * 1024  # bytes of a multiprocessor's shared memory for copies of rows
TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}


@functools.cache
def compiled(dtype: torch.dtype, **sizes: int) -> CudaLibrary:
    defines = {name.upper(): size for name, size in sizes.items()}
    return compile_cuda(SOURCE, defines={"TYPE": TYPES[dtype], **defines})


def chosen(dtype: torch.dtype, vectors: int, few: bool) -> tuple[CudaKernel, int, int, int]:
    """The kernel for rows of so many vectors, its threads, rows per block, blocks per row."""
    most_blocks = 8 if torch.cuda.get_device_capability()[0] >= 9 else 1
    wanted = 1 << (-(-vectors // CONFIG["items"]) - 1).bit_length()
    cluster = min(max(wanted // CONFIG["lanes"], 1), most_blocks)
    lanes = min(wanted // cluster, 512)
    items = -(-vectors // (lanes * cluster))
    if items > CONFIG["most"]:
        cluster = most_blocks if few else 1
        library = compiled(dtype, lanes=1024, threads=1024, items=2, cluster=cluster)
        return library.softmax_long, 1024, 1, cluster
    threads = lanes if lanes > 32 else CONFIG["threads"]
    library = compiled(dtype, lanes=lanes, threads=threads, items=items, cluster=cluster, held=1)
    return library.softmax_held, threads, threads // lanes, cluster


def staying(dtype: torch.dtype, rows: int, cols: int) -> Launch | None:
    """The launch of blocks that stay, for rows that are long and many enough."""
    device = torch.cuda.get_device_properties()
    cores, vec = device.multi_processor_count, 16 // dtype.itemsize
    vectors = -(-cols // vec) + (0 if cols * dtype.itemsize % 128 == 0 else 8)
    items = 64 // vec  # so many powers does a thread hold
    lanes = -(-vectors // (32 * items)) * 32
    part = 16 * items * lanes  # bytes of a row in shared memory
    few = device.major < 9 or rows < cores or vectors < CONFIG["staying"]
    if few or lanes > 640 or 2 * part > SHARED:  # longer rows are faster by the clusters
        return None
    blocks = 2 if lanes <= 416 and 4 * part <= SHARED else 1
    stages = min(SHARED // (blocks * part), 3)
    library = compiled(dtype, lanes=lanes, items=items, cluster=1, stages=stages, blocks=blocks)
    grid, kernel = min(rows, blocks * cores), library.softmax_staying
    return kernel.prepared(grid, lanes, rows, cols, shared=stages * part)


@functools.lru_cache(maxsize=1024)
def prepared(dtype: torch.dtype, shape: tuple[int, ...], aligned: bool) -> Launch | None:
    """The launch for rows from an address that is `aligned` or not, if there are any elements;
    kept: to find it takes longer than to make it."""
    vec, cols, rows = 16 // dtype.itemsize, shape[-1], math.prod(shape[:-1])
    if not rows * cols:
        return None
    if aligned and (launch := staying(dtype, rows, cols)):
        return launch
    # Rows that begin between the multiples of 16 bytes touch one vector more.
    more = 0 if cols % vec == 0 and aligned else vec - 1
    kernel, threads, many, cluster = chosen(dtype, -(-(cols + more) // vec), rows < 64)
    return kernel.prepared(-(-rows // many) * cluster, threads, rows, cols)


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
