"""Matrix product in CUDA C++, by two kernels.

`product_tma` is Hopper's: one warp keeps a ring of tiles of A and B in shared memory filled by bulk
copies (TMA), two warpgroups multiply from there (wgmma). Of few rows it computes the transpose, so
that tiles are many and the whole device reads B; a tile's K may be shared by a cluster's blocks.
`product` is for all else: fp32, other chips, strides that the copy engine does not take; it
multiplies in fp32 on the CUDA cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from pytest_autokernel.cuda import CudaLibrary, Launch, TensorMap, compile_cuda, tensor_maps

KERNEL_TYPE = "matmul"
SUPPORTS = {"batched"}

# n: columns of a tile (of 128 rows, in steps of 64 of K), fewer where tiles of n would not fill the
# device; stages: tiles in the ring; group: rows of tiles that are worked on together, for the L2.
# Where rows are few, split: blocks that share a tile that would leave others idle; ring: its KiB.
CONFIG = {"n": 256, "stages": 4, "group": 8, "split": 4, "ring": 96}
SPACE = {
    "n": [128, 256],
    "stages": [2, 3, 4, 5, 6],
    "group": [4, 8, 16],
    "split": [1, 2, 4],
    "ring": [64, 96, 192],
    "rules": ["stages * (128 + n) * 128 <= 231424"],  # 227 KiB, less the alignment
}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using T = TYPE;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && defined(MULTIPLY)
// A and B are a tile's two sides: where rows are FEW, those are kernel_fn's B, transposed, and A.
#define FEW (BN <= 64)
constexpr int BM = 128, BK = 64, RELEASES = 8;  // by each warp that multiplies
constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, CHUNK = 64 * BK * 2;

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

// So many lines of 64 of K: at once where it is K that lies in memory, else in chunks of 64 lines.
template <int LINES, bool BY_K>
__device__ void fetch(unsigned to, const Map& map, const unsigned long long* barrier, int line,
                      int k, int batch) {
    for (int i = 0; i < (BY_K ? 1 : LINES / 64); i++)
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5}], [%2];"
            :: "r"(to + i * CHUNK), "l"(&map), "r"(address(barrier)),
               "r"(BY_K ? k : line + i * 64), "r"(BY_K ? line : k), "r"(batch) : "memory");
}

// What wgmma is told of a tile in shared memory, rows of 128 bytes in swizzled groups of 8: where
// it begins, how far apart its chunks of 64 columns are (where rows are K), and groups of 8 rows.
__device__ unsigned long long operand(unsigned at) {
    return (unsigned long long)(at >> 4) | (unsigned long long)(CHUNK >> 4) << 16 |
           (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}

struct Place { int batch, row, col; };

// Down a group of GROUP tiles first, then to the right, so that tiles in work share operands.
__device__ Place place(int tile, int rows, int cols) {
    int batch = tile / (rows * cols), within = tile % (rows * cols);
    int first = within / (GROUP * cols) * GROUP, height = min(rows - first, GROUP);
    int inside = within % (GROUP * cols);
    return {batch, (first + inside % height) * BM, inside / height * BN};
}

// Two results that lie side by side, the first at an even column.
__device__ void store(T* c, float x, float y, int col, int N) {
    T both[2] = {T(x), T(y)};
    if (N % 2 == 0 && col < N) *(unsigned*)c = *(const unsigned*)both;
    else
        for (int i = 0; i < 2 && col + i < N; i++) c[i] = both[i];
}

// The last warpgroup, by one thread: fills the ring.
__device__ void produce(const Map& a, const Map& b, unsigned ring, int tiles, int rows, int cols,
                        int2 part) {
    int step = 0;
    for (int tile = blockIdx.x / SPLIT; tile < tiles; tile += gridDim.x / SPLIT) {
        Place at = place(tile, rows, cols);
        for (int k = part.x; k < part.y; k += BK, step++) {
            int s = step % STAGES;
            wait(&empty[s], step / STAGES % 2 ^ 1);
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                         :: "r"(address(&full[s])), "r"(A_BYTES + B_BYTES) : "memory");
            unsigned to = ring + s * (A_BYTES + B_BYTES);
            fetch<BM, A_BY_K>(to, a, &full[s], at.row, k, at.batch);
            fetch<BN, B_BY_K>(to + A_BYTES, b, &full[s], at.col, k, at.batch);
        }
    }
}

#if FEW
#define MEET asm volatile("barrier.cluster.arrive.aligned;barrier.cluster.wait.aligned;":::"memory")

// Adds up, in their order, the sums of the blocks that share a tile, and stores it transposed.
__device__ void store_few(const float (&d)[BN / 2], float* sums, T* c, Place at, int M, int N) {
    constexpr int PITCH = BM + 4;  // a warp's lanes write to as many banks
    int first = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, row = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < BN / 2; i++)
        sums[(row + i / 4 * 8 + i % 2) * PITCH + first + i / 2 % 2 * 8] = d[i];
    MEET;
#pragma unroll 2
    for (int i = blockIdx.x % SPLIT * 256 + threadIdx.x; i < M * (BM / 2); i += SPLIT * 256) {
        int m = i / (BM / 2), n = i % (BM / 2) * 2;
        float2 sum = {0, 0};
#pragma unroll
        for (int block = 0; block < SPLIT; block++) {
            const float* theirs = sums + m * PITCH + n;
            asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(theirs), "r"(block));
            sum.x += theirs[0];
            sum.y += theirs[1];
        }
        T* to = c + ((long long)at.batch * M + m) * N + at.row + n;
        store(to, sum.x, sum.y, at.row + n, N);
    }
    MEET;  // nobody leaves while its sums are read
}
#endif

// A warpgroup that multiplies: 64 rows of each tile. A stage is given back when the products of the
// next one have been issued, so that the tensor cores always have something to do.
__device__ void consume(T* c, unsigned ring, int tiles, int rows, int cols, int2 part, int M,
                        int N) {
    int lane = threadIdx.x % 32, step = 0;
    float d[BN / 2];
    for (int tile = blockIdx.x / SPLIT; tile < tiles; tile += gridDim.x / SPLIT) {
        for (int k = part.x; k < part.y; k += BK, step++) {
            int s = step % STAGES;
            wait(&full[s], step / STAGES % 2);
            unsigned from_a = ring + s * (A_BYTES + B_BYTES) + threadIdx.x / 128 * (A_BYTES / 2);
            unsigned from_b = ring + s * (A_BYTES + B_BYTES) + A_BYTES;
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int i = 0; i < BK / 16; i++)  // adds to d, but for the first
                asm volatile(MULTIPLY : SUMS : "l"(operand(from_a + i * (A_BY_K ? 32 : 2048))),
                             "l"(operand(from_b + i * (B_BY_K ? 32 : 2048))),
                             "r"(int(k + i > part.x)));
            asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;"
                         ::: "memory");
            if (k > part.x && lane == 0) arrive(&empty[(step + STAGES - 1) % STAGES]);
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" : SUMS :: "memory");
        if (lane == 0) arrive(&empty[(step + STAGES - 1) % STAGES]);
        Place at = place(tile, rows, cols);
#if FEW
        asm volatile("bar.sync 1, 256;" ::: "memory");  // the other's tiles lie where the sums go
        store_few(d, (float*)(room + (ring - address(room))), c, at, M, N);
#else
        int row = at.row + threadIdx.x / 32 * 16 + lane / 4, col = at.col + lane % 4 * 2;
        T* to = c + ((long long)at.batch * M + row) * N + col;
#pragma unroll
        for (int j = 0; j < BN / 8; j++) {
            if (row < M) store(to + j * 8, d[j * 4], d[j * 4 + 1], col + j * 8, N);
            if (row + 8 < M)
                store(to + 8ll * N + j * 8, d[j * 4 + 2], d[j * 4 + 3], col + j * 8, N);
        }
#endif
    }
}

#if FEW
extern "C" __global__ void __launch_bounds__(384, 2) __cluster_dims__(SPLIT, 1, 1) product_tma(
#else
extern "C" __global__ void __launch_bounds__(384, 1) product_tma(
#endif
    const __grid_constant__ Map a, const __grid_constant__ Map b, T* c, int batches, int M, int N,
    int K) {
    unsigned ring = (address(room) + 1023) / 1024 * 1024;  // the swizzle counts from there
    int high = FEW ? N : M, wide = FEW ? M : N;
    int rows = (high + BM - 1) / BM, cols = (wide + BN - 1) / BN, tiles = batches * rows * cols;
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
        const Map &high_map = FEW ? b : a, &wide_map = FEW ? a : b;
        if (threadIdx.x == 256) produce(high_map, wide_map, ring, tiles, rows, cols, part);
    } else {
        if (!FEW) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume(c, ring, tiles, rows, cols, part, M, N);
    }
}
#endif

// A tile of 64 x 64 of C, 4 x 4 a thread, in steps of 16 of K; what is outside is zero.
extern "C" __global__ void __launch_bounds__(256) product(
    const T* a, const T* b, T* c, int M, int N, int K, long long a_batch, long long a_row,
    long long a_col, long long b_batch, long long b_row, long long b_col) {
    constexpr int TILE = 64, STEP = 16;
    __shared__ float left[STEP][TILE + 4], right[STEP][TILE + 4];
    int rows = (M + TILE - 1) / TILE, cols = (N + TILE - 1) / TILE;
    long long batch = blockIdx.x / (rows * cols);
    int first_row = blockIdx.x % (rows * cols) / cols * TILE, first_col = blockIdx.x % cols * TILE;
    int x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
    a += batch * a_batch;
    b += batch * b_batch;
    float sum[4][4] = {};
    for (int start = 0; start < K; start += STEP) {
        // Threads go along the dim that lies in memory, so that they read side by side.
        for (int i = threadIdx.x; i < TILE * STEP; i += 256) {
            int m = a_col == 1 ? i / STEP : i % TILE, k = a_col == 1 ? i % STEP : i / TILE;
            bool inside = first_row + m < M && start + k < K;
            left[k][m] = inside ? float(a[(first_row + m) * a_row + (start + k) * a_col]) : 0.0f;
            int n = b_col == 1 ? i % TILE : i / STEP;
            k = b_col == 1 ? i / TILE : i % STEP;
            inside = first_col + n < N && start + k < K;
            right[k][n] = inside ? float(b[(start + k) * b_row + (first_col + n) * b_col]) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < STEP; k++)
#pragma unroll
            for (int i = 0; i < 16; i++)
                sum[i / 4][i % 4] += left[k][y + i / 4] * right[k][x + i % 4];
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        int row = first_row + y + i / 4, col = first_col + x + i % 4;
        if (row < M && col < N) c[(batch * M + row) * N + col] = T(sum[i / 4][i % 4]);
    }
}
"""

TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
NAMES = {torch.float16: "f16", torch.bfloat16: "bf16"}  # in PTX, where the tensor cores have it


def wgmma(dtype: torch.dtype, n: int, a_by_k: bool, b_by_k: bool) -> dict[str, str]:
    """The instruction for n columns, of operands whose K lies in memory or not, and its sums."""
    sums, name = range(n // 2), NAMES[dtype]
    a, b, more = (f"%{n // 2 + i}" for i in range(3))
    text = (
        f"{{.reg .pred p; setp.ne.b32 p, {more}, 0; "
        f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{name}.{name} "
        f"{{{','.join(f'%{i}' for i in sums)}}}, {a}, {b}, p, 1, 1, {1 - a_by_k}, {1 - b_by_k};}}"
    )
    return {"MULTIPLY": f'"{text}"', "SUMS": ",".join(f'"+f"(d[{i}])' for i in sums)}


@functools.cache
def compiled(dtype: torch.dtype, n: int, stages: int, split: int, by_columns: bool) -> CudaLibrary:
    """`n`: columns of a tile; whether it is B's columns that lie in memory (as in nn.Linear)."""
    a_by_k, b_by_k = (by_columns, True) if n <= 64 else (True, by_columns)
    tile = {"BN": n, "STAGES": stages, "GROUP": CONFIG["group"], "SPLIT": split}
    tile |= {"A_BY_K": int(a_by_k), "B_BY_K": int(b_by_k)}
    cores = wgmma(dtype, n, a_by_k, b_by_k) if dtype in NAMES else {}
    return compile_cuda(SOURCE, defines={"TYPE": TYPES[dtype], **tile, **cores})


def tiling(batch: int, M: int, N: int, K: int) -> tuple[int, int, int, int]:
    """Columns of a tile, 64 at most where rows are few; stages; blocks to a tile, and in all."""
    cores = torch.cuda.get_device_properties().multi_processor_count
    if M <= 64:
        n, tiles, split = 16 if M <= 16 else 64, batch * -(-N // 128), CONFIG["split"]
        if tiles > cores * 3 // 5 or split * 64 >= K:  # so many read at the memory's pace
            split = 1
        return n, CONFIG["ring"] * 1024 // ((128 + n) * 128), split, tiles * split
    n, high = CONFIG["n"], batch * -(-M // 128)
    if high * -(-N // n) < cores // 2:
        n = 128
    return n, CONFIG["stages"], 1, min(high * -(-N // n), cores)


@functools.lru_cache(maxsize=1024)
def prepared(
    dtype: torch.dtype, aligned: bool, *lie: tuple[int, ...]
) -> tuple[tuple[int, ...], Launch | None, tuple[Callable[[int], TensorMap], ...]]:
    """For A's and B's shapes and strides, from multiples of 16 bytes or not: C's shape, the launch,
    and how the copy engine finds them, if it can; kept: to find it takes longer than to make it."""
    a_shape, a_strides, b_shape, b_strides = lie
    (batch, M, K), N, c_shape = (1, *a_shape)[-3:], b_shape[-1], (*a_shape[:-1], b_shape[-1])
    if not batch * M * N:
        return c_shape, None, ()
    b_shape, a_strides, b_strides = (batch, K, N), (0, *a_strides)[-3:], (0, *b_strides)[-3:]
    by_columns = b_strides[2] != 1
    lines = [(b_shape[i], b_strides[i]) for i in ((0, 2, 1) if by_columns else (0, 1, 2))]
    shape, strides = zip(*lines, strict=True)
    mapped = aligned and K and dtype != torch.float32 and describable(shape, strides, dtype)
    hopper = torch.cuda.get_device_capability() == (9, 0)
    if hopper and mapped and describable((batch, M, K), a_strides, dtype):
        n, stages, split, grid = tiling(batch, M, N, K)
        launch = compiled(dtype, n, stages, split, by_columns).product_tma.prepared(
            *(grid, 384, batch, M, N, K), shared=stages * (128 + n) * 128 + 1024
        )
        a_lines, b_lines = (n, 128) if n <= 64 else (128, n)
        box = (1, b_lines, 64) if by_columns else (1, 64, 64)
        a_maps = tensor_maps((batch, M, K), a_strides, dtype, (1, a_lines, 64))
        return c_shape, launch, (a_maps, tensor_maps(shape, strides, dtype, box))
    library = compiled(dtype, CONFIG["n"], CONFIG["stages"], 1, by_columns)
    grid = batch * -(-M // 64) * -(-N // 64)
    launch = library.product.prepared(grid, 256, M, N, K, *a_strides, *b_strides)
    return c_shape, launch, ()


def kernel_fn(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """`A [..., M, K]`, `B [..., K, N]` with the same leading dims: `[..., M, N]`."""
    if A.dim() > 3:
        flat = kernel_fn(A.flatten(0, -3), B.flatten(0, -3))
        return flat.view(*A.shape[:-1], B.shape[-1])
    a, b = A.data_ptr(), B.data_ptr()
    aligned = (a | b) % 16 == 0
    shape, launch, maps = prepared(A.dtype, aligned, A.shape, A.stride(), B.shape, B.stride())
    C = A.new_empty(shape)
    if launch is None:
        return C
    left, right = (maps[0](a), maps[1](b)) if maps else (A, B)
    launch(left, right, C)
    return C


def describable(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the copy engine can: contiguous rows, apart by multiples of 16 bytes."""
    pitches = [s * dtype.itemsize for s, n in zip(strides[:2], shape, strict=False) if n > 1]
    return strides[2] == 1 and all(p > 0 and p % 16 == 0 for p in pitches)
