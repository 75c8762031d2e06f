"""Gated MLP in CUDA C++: one launch for both projections and the gate, one for the way down.

The hidden numbers go through memory in x's dtype. `project_tma` is Hopper's: one warp keeps a ring
of tiles in shared memory filled by bulk copies (TMA), two warpgroups multiply from there (wgmma);
a tile has two halves, which are the gate's and the other projection's, or neighbours on the way
down. `project` is for all else: fp32, other chips, rows at odd addresses; it multiplies in fp32 on
the CUDA cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from pytest_autokernel.cuda import CudaLibrary, Launch, TensorMap, compile_cuda, tensor_maps

KERNEL_TYPE = "fused_mlp"
SUPPORTS = {"gelu", "relu2"}

# half: columns of each half of a tile (of 128 rows, in steps of 64 of K), 64 where such tiles would
# not fill the device; stages: tiles in the ring; group: rows of tiles that are worked on together,
# for the L2's sake.
CONFIG = {"half": 128, "stages": 4, "group": 16}
SPACE = {
    "half": [64, 128],
    "stages": [2, 3, 4, 5, 6],
    "group": [4, 8, 16],
    "rules": ["stages * (128 + 2 * half) * 128 <= 231424"],  # 227 KiB, less the alignment
}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using T = TYPE;

// The hidden number of a gate and the other projection.
__device__ float activated(float gate, float up) {
#if ACTIVATION == 0  // SiLU
    return gate / (1 + expf(-gate)) * up;
#elif ACTIVATION == 1  // GELU
    return 0.5f * gate * (1 + erff(gate * 0.70710678f)) * up;
#else  // the square of the ReLU
    return gate > 0 ? gate * gate * up : gate != gate ? gate : 0 * up;
#endif
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && defined(NAME)
constexpr int BM = 128, BK = 64, WIDTH = GATED ? HALF : 2 * HALF;
constexpr int RELEASES = 8;  // by each warp that multiplies
constexpr int X_BYTES = BM * BK * 2, W_BYTES = HALF * BK * 2, STAGE = X_BYTES + 2 * W_BYTES;

struct alignas(64) Map { unsigned long long opaque[16]; };  // a CUtensorMap

__device__ unsigned address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ void wait(const unsigned long long* barrier, int parity) {
    unsigned done;
    do asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
        " selp.u32 %0, 1, 0, p;}"
        : "=r"(done) : "r"(address(barrier)), "r"(parity) : "memory");
    while (!done);
}

__device__ void arrive(const unsigned long long* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(address(barrier)) : "memory");
}

__device__ void fetch(unsigned to, const Map& map, const unsigned long long* barrier, int col,
                      int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];"
        :: "r"(to), "l"(&map), "r"(address(barrier)), "r"(col), "r"(row) : "memory");
}

// What wgmma is told of a tile in shared memory, rows of 128 bytes in swizzled groups of 8: where
// it begins, and how far apart these groups are.
__device__ unsigned long long operand(unsigned at) {
    return (unsigned long long)(at >> 4) | 1ull << 16 | (unsigned long long)(1024 >> 4) << 32 |
           1ull << 62;
}

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define FIRST_32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
    "%25,%26,%27,%28,%29,%30,%31"
#define SECOND_32 \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
    "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d += x w^T for 64 rows, HALF columns and 16 of K; d = x w^T where `more` is 0.
__device__ void multiply(float (&d)[HALF / 2], unsigned long long x, unsigned long long w,
                         int more) {
#if HALF == 128
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" FIRST_32 SECOND_32 "}, "
        "%64, %65, p, 1, 1, 0, 0;}"
        : D16(0), D16(16), D16(32), D16(48) : "l"(x), "l"(w), "r"(more));
#else
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {" FIRST_32 "}, "
        "%32, %33, p, 1, 1, 0, 0;}"
        : D16(0), D16(16) : "l"(x), "l"(w), "r"(more));
#endif
}

// Past the wait for them the sums are in `d`, which the compiler cannot know.
__device__ void settle(float (&d)[HALF / 2]) {
#pragma unroll
    for (int i = 0; i < HALF / 2; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

// Down a group of GROUP tiles first, then to the right, so that tiles in work share operands.
__device__ int2 place(int tile, int rows, int cols) {
    int first = tile / (GROUP * cols) * GROUP, height = min(rows - first, GROUP);
    int within = tile % (GROUP * cols);
    return {(first + within % height) * BM, within / height * WIDTH};
}

// The last warpgroup, by one thread: fills the ring.
__device__ void produce(const Map& x, const Map& left, const Map& right, unsigned ring,
                        unsigned long long* full, unsigned long long* empty, int rows, int cols,
                        int K) {
    int step = 0;
    for (int tile = blockIdx.x; tile < rows * cols; tile += gridDim.x) {
        int2 at = place(tile, rows, cols);
        for (int k = 0; k < K; k += BK, step++) {
            int s = step % STAGES;
            wait(&empty[s], step / STAGES % 2 ^ 1);
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                         :: "r"(address(&full[s])), "r"(STAGE) : "memory");
            unsigned to = ring + s * STAGE;
            fetch(to, x, &full[s], k, at.x);
            fetch(to + X_BYTES, left, &full[s], k, at.y);
            fetch(to + X_BYTES + W_BYTES, right, &full[s], k, at.y + WIDTH - HALF);
        }
    }
}

// Two results that lie side by side; N is even, as rows are aligned.
__device__ void store(T* to, float first, float second, bool inside) {
    T both[2] = {T(first), T(second)};
    if (inside) *(unsigned*)to = *(const unsigned*)both;
}

// A warpgroup that multiplies: 64 rows of each tile. A stage is given back when the products of the
// next one have been issued, so that the tensor cores always have something to do.
__device__ void consume(T* y, unsigned ring, unsigned long long* full, unsigned long long* empty,
                        int rows, int cols, int M, int N, int K) {
    int group = threadIdx.x / 128, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, step = 0;
    float left[HALF / 2], right[HALF / 2];
    for (int tile = blockIdx.x; tile < rows * cols; tile += gridDim.x) {
        for (int k = 0; k < K; k += BK, step++) {
            int s = step % STAGES;
            wait(&full[s], step / STAGES % 2);
            unsigned x = ring + s * STAGE + group * (X_BYTES / 2), w = ring + s * STAGE + X_BYTES;
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int part = 0; part < BK / 16; part++) {
                multiply(left, operand(x + part * 32), operand(w + part * 32), k + part > 0);
                multiply(right, operand(x + part * 32), operand(w + W_BYTES + part * 32),
                         k + part > 0);
            }
            asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;"
                         ::: "memory");
            if (k > 0 && lane == 0) arrive(&empty[(step + STAGES - 1) % STAGES]);
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        settle(left);
        settle(right);
        if (lane == 0) arrive(&empty[(step + STAGES - 1) % STAGES]);
        int2 at = place(tile, rows, cols);
        int row = at.x + group * 64 + warp * 16 + lane / 4, col = at.y + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < HALF / 2; i += 2) {
            int r = row + i / 2 % 2 * 8, c = col + i / 4 * 8;
            T* to = y + (long long)r * N + c;
#if GATED
            store(to, activated(left[i], right[i]), activated(left[i + 1], right[i + 1]),
                  r < M && c < N);
#else
            store(to, left[i], left[i + 1], r < M && c < N);
            store(to + HALF, right[i], right[i + 1], r < M && c + HALF < N);
#endif
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) project_tma(
    const __grid_constant__ Map x, const __grid_constant__ Map left,
    const __grid_constant__ Map right, T* y, int M, int N, int K) {
    extern __shared__ unsigned char room[];
    __shared__ unsigned long long full[STAGES], empty[STAGES];
    unsigned ring = (address(room) + 1023) / 1024 * 1024;  // the swizzle counts from there
    int rows = (M + BM - 1) / BM, cols = (N + WIDTH - 1) / WIDTH;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(address(&full[s])));
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                         :: "r"(address(&empty[s])), "n"(RELEASES));
        }
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    // 128 sums a thread leave the two that multiply no room: the third gives up its registers.
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 256) produce(x, left, right, ring, full, empty, rows, cols, K);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume(y, ring, full, empty, rows, cols, M, N, K);
    }
}
#endif

// A tile of 64 x 64, 4 x 4 a thread, in steps of 16 of K; what is outside is zero.
extern "C" __global__ void __launch_bounds__(256) project(const T* x, const T* left, const T* right,
                                                          T* y, int M, int N, int K) {
    constexpr int TILE = 64, STEP = 16, BOTH = 1 + GATED;
    __shared__ float rows[STEP][TILE + 4], columns[BOTH][STEP][TILE + 4];
    int tiles = (N + TILE - 1) / TILE;
    int first_row = blockIdx.x / tiles * TILE, first_col = blockIdx.x % tiles * TILE;
    int a = threadIdx.x % 16 * 4, b = threadIdx.x / 16 * 4;
    float sum[BOTH][4][4] = {};
    for (int start = 0; start < K; start += STEP) {
        for (int i = threadIdx.x; i < TILE * STEP; i += 256) {
            int k = start + i % STEP, row = first_row + i / STEP, col = first_col + i / STEP;
            bool inside = col < N && k < K;
            rows[i % STEP][i / STEP] = row < M && k < K ? float(x[(long long)row * K + k]) : 0.0f;
            columns[0][i % STEP][i / STEP] = inside ? float(left[(long long)col * K + k]) : 0.0f;
            if (GATED)
                columns[GATED][i % STEP][i / STEP] =
                    inside ? float(right[(long long)col * K + k]) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < STEP; k++)
#pragma unroll
            for (int which = 0; which < BOTH; which++)
#pragma unroll
                for (int i = 0; i < 16; i++)
                    sum[which][i / 4][i % 4] += rows[k][b + i / 4] * columns[which][k][a + i % 4];
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        int row = first_row + b + i / 4, col = first_col + a + i % 4;
        float value = sum[0][i / 4][i % 4];
        if (GATED) value = activated(value, sum[GATED][i / 4][i % 4]);
        if (row < M && col < N) y[(long long)row * N + col] = T(value);
    }
}
"""

# The type, and its name in PTX where the tensor cores have it.
TYPES = {
    torch.float32: {"TYPE": "float"},
    torch.float16: {"TYPE": "__half", "NAME": '"f16"'},
    torch.bfloat16: {"TYPE": "__nv_bfloat16", "NAME": '"bf16"'},
}
ACTIVATIONS = ["silu", "gelu", "relu2"]


@functools.cache
def compiled(dtype: torch.dtype, gated: bool, activation: int, half: int) -> CudaLibrary:
    tile = {"HALF": half, "STAGES": CONFIG["stages"], "GROUP": CONFIG["group"]}
    gate = {"GATED": int(gated), "ACTIVATION": activation}
    return compile_cuda(SOURCE, defines={**TYPES[dtype], **tile, **gate})


Maps = tuple[Callable[[int], TensorMap], Callable[[int], TensorMap]]  # of x and of a weight


@functools.lru_cache(maxsize=1024)
def prepared(
    dtype: torch.dtype, sizes: tuple[int, int, int], gated: bool, activation: int, aligned: bool
) -> tuple[Launch, Maps | None]:
    """The launch for a result of M rows and N columns, each a sum of K, where all begins at
    multiples of 16 bytes or not, and how the copy engine finds the operands by their addresses, if
    it can; kept: to find it takes longer than to make it."""
    M, N, K = sizes
    hopper = torch.cuda.get_device_capability() == (9, 0) and dtype != torch.float32
    if hopper and aligned and K and not N * dtype.itemsize % 16 and not K * dtype.itemsize % 16:
        cores = torch.cuda.get_device_properties().multi_processor_count
        half, halves, high = CONFIG["half"], 1 if gated else 2, -(-M // 128)
        if high * -(-N // (half * halves)) < cores // 2:
            half = 64
        launch = compiled(dtype, gated, activation, half).project_tma.prepared(
            *(min(high * -(-N // (half * halves)), cores), 384, *sizes),
            shared=CONFIG["stages"] * (128 + 2 * half) * 128 + 1024,
        )
        of_x = tensor_maps((M, K), (K, 1), dtype, (128, 64))
        return launch, (of_x, tensor_maps((N, K), (K, 1), dtype, (half, 64)))
    library = compiled(dtype, gated, activation, CONFIG["half"])
    return library.project.prepared(-(-M // 64) * -(-N // 64), 256, *sizes), None


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
    hidden = torch.empty((x.shape[0], w_gate.shape[0]), dtype=x.dtype, device=x.device)
    if y.numel():
        project(x, w_gate, w_up, hidden, ACTIVATIONS.index(activation))
        project(hidden, w_down, None, y, 0)
    return y


def project(
    x: torch.Tensor, left: torch.Tensor, right: torch.Tensor | None, y: torch.Tensor, act: int
) -> None:
    """Into `y [M, N]`: `x [M, K]` times `left [N, K]`, gated by it where there is a `right`."""
    sizes = (*y.shape, x.shape[1])
    if not sizes[1]:
        return
    other = left if right is None else right
    at, first, second = x.data_ptr(), left.data_ptr(), other.data_ptr()
    aligned = (at | first | second | y.data_ptr()) % 16 == 0
    launch, maps = prepared(x.dtype, sizes, right is not None, act, aligned)
    if maps:
        of_x, of_weight = maps
        launch(of_x(at), of_weight(first), of_weight(second), y)
    else:
        launch(x, left, other, y)
