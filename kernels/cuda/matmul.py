"""Matrix product in CUDA C++, by two kernels.

`product_tma` is Hopper's: one warp keeps a ring of tiles of A and B in shared memory filled by bulk
copies (TMA), two warpgroups multiply from there (wgmma). `product` is for all else: fp32, other
chips, strides that the copy engine does not take; it multiplies in fp32 on the CUDA cores.
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
CONFIG = {"n": 256, "stages": 4, "group": 8}
SPACE = {
    "n": [128, 256],
    "stages": [2, 3, 4, 5, 6],
    "group": [4, 8, 16],
    "rules": ["stages * (128 + n) * 128 <= 231424"],  # 227 KiB, less the alignment
}

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using T = TYPE;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && defined(NAME)
constexpr int BM = 128, BK = 64, RELEASES = 8;  // by each warp that multiplies
constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, CHUNK = 64 * BK * 2;

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

__device__ void fetch(unsigned to, const Map& map, const unsigned long long* barrier, int inner,
                      int outer, int batch) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];"
        :: "r"(to), "l"(&map), "r"(address(barrier)), "r"(inner), "r"(outer), "r"(batch)
        : "memory");
}

// What wgmma is told of a tile in shared memory, rows of 128 bytes in swizzled groups of 8: where
// it begins, how far apart its chunks of 64 columns are (where rows are K), and groups of 8 rows.
__device__ unsigned long long operand(unsigned at) {
    return (unsigned long long)(at >> 4) | (unsigned long long)(CHUNK >> 4) << 16 |
           (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D64(i) D16(i), D16(i + 16), D16(i + 32), D16(i + 48)
#define FIRST_64 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
    "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46," \
    "%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SECOND_64 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85," \
    "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105," \
    "%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122," \
    "%123,%124,%125,%126,%127"

// d += a b for 64 rows, BN columns and 16 of K; d = a b where `more` is 0.
__device__ void multiply(float (&d)[BN / 2], unsigned long long a, unsigned long long b, int more) {
#if BN == 256
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " {" FIRST_64 SECOND_64 "}, "
        "%128, %129, p, 1, 1, 0, %131;}"
        : D64(0), D64(64) : "l"(a), "l"(b), "r"(more), "n"(1 - B_BY_COLUMNS));
#else
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" FIRST_64 "}, "
        "%64, %65, p, 1, 1, 0, %67;}"
        : D64(0) : "l"(a), "l"(b), "r"(more), "n"(1 - B_BY_COLUMNS));
#endif
}

// Past the wait for them the sums are in `d`, which the compiler cannot know.
__device__ void settle(float (&d)[BN / 2]) {
#pragma unroll
    for (int i = 0; i < BN / 2; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

struct Place { int batch, row, col; };

// Down a group of GROUP tiles first, then to the right, so that tiles in work share operands.
__device__ Place place(int tile, int rows, int cols) {
    int batch = tile / (rows * cols), within = tile % (rows * cols);
    int first = within / (GROUP * cols) * GROUP, height = min(rows - first, GROUP);
    int inside = within % (GROUP * cols);
    return {batch, (first + inside % height) * BM, inside / height * BN};
}

// Two results that lie side by side.
__device__ void store(T* c, float x, float y, int col, int N) {
    if (col + 1 < N && N % 2 == 0) {
        T both[2] = {T(x), T(y)};
        *(unsigned*)c = *(const unsigned*)both;
    } else {
        if (col < N) c[0] = T(x);
        if (col + 1 < N) c[1] = T(y);
    }
}

// The last warpgroup, by one thread: fills the ring.
__device__ void produce(const Map& a, const Map& b, unsigned ring, unsigned long long* full,
                        unsigned long long* empty, int tiles, int rows, int cols, int K) {
    int step = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        Place at = place(tile, rows, cols);
        for (int k = 0; k < K; k += BK, step++) {
            int s = step % STAGES;
            wait(&empty[s], step / STAGES % 2 ^ 1);
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                         :: "r"(address(&full[s])), "r"(A_BYTES + B_BYTES) : "memory");
            unsigned to = ring + s * (A_BYTES + B_BYTES);
            fetch(to, a, &full[s], k, at.row, at.batch);
            if (B_BY_COLUMNS) fetch(to + A_BYTES, b, &full[s], k, at.col, at.batch);
            else
                for (int n = 0; n < BN; n += 64)
                    fetch(to + A_BYTES + n / 64 * CHUNK, b, &full[s], at.col + n, k, at.batch);
        }
    }
}

// A warpgroup that multiplies: 64 rows of each tile. A stage is given back when the products of the
// next one have been issued, so that the tensor cores always have something to do.
__device__ void consume(T* c, unsigned ring, unsigned long long* full, unsigned long long* empty,
                        int tiles, int rows, int cols, int M, int N, int K) {
    int half = threadIdx.x / 128, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, step = 0;
    float d[BN / 2];
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        for (int k = 0; k < K; k += BK, step++) {
            int s = step % STAGES;
            wait(&full[s], step / STAGES % 2);
            unsigned from_a = ring + s * (A_BYTES + B_BYTES) + half * (A_BYTES / 2);
            unsigned from_b = ring + s * (A_BYTES + B_BYTES) + A_BYTES;
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int part = 0; part < BK / 16; part++)
                multiply(d, operand(from_a + part * 32),
                         operand(from_b + part * (B_BY_COLUMNS ? 32 : 16 * 128)), k + part > 0);
            asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;"
                         ::: "memory");
            if (k > 0 && lane == 0) arrive(&empty[(step + STAGES - 1) % STAGES]);
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        settle(d);
        if (lane == 0) arrive(&empty[(step + STAGES - 1) % STAGES]);
        Place at = place(tile, rows, cols);
        int row = at.row + half * 64 + warp * 16 + lane / 4, col = at.col + lane % 4 * 2;
        T* to = c + ((long long)at.batch * M + row) * N + col;
#pragma unroll
        for (int j = 0; j < BN / 8; j++) {
            if (row < M) store(to + j * 8, d[j * 4], d[j * 4 + 1], col + j * 8, N);
            if (row + 8 < M)
                store(to + 8ll * N + j * 8, d[j * 4 + 2], d[j * 4 + 3], col + j * 8, N);
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) product_tma(
    const __grid_constant__ Map a, const __grid_constant__ Map b, T* c, int batches, int M, int N,
    int K) {
    extern __shared__ unsigned char room[];
    __shared__ unsigned long long full[STAGES], empty[STAGES];
    unsigned ring = (address(room) + 1023) / 1024 * 1024;  // the swizzle counts from there
    int rows = (M + BM - 1) / BM, cols = (N + BN - 1) / BN, tiles = batches * rows * cols;
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
        if (threadIdx.x == 256) produce(a, b, ring, full, empty, tiles, rows, cols, K);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume(c, ring, full, empty, tiles, rows, cols, M, N, K);
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
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int row = first_row + y + i, col = first_col + x + j;
            if (row < M && col < N) c[(batch * M + row) * N + col] = T(sum[i][j]);
        }
}
"""

# The type, and its name in PTX where the tensor cores have it.
TYPES = {
    torch.float32: {"TYPE": "float"},
    torch.float16: {"TYPE": "__half", "NAME": '"f16"'},
    torch.bfloat16: {"TYPE": "__nv_bfloat16", "NAME": '"bf16"'},
}


@functools.cache
def compiled(dtype: torch.dtype, n: int, by_columns: bool) -> CudaLibrary:
    """`n`: columns of a tile; whether it is B's columns that lie in memory (as in nn.Linear)."""
    tile = {"BN": n, "STAGES": CONFIG["stages"], "GROUP": CONFIG["group"]}
    return compile_cuda(SOURCE, defines={**TYPES[dtype], **tile, "B_BY_COLUMNS": int(by_columns)})


Maps = tuple[Callable[[int], TensorMap], Callable[[int], TensorMap]]  # by A's and B's addresses


@functools.lru_cache(maxsize=1024)
def prepared(
    dtype: torch.dtype,
    a_shape: tuple[int, ...],
    a_strides: tuple[int, ...],
    b_shape: tuple[int, ...],
    b_strides: tuple[int, ...],
    aligned: bool,
) -> tuple[Launch, Maps | None]:
    """The launch for operands that lie like this, at multiples of 16 bytes or not, and how the copy
    engine finds them, if it can; kept: to find it takes longer than to make it."""
    (batch, M, K), N = (1, *a_shape)[-3:], b_shape[-1]
    b_shape, a_strides, b_strides = (batch, K, N), (0, *a_strides)[-3:], (0, *b_strides)[-3:]
    sizes = M, N, K
    by_columns = b_strides[2] != 1
    lines = [(b_shape[i], b_strides[i]) for i in ((0, 2, 1) if by_columns else (0, 1, 2))]
    shape, strides = zip(*lines, strict=True)
    mapped = aligned and K and dtype != torch.float32 and describable(shape, strides, dtype)
    hopper = torch.cuda.get_device_capability() == (9, 0)
    if hopper and mapped and describable((batch, M, K), a_strides, dtype):
        cores = torch.cuda.get_device_properties().multi_processor_count
        n, high = CONFIG["n"], batch * -(-M // 128)
        if high * -(-N // n) < cores // 2:
            n = 128
        launch = compiled(dtype, n, by_columns).product_tma.prepared(
            *(min(high * -(-N // n), cores), 384, batch, *sizes),
            shared=CONFIG["stages"] * (128 + n) * 64 * 2 + 1024,
        )
        box = (1, n, 64) if by_columns else (1, 64, 64)
        a_maps = tensor_maps((batch, M, K), a_strides, dtype, (1, 128, 64))
        return launch, (a_maps, tensor_maps(shape, strides, dtype, box))
    grid = batch * -(-M // 64) * -(-N // 64)
    library = compiled(dtype, CONFIG["n"], by_columns)
    return library.product.prepared(grid, 256, *sizes, *a_strides, *b_strides), None


def kernel_fn(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """`A [..., M, K]`, `B [..., K, N]` with the same leading dims: `[..., M, N]`."""
    C = torch.empty((*A.shape[:-1], B.shape[-1]), dtype=A.dtype, device=A.device)
    if not C.numel():
        return C
    if A.dim() > 3:
        A, B = A.flatten(0, -3), B.flatten(0, -3)
    a, b = A.data_ptr(), B.data_ptr()
    aligned = (a | b) % 16 == 0
    launch, maps = prepared(A.dtype, A.shape, A.stride(), B.shape, B.stride(), aligned)
    if maps:
        launch(maps[0](a), maps[1](b), C)
    else:
        launch(A, B, C)
    return C


def describable(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the copy engine can find the rows of `[batch, rows, cols]`: multiples of 16 bytes
    apart, each contiguous."""
    pitches = [s * dtype.itemsize for s, n in zip(strides[:2], shape, strict=False) if n > 1]
    return strides[2] == 1 and all(p > 0 and p % 16 == 0 for p in pitches)
