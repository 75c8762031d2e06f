"""LayerNorm in CUDA C++: a row is read once and held in registers, of a part of a warp while it is
short and of a cluster of blocks (Hopper and later) when it is long; longer ones are read anew each
time. Many long rows are done by blocks that stay: the next ones are copied meanwhile (Hopper and
later).

Rows that begin anywhere are read by 16 bytes all the same: the first and the last ones by element.
"""

from __future__ import annotations

import functools

import torch

from pytest_autokernel.cuda import CudaKernel, CudaLibrary, Launch, compile_cuda

KERNEL_TYPE = "layernorm"
SUPPORTS = {"nd"}

# items: 16-byte vectors of a row per thread; lanes: threads of a block that has a part of a row,
# where a cluster of eight has room for it; threads: of a block that has several rows; most:
# vectors that a thread holds. What is longer is read anew each time. staying: vectors of a row at
# least for blocks that stay, whose threads hold so many each (staying_items).
CONFIG = {
    "items": 4, "lanes": 256, "threads": 128, "most": 8, "staying": 256, "staying_items": 4,
}  # fmt: skip
SPACE = {
    "items": [1, 2, 4, 8],
    "lanes": [128, 256, 512],
    "threads": [64, 128, 256],
    "most": [4, 8],
    "staying": [256, 512, 1024, 4096, 32768],
    "staying_items": [2, 4],
    "rules": ["items <= most"],
}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using T = TYPE;
using Barrier = unsigned long long;
constexpr int VEC = 16 / sizeof(T), SPAN = CLUSTER * LANES;

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

__device__ void store(T* row, long long first, long long cols, Vector v) {
    if (whole(row, first, cols)) *(uint4*)(row + first) = v.raw;
    else
        for (int e = 0; e < VEC; e++)
            if (first + e >= 0 && first + e < cols) row[first + e] = v.item[e];
}

__device__ float across_lanes(float sum) {
    for (int step = LANES < 32 ? LANES / 2 : 16; step; step /= 2)
        sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
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

// Of all that have a part of the row: each warp tells every block of the cluster, the first time
// and the second in places of their own.
__device__ float across_row(float sum, int time) {
    sum = across_lanes(sum);
#if LANES > 32
    constexpr int WARPS = LANES / 32;
    __shared__ float parts[2][CLUSTER * WARPS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (time == 0) wait();  // for all to have begun
    if (lane < CLUSTER) {
        float* theirs = &parts[time][blockIdx.x % CLUSTER * WARPS + warp];
#if CLUSTER > 1
        asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(theirs), "r"(lane));
#endif
        *theirs = sum;
    }
    arrive();
    wait();
    sum = 0;
    for (int i = lane; i < CLUSTER * WARPS; i += 32) sum += parts[time][i];
    sum = across_lanes(sum);
#endif
    return sum;
}

__device__ float total(const Vector& v) {
    float sum = 0;
    for (int e = 0; e < VEC; e++) sum += float(v.item[e]);
    return sum;
}

// The squares of what differs from the mean; what is outside of the row does not count.
__device__ float squares(const Vector& v, float mean, long long first, long long cols) {
    float sum = 0;
    bool all = first >= 0 && first + VEC <= cols;
    for (int e = 0; e < VEC; e++) {
        float centred = float(v.item[e]) - mean;
        if (all || (first + e >= 0 && first + e < cols)) sum += centred * centred;
    }
    return sum;
}

__device__ Vector scaled(
    const Vector& x, float mean, float scale, const Vector& w, const Vector& b) {
    Vector y;
    for (int e = 0; e < VEC; e++)
        y.item[e] = T((float(x.item[e]) - mean) * scale * float(w.item[e]) + float(b.item[e]));
    return y;
}

#ifdef HELD
extern "C" __global__ void __launch_bounds__(THREADS) IN_CLUSTER layernorm_held(
    const T* x, const T* weight, const T* bias, T* y, long long rows, int cols, float eps) {
    arrive();
    // Threads beyond the last row do it once more, with the same result.
    long long row = blockIdx.x / CLUSTER * (long long)(THREADS / LANES) + threadIdx.x / LANES;
    row = min(row, rows - 1) * cols;
    int start = (blockIdx.x % CLUSTER * LANES + threadIdx.x % LANES) * VEC;
    start -= (size_t)(x + row) % 16 / sizeof(T);
    Vector v[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) v[i] = load(x + row, start + i * SPAN * VEC, cols);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) sum += total(v[i]);
    float mean = across_row(sum, 0) / cols;
    sum = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) sum += squares(v[i], mean, start + i * SPAN * VEC, cols);
    float scale = rsqrtf(across_row(sum, 1) / cols + eps);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int at = start + i * SPAN * VEC;
        store(y + row, at, cols,
              scaled(v[i], mean, scale, load(weight, at, cols), load(bias, at, cols)));
    }
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

// A bulk copy of a row.
__device__ void fetch(Vector* to, Barrier* full, const T* row, int cols) {
    int bytes = cols * sizeof(T);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(address(full)), "r"(bytes) : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :: "r"(address(to)), "l"(row), "r"(bytes), "r"(address(full)) : "memory");
}

// While a block works on a row, the next ones are fetched. Rows begin at multiples of 16 bytes.
extern "C" __global__ void __launch_bounds__(LANES, BLOCKS) layernorm_staying(
    const T* x, const T* weight, const T* bias, T* y, long long rows, int cols, float eps) {
    extern __shared__ __align__(128) Vector ring[];
    __shared__ Barrier full[STAGES];
    long long at = blockIdx.x;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(address(full + i)));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        for (long long s = 0, row = at; s < STAGES && row < rows; s++, row += gridDim.x)
            fetch(ring + s * ITEMS * LANES, full + s, x + row * cols, cols);
    }
    Vector v[ITEMS], w[ITEMS], b[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        w[i] = load(weight, (i * LANES + threadIdx.x) * VEC, cols);
        b[i] = load(bias, (i * LANES + threadIdx.x) * VEC, cols);
        v[i].raw = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
    for (int turn = 0; at < rows; at += gridDim.x, turn++) {
        Vector* mine = ring + turn % STAGES * ITEMS * LANES + threadIdx.x;
        wait_for(full + turn % STAGES, turn / STAGES % 2);
        float sum = 0, apart = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if ((i * LANES + threadIdx.x) * VEC < cols) v[i].raw = mine[i * LANES].raw;
            sum += total(v[i]);
        }
        float mean = across_row(sum, 0) / cols;
        // All of this block have read the stage.
        if (long long next = at + STAGES * (long long)gridDim.x; threadIdx.x == 0 && next < rows)
            fetch(mine, full + turn % STAGES, x + next * cols, cols);
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            apart += squares(v[i], mean, (i * LANES + threadIdx.x) * VEC, cols);
        float scale = rsqrtf(across_row(apart, 1) / cols + eps);
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            int first = (i * LANES + threadIdx.x) * VEC;
            if (first < cols)
                *(uint4*)(y + at * cols + first) = scaled(v[i], mean, scale, w[i], b[i]).raw;
        }
    }
}
#else
extern "C" __global__ void __launch_bounds__(THREADS) IN_CLUSTER layernorm_long(
    const T* x, const T* weight, const T* bias, T* y, long long rows, long long cols, float eps) {
    arrive();
    long long row = blockIdx.x / CLUSTER * cols;
    long long start = (blockIdx.x % CLUSTER * LANES + threadIdx.x) * VEC;
    start -= (size_t)(x + row) % 16 / sizeof(T);
    float sum = 0;
#pragma unroll 4
    for (long long at = start; at < cols; at += SPAN * VEC)
        sum += total(load(x + row, at, cols));
    float mean = across_row(sum, 0) / cols;
    sum = 0;
#pragma unroll 4
    for (long long at = start; at < cols; at += SPAN * VEC)
        sum += squares(load(x + row, at, cols), mean, at, cols);
    float scale = rsqrtf(across_row(sum, 1) / cols + eps);
    for (long long at = start; at < cols; at += SPAN * VEC)
        store(y + row, at, cols,
              scaled(load(x + row, at, cols), mean, scale, load(weight, at, cols),
                     load(bias, at, cols)));
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
        return library.layernorm_long, 1024, 1, cluster
    threads = lanes if lanes > 32 else CONFIG["threads"]
    library = compiled(dtype, lanes=lanes, threads=threads, items=items, cluster=cluster, held=1)
    return library.layernorm_held, threads, threads // lanes, cluster


def staying(dtype: torch.dtype, rows: int, cols: int, eps: float) -> Launch | None:
    """The launch of blocks that stay, for rows that are long and many enough."""
    device, items = torch.cuda.get_device_properties(), CONFIG["staying_items"]
    cores, vectors = device.multi_processor_count, cols * dtype.itemsize // 16
    if device.major < 9 or rows < cores or not CONFIG["staying"] <= vectors <= 512 * items:
        return None
    lanes = max(64, 32 * ceil_div(vectors, 32 * items))
    blocks, stages = 512 // lanes, 2
    library = compiled(dtype, lanes=lanes, items=items, cluster=1, stages=stages, blocks=blocks)
    shared = stages * 16 * items * lanes
    kernel, grid = library.layernorm_staying, min(rows, cores * blocks)
    return kernel.prepared(grid, lanes, rows, cols, eps, shared=shared)


@functools.lru_cache(maxsize=1024)
def prepared(dtype: torch.dtype, size: int, cols: int, aligned: bool, eps: float) -> Launch:
    """The launch for `size` elements in rows of `cols`, from an address that is `aligned` or not;
    kept: to find it takes longer than to make it."""
    vec, rows = 16 // dtype.itemsize, size // cols
    if aligned and cols % vec == 0 and (launch := staying(dtype, rows, cols, eps)):
        return launch
    # Rows that begin between the multiples of 16 bytes touch one vector more.
    more = 0 if cols % vec == 0 and aligned else vec - 1
    kernel, threads, many, cluster = chosen(dtype, ceil_div(cols + more, vec), rows < 64)
    return kernel.prepared(ceil_div(rows, many) * cluster, threads, rows, cols, eps)


def kernel_fn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dim; `weight` and `bias` are
    [x.shape[-1]]."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = torch.empty_like(x)
    size = y.numel()
    if not size:
        return y
    launch = prepared(x.dtype, size, x.shape[-1], x.data_ptr() % 16 == 0, float(eps))
    launch(x, weight, bias, y)
    return y
