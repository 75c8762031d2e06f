"""Gated MLP in CUDA C++: one launch for both projections and the gate, one for the way down.

The hidden numbers go through memory in x's dtype. `project_tma` is Hopper's: one warp keeps a ring
of tiles in shared memory filled by bulk copies (TMA), two warpgroups multiply from there (wgmma);
a tile has two halves, which are the gate's and the other projection's, or neighbours on the way
down. Of few rows it computes the transpose: each warpgroup has a half, and a tile's K may be shared
by a cluster's blocks, so that the whole device reads the weights. `project` is for all else: fp32,
other chips, rows at odd addresses; it multiplies in fp32 on the CUDA cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pytest_autokernel.cuda import CudaLibrary, Launch, TensorMap, compile_cuda, tensor_maps

KERNEL_TYPE = "fused_mlp"
SUPPORTS = {"gelu", "relu2"}

# half: columns of each half of a tile (of 128 rows, in steps of 64 of K), 64 where such tiles would
# not fill the device; stages: tiles in the ring; group: rows of tiles that are worked on together,
# for the L2. Where rows are few, split: blocks to a tile that would leave others idle; ring: KiB.
CONFIG = {"half": 128, "stages": 4, "group": 16, "split": 4, "ring": 96}
SPACE = {
    "half": [64, 128],
    "stages": [2, 3, 4, 5, 6],
    "group": [4, 8, 16],
    "split": [1, 2, 4],
    "ring": [64, 96, 192],
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

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && defined(MULTIPLY)
#define FEW (BM <= 64)
constexpr int BK = 64, WIDTH = GATED ? HALF : 2 * HALF, RELEASES = 8;  // by warps that multiply
constexpr int X_BYTES = BM * BK * 2, W_BYTES = HALF * BK * 2, STAGE = X_BYTES + 2 * W_BYTES;

struct alignas(64) Map { unsigned long long opaque[16]; };  // a CUtensorMap

extern __shared__ unsigned char room[];
__shared__ unsigned long long full[STAGES], empty[STAGES];

__device__ unsigned address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ void wait(const unsigned long long* barrier, int parity) {
    asm volatile("{.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;}" :: "r"(address(barrier)), "r"(parity) : "memory");
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

// d += x y^T for 64 rows and 16 of K; d = x y^T where `more` is 0.
__device__ void multiply(float (&d)[SUMS], unsigned x, unsigned y, int more) {
    asm volatile(MULTIPLY : OF(d) : "l"(operand(x)), "l"(operand(y)), "r"(more));
}

// Down a group of GROUP tiles first, then to the right, so that tiles in work share operands.
__device__ int2 place(int tile, int rows, int cols) {
    int first = tile / (GROUP * cols) * GROUP, height = min(rows - first, GROUP);
    int within = tile % (GROUP * cols);
    return {(first + within % height) * BM, within / height * WIDTH};
}

// The last warpgroup, by one thread: fills the ring.
__device__ void produce(const Map& x, const Map& left, const Map& right, unsigned ring, int rows,
                        int cols, int2 part) {
    int step = 0;
    for (int tile = blockIdx.x / SPLIT; tile < rows * cols; tile += gridDim.x / SPLIT) {
        int2 at = place(tile, rows, cols);
        for (int k = part.x; k < part.y; k += BK, step++) {
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

#if FEW
#define MEET asm volatile("barrier.cluster.arrive.aligned;barrier.cluster.wait.aligned;":::"memory")

// Adds up, in their order, the sums of the blocks that share a tile, and stores it transposed.
__device__ void store_few(const float (&d)[SUMS], float* sums, T* y, int2 at, int M, int N) {
    constexpr int PITCH = 2 * HALF + 4;  // a warp's lanes write to as many banks
    int first = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, row = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < SUMS; i++)
        sums[(row + i / 4 * 8 + i % 2) * PITCH + first + i / 2 % 2 * 8] = d[i];
    MEET;
    for (int i = blockIdx.x % SPLIT * 256 + threadIdx.x; i < M * (WIDTH / 2); i += SPLIT * 256) {
        int m = i / (WIDTH / 2), n = i % (WIDTH / 2) * 2;
        float sum[1 + GATED][2] = {};
#pragma unroll
        for (int part = 0; part < SPLIT * (1 + GATED); part++) {
            int half = part / SPLIT;
            const float* theirs = sums + m * PITCH + half * HALF + n;
            asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(theirs), "r"(part % SPLIT));
            for (int i = 0; i < 2; i++) sum[half][i] += theirs[i];
        }
        if (GATED)
            for (int i = 0; i < 2; i++) sum[0][i] = activated(sum[0][i], sum[GATED][i]);
        store(y + (long long)m * N + at.y + n, sum[0][0], sum[0][1], at.y + n < N);
    }
    MEET;  // nobody leaves while its sums are read
}
#endif

// A warpgroup that multiplies: 64 rows, or a half of few ones. A stage is given back when the next
// one's products have been issued, so that the tensor cores always have something to do.
__device__ void consume(T* y, unsigned ring, int rows, int cols, int2 part, int M, int N) {
    int group = threadIdx.x / 128, lane = threadIdx.x % 32, step = 0;
    float left[SUMS], right[SUMS];
    for (int tile = blockIdx.x / SPLIT; tile < rows * cols; tile += gridDim.x / SPLIT) {
        for (int k = part.x; k < part.y; k += BK, step++) {
            int s = step % STAGES;
            wait(&full[s], step / STAGES % 2);
            unsigned x = ring + s * STAGE + (FEW ? 0 : group * (X_BYTES / 2));
            unsigned w = ring + s * STAGE + X_BYTES + (FEW ? group * W_BYTES : 0);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int i = 0; i < BK / 16; i++) {
                int more = k + i > part.x, from = i * 32;
                multiply(left, (FEW ? w : x) + from, (FEW ? x : w) + from, more);
                if (!FEW) multiply(right, x + from, w + W_BYTES + from, more);
            }
            asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;"
                         ::: "memory");
            if (k > part.x && lane == 0) arrive(&empty[(step + STAGES - 1) % STAGES]);
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" : OF(left) :: "memory");
        if (lane == 0) arrive(&empty[(step + STAGES - 1) % STAGES]);
        int2 at = place(tile, rows, cols);
#if FEW
        asm volatile("bar.sync 1, 256;" ::: "memory");  // the other's tiles lie where the sums go
        store_few(left, (float*)(room + (ring - address(room))), y, at, M, N);
#else
        asm volatile("" : OF(right) :: "memory");
        int row = at.x + threadIdx.x / 32 * 16 + lane / 4, col = at.y + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < SUMS; i += 2) {
            int r = row + i / 2 % 2 * 8, c = col + i / 4 * 8;
            T* to = y + (long long)r * N + c;
            float first = GATED ? activated(left[i], right[i]) : left[i];
            float second = GATED ? activated(left[i + 1], right[i + 1]) : left[i + 1];
            store(to, first, second, r < M && c < N);
            if (!GATED) store(to + HALF, right[i], right[i + 1], r < M && c + HALF < N);
        }
#endif
    }
}

#if FEW
extern "C" __global__ void __launch_bounds__(384, 2) __cluster_dims__(SPLIT, 1, 1) project_tma(
#else
extern "C" __global__ void __launch_bounds__(384, 1) project_tma(
#endif
    const __grid_constant__ Map x, const __grid_constant__ Map left,
    const __grid_constant__ Map right, T* y, int M, int N, int K) {
    unsigned ring = (address(room) + 1023) / 1024 * 1024;  // the swizzle counts from there
    int rows = (M + BM - 1) / BM, cols = (N + WIDTH - 1) / WIDTH;
    // A block's part of K, where several share a tile.
    int steps = (K + BK - 1) / BK, rank = blockIdx.x % SPLIT;
    int2 part = {steps * rank / SPLIT * BK, steps * (rank + 1) / SPLIT * BK};
    if (threadIdx.x < STAGES)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n"
                     "mbarrier.init.shared::cta.b64 [%1], %2;\n"
                     "fence.mbarrier_init.release.cluster;\nfence.proxy.async;"
                     :: "r"(address(&full[threadIdx.x])), "r"(address(&empty[threadIdx.x])),
                        "n"(RELEASES) : "memory");
    __syncthreads();
    // 128 sums a thread leave the two that multiply no room: the third gives up its registers.
    if (threadIdx.x >= 256) {
        if (!FEW) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 256) produce(x, left, right, ring, rows, cols, part);
    } else {
        if (!FEW) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume(y, ring, rows, cols, part, M, N);
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
            rows[i % STEP][i / STEP] = row < M && k < K ? float(x[(long long)row * K + k]) : 0.0f;
            for (int which = 0; which < BOTH; which++) {
                const T* w = (which ? right : left) + (long long)col * K + k;
                columns[which][i % STEP][i / STEP] = col < N && k < K ? float(*w) : 0.0f;
            }
        }
        __syncthreads();
        for (int k = 0; k < STEP; k++)
            for (int which = 0; which < BOTH; which++)
#pragma unroll
                for (int i = 0; i < 16; i++)
                    sum[which][i / 4][i % 4] += rows[k][b + i / 4] * columns[which][k][a + i % 4];
        __syncthreads();
    }
    for (int i = 0; i < 16; i++) {
        int row = first_row + b + i / 4, col = first_col + a + i % 4;
        float value = sum[0][i / 4][i % 4];
        if (GATED) value = activated(value, sum[GATED][i / 4][i % 4]);
        if (row < M && col < N) y[(long long)row * N + col] = T(value);
    }
}
"""

TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
NAMES = {torch.float16: "f16", torch.bfloat16: "bf16"}  # in PTX, where the tensor cores have it
ACTIVATIONS = ["silu", "gelu", "relu2"]


def wgmma(dtype: torch.dtype, n: int) -> dict[str, int | str]:
    """The instruction for n columns, the number of its sums, and these as its operands."""
    sums, name = range(n // 2), NAMES[dtype]
    x, y, more = (f"%{n // 2 + i}" for i in range(3))
    text = (
        f"{{.reg .pred p; setp.ne.b32 p, {more}, 0; "
        f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{name}.{name} "
        f"{{{','.join(f'%{i}' for i in sums)}}}, {x}, {y}, p, 1, 1, 0, 0;}}"
    )
    registers = ",".join(f'"+f"(d[{i}])' for i in sums)
    return {"MULTIPLY": f'"{text}"', "SUMS": n // 2, "OF(d)": registers}


@functools.cache
def compiled(
    dtype: torch.dtype, gated: bool, activation: int, rows: int, half: int, stages: int, split: int
) -> CudaLibrary:
    """`rows` of x in a tile, 64 at most where they are few, and `half` of its columns."""
    tile = {"BM": rows, "HALF": half, "STAGES": stages, "SPLIT": split, "GROUP": CONFIG["group"]}
    tile |= {"GATED": int(gated), "ACTIVATION": activation}
    cores = wgmma(dtype, rows if rows <= 64 else half) if dtype in NAMES else {}
    return compile_cuda(SOURCE, defines={"TYPE": TYPES[dtype], **tile, **cores})


@functools.lru_cache(maxsize=1024)
def prepared(
    dtype: torch.dtype, sizes: tuple[int, int, int], gated: bool, activation: int, aligned: bool
) -> tuple[Launch, tuple[Callable[[int], TensorMap], ...]]:
    """The launch for M rows of N sums of K, from multiples of 16 bytes or not, and how the copy
    engine finds x and a weight, if it can; kept: to find it takes longer than to make it."""
    (M, N, K), halves, half, split = sizes, 1 if gated else 2, CONFIG["half"], CONFIG["split"]
    hopper = torch.cuda.get_device_capability() == (9, 0) and dtype != torch.float32
    if not (hopper and aligned and K) or N * dtype.itemsize % 16 or K * dtype.itemsize % 16:
        library = compiled(dtype, gated, activation, 128, half, CONFIG["stages"], 1)
        return library.project.prepared(-(-M // 64) * -(-N // 64), 256, *sizes), ()
    cores, high = torch.cuda.get_device_properties().multi_processor_count, -(-M // 128)
    if M <= 64:
        rows, half, tiles = 16 if M <= 16 else 64, 64, -(-N // (64 * halves))
        if tiles > cores * 3 // 5 or split * 64 >= K:  # so many read at the memory's pace
            split = 1
        stages, grid = CONFIG["ring"] * 1024 // ((128 + rows) * 128), tiles * split
    else:
        half = half if high * -(-N // (half * halves)) >= cores // 2 else 64
        rows, stages, split, tiles = 128, CONFIG["stages"], 1, high * -(-N // (half * halves))
        grid = min(tiles, cores)
    library = compiled(dtype, gated, activation, rows, half, stages, split)
    shared = stages * (rows + 2 * half) * 128 + 1024
    launch = library.project_tma.prepared(grid, 384, *sizes, shared=shared)
    of_x = tensor_maps((M, K), (K, 1), dtype, (rows, 64))
    return launch, (of_x, tensor_maps((N, K), (K, 1), dtype, (half, 64)))


def kernel_fn(
    x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, activation: str = "silu"
) -> Tensor:
    """`x [batch, dim]`, `w_gate, w_up [hidden, dim]`, `w_down [dim, hidden]`: `[batch, dim]`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"expected activation silu, gelu or relu2, got {activation=}")
    x, w_gate, w_up, w_down = (t.contiguous() for t in (x, w_gate, w_up, w_down))
    y = torch.empty_like(x)
    hidden = x.new_empty((x.shape[0], w_gate.shape[0]))
    if y.numel():
        project(x, w_gate, w_up, hidden, ACTIVATIONS.index(activation))
        project(hidden, w_down, None, y, 0)
    return y


def project(x: Tensor, left: Tensor, right: Tensor | None, y: Tensor, act: int) -> None:
    """Into `y [M, N]`: `x [M, K]` times `left [N, K]`, gated by it where there is a `right`."""
    sizes = (*y.shape, x.shape[1])
    if not sizes[1]:
        return
    other = left if right is None else right
    at, first, second = x.data_ptr(), left.data_ptr(), other.data_ptr()
    aligned = (at | first | second | y.data_ptr()) % 16 == 0
    launch, maps = prepared(x.dtype, sizes, right is not None, act, aligned)
    if maps:
        launch(maps[0](at), maps[1](first), maps[1](second), y)
    else:
        launch(x, left, other, y)
