"""Attention in CUDA C++, by two kernels; neither stores the weights.

`attend_tma` is Hopper's, for heads of up to 128: one warp keeps a ring of keys and values in shared
memory filled by bulk copies (TMA), two warpgroups of 64 queries each multiply from there (wgmma).
`attend`, in fp32 on the CUDA cores, is for all else: odd strides, longer heads, other chips, fp32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from pytest_autokernel.cuda import CudaLibrary, Launch, compile_cuda, tensor_maps

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"gqa", "cross", "head_dim"}

# stages_N: blocks of 128 keys in the ring, for heads up to N; l2_mib: of keys and values in work.
CONFIG = {"stages_64": 2, "stages_128": 3, "l2_mib": 32}
SPACE = {"stages_64": [2, 3, 4], "stages_128": [2, 3], "l2_mib": [1, 8, 16, 32]}
LOG2E = 1.4426950408889634
SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>
using T = TYPE;
#define NEVER -CUDART_INF_F
struct Sizes { int B, H, G, SQ, SK, D; };
struct Place { int batch, head, group, first; };
// Blocks start in the order of their numbers: of `heads` heads at a time, whose keys and values fit
// into the L2, the last queries first, which see the most keys where it is causal.
__device__ Place place(Sizes n, int heads, int rows) {
    int blocks = (n.SQ + rows - 1) / rows, before = blockIdx.x / (blocks * heads) * heads;
    int width = min(n.B * n.H - before, heads), within = blockIdx.x % (blocks * heads);
    int head = before + within % width, block = blocks - 1 - within / width;
    return {head / n.H, head % n.H, head % n.H / (n.H / n.G), block * rows};
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && defined(NAME)
constexpr int BM = 128, BN = 128, RELEASES = 8;  // by each warp that multiplies
constexpr int CHUNK = 128 * 128, TILE = WIDTH / 64 * CHUNK;  // bytes: of 64 columns, of all

struct alignas(64) Map { unsigned long long opaque[16]; };  // a CUtensorMap
struct Barriers { unsigned long long queries, full[STAGES], empty[STAGES]; };

__device__ unsigned address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ void wait(const unsigned long long* barrier, int parity) {
    unsigned done;
    do asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0,1,0,p;}"
        : "=r"(done) : "r"(address(barrier)), "r"(parity) : "memory");
    while (!done);
}
__device__ void init(const unsigned long long* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(address(barrier)), "r"(arrivals));
}
__device__ void arrive(const unsigned long long* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(address(barrier)) : "memory");
}
__device__ void expect(const unsigned long long* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(address(barrier)), "r"(bytes) : "memory");
}

// 128 rows of a head from the `row` on, 64 columns at a time, zero outside.
__device__ void fetch(unsigned to, const Map& map, const unsigned long long* barrier, int row,
                      int head, int batch) {
    for (int col = 0; col < WIDTH; col += 64)
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5, %6}], [%2];"
            :: "r"(to + col / 64 * CHUNK), "l"(&map), "r"(address(barrier)), "r"(col), "r"(row),
               "r"(head), "r"(batch) : "memory");
}

// What wgmma is told of a tile in shared memory, rows of 128 bytes in swizzled groups of 8: where
// it begins, how far apart its chunks of 64 columns are, and groups of 8 rows.
__device__ unsigned long long operand(unsigned at) {
    return (unsigned long long)(at >> 4) | (unsigned long long)(CHUNK >> 4) << 16 |
           (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define FIRST_32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23" \
    ",%24,%25,%26,%27,%28,%29,%30,%31"
#define SECOND_32 \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53" \
    ",%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d += q k^T for 64 queries, 128 keys and 16 elements; d = q k^T where `more` is 0.
__device__ void score(float (&d)[BN / 2], unsigned long long q, unsigned long long k, int more) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" FIRST_32 SECOND_32 "}, "
        "%64, %65, p, 1, 1, 0, 0;}"
        : D16(0), D16(16), D16(32), D16(48) : "l"(q), "l"(k), "r"(more));
}

// d += w v for 64 queries and 16 keys, whose weights are in registers.
__device__ void add(float (&d)[WIDTH / 2], const unsigned* w, unsigned long long v) {
#if WIDTH == 128
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" FIRST_32 SECOND_32 "}, "
        "{%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
        : D16(0), D16(16), D16(32), D16(48) : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(v));
#else
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {" FIRST_32 "}, "
        "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
        : D16(0), D16(16) : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(v));
#endif
}

// Past the wait for them the sums are in `d`, which the compiler cannot know.
template <int N> __device__ void settle(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

__device__ unsigned pair(float x, float y) {
    T both[2] = {T(x), T(y)};
    return *(const unsigned*)both;
}

// The last warpgroup, by one thread: fetches the queries, and fills the ring.
__device__ void produce(const Map& q, const Map& k, const Map& v, unsigned room, Place at, int end,
                        Barriers& b) {
    expect(&b.queries, TILE);
    fetch(room, q, &b.queries, at.first, at.head, at.batch);
    for (int start = 0, step = 0; start < end; start += BN, step++) {
        int s = step % STAGES;
        unsigned to = room + TILE + s * 2 * TILE;
        wait(&b.empty[s], step / STAGES % 2 ^ 1);
        expect(&b.full[s], 2 * TILE);
        fetch(to, k, &b.full[s], start, at.group, at.batch);
        fetch(to + TILE, v, &b.full[s], start, at.group, at.batch);
    }
}

// 2^x: one instruction, which exp2f is not where it may meet subnormals.
__device__ float power(float x) {
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}

// Scores become weights relative to the row's largest so far, packed as wgmma wants its left
// operand; `out` and `total` are made relative to the same. A thread has two rows, 8 apart, which
// it shares with the three lanes beside it.
__device__ void weigh(float (&scores)[BN / 2], unsigned (&weights)[BN / 4], float (&out)[WIDTH / 2],
                      float (&top)[2], float (&total)[2], float factor) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float high = NEVER;
#pragma unroll
        for (int i = 0; i < BN / 2; i++)
            if (i / 2 % 2 == r) high = fmaxf(high, scores[i]);
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
        high = fmaxf(top[r], fmaxf(high, __shfl_xor_sync(~0u, high, 2)) * factor);
        float shrink = power(top[r] - high), sum = 0;
#pragma unroll
        for (int i = 0; i < BN / 2; i++)
            if (i / 2 % 2 == r) sum += scores[i] = power(scores[i] * factor - high);
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++)
            if (i / 2 % 2 == r) out[i] *= shrink;
        top[r] = high;
        total[r] = total[r] * shrink + sum;
    }
#pragma unroll
    for (int i = 0; i < BN / 4; i++) weights[i] = pair(scores[2 * i], scores[2 * i + 1]);
}

// A warpgroup that multiplies, for 64 queries. While it waits for scores, the values of the block
// before are added up too.
__device__ void consume(T* y, Sizes n, unsigned room, Place at, int end, bool causal, float scale,
                        Barriers& b) {
    int half = threadIdx.x / 128, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    int row = at.first + half * 64 + warp * 16 + lane / 4, column = lane % 4 * 2;
    // The largest score is the largest when scaled only if the scale is positive.
    float factor = scale > 0 ? scale : 1.0f;
    float scores[BN / 2], out[WIDTH / 2] = {}, top[2] = {NEVER, NEVER}, total[2] = {};
    unsigned weights[BN / 4];
    int whole = (causal ? min(end, at.first + 1) : end) / BN * BN, step = 0;
    wait(&b.queries, 0);
    for (int start = 0; start < end; start += BN, step++) {
        int s = step % STAGES;
        unsigned keys = room + TILE + s * 2 * TILE, left = room + half * 64 * 128;
        wait(&b.full[s], step / STAGES % 2);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int d = 0; d < WIDTH; d += 16) {
            int inside = d / 64 * CHUNK + d % 64 * 2;
            score(scores, operand(left + inside), operand(keys + inside), d > 0);
        }
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;"
                     ::: "memory");
        settle(scores);
        settle(out);
        if (start > 0 && lane == 0) arrive(&b.empty[(step + STAGES - 1) % STAGES]);
        if (scale <= 0)
#pragma unroll
            for (int i = 0; i < BN / 2; i++) scores[i] *= scale;
        if (start >= whole)
#pragma unroll
            for (int i = 0; i < BN / 2; i++) {
                int key = start + column + i / 4 * 8 + i % 2, last = row + i / 2 % 2 * 8;
                if (key >= n.SK || (causal && key > last)) scores[i] = NEVER;
            }
        weigh(scores, weights, out, top, total, factor);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int part = 0; part < BN / 16; part++)
            add(out, weights + part * 4, operand(keys + TILE + part * 16 * 128));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    settle(out);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        float share = 1 / total[r];
        T* to = y + (((long long)at.batch * n.H + at.head) * n.SQ + row + r * 8) * n.D + column;
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j++)
            if (row + r * 8 < n.SQ && j * 8 < n.D)
                *(unsigned*)(to + j * 8) =
                    pair(out[j * 4 + r * 2] * share, out[j * 4 + r * 2 + 1] * share);
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) attend_tma(
    const __grid_constant__ Map q, const __grid_constant__ Map k, const __grid_constant__ Map v,
    T* y, int B, int H, int G, int SQ, int SK, int D, int heads, int causal, float scale) {
    extern __shared__ unsigned char memory[];
    __shared__ Barriers b;
    unsigned room = (address(memory) + 1023) / 1024 * 1024;  // the swizzle counts from there
    Sizes n = {B, H, G, SQ, SK, D};
    Place at = place(n, heads, BM);
    int end = causal ? min(SK, at.first + BM) : SK;
    if (threadIdx.x == 0) {
        init(&b.queries, 1);
        for (int s = 0; s < STAGES; s++) init(&b.full[s], 1), init(&b.empty[s], RELEASES);
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    // Sums, scores and weights leave no room: the third warpgroup gives up its registers.
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 256) produce(q, k, v, room, at, end, b);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume(y, n, room, at, end, causal, scale, b);
    }
}
#endif

// A warp for each query: a key per lane for the scores, then up to 8 elements per lane.
extern "C" __global__ void __launch_bounds__(256) attend(
    const T* q, const T* k, const T* v, T* y, int B, int H, int G, int SQ, int SK, int D, int heads,
    int causal, float scale) {
    Place at = place({B, H, G, SQ, SK, D}, heads, 8);
    int lane = threadIdx.x % 32, row = at.first + threadIdx.x / 32;
    if (row >= SQ) return;
    long long query = (((long long)at.batch * H + at.head) * SQ + row) * D;
    long long of_group = ((long long)at.batch * G + at.group) * SK * D;
    float out[8] = {}, top = NEVER, total = 0;
    int end = causal ? min(SK, row + 1) : SK;
    for (int start = 0; start < end; start += 32) {
        const T* keys = k + of_group + (long long)min(start + lane, end - 1) * D;
        float score = 0;
        for (int d = 0; d < D; d++) score += float(q[query + d]) * float(keys[d]);
        score = start + lane < end ? score * scale : NEVER;
        float high = fmaxf(top, score);
        for (int o = 1; o < 32; o *= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, o));
        float weight = exp2f(score - high), shrink = exp2f(top - high);
        total = total * shrink + weight;
        top = high;
        for (float& x : out) x *= shrink;
        for (int j = 0; j < min(32, end - start); j++) {
            float share = __shfl_sync(~0u, weight, j);
            const T* values = v + of_group + (long long)(start + j) * D;
            for (int i = 0; i < 8; i++)
                if (lane + 32 * i < D) out[i] += share * float(values[lane + 32 * i]);
        }
    }
    for (int other = 1; other < 32; other *= 2) total += __shfl_xor_sync(~0u, total, other);
    for (int i = 0; i < 8; i++)
        if (lane + 32 * i < D) y[query + lane + 32 * i] = T(out[i] / total);
}
"""

# The type, and its name in PTX where the tensor cores have it.
TYPES = {
    torch.float32: {"TYPE": "float"},
    torch.float16: {"TYPE": "__half", "NAME": '"f16"'},
    torch.bfloat16: {"TYPE": "__nv_bfloat16", "NAME": '"bf16"'},
}


@functools.cache
def compiled(dtype: torch.dtype, width: int = 64) -> CudaLibrary:
    """`width`: what `attend_tma` fills the head up to."""
    tile = {"WIDTH": width, "STAGES": CONFIG[f"stages_{width}"]}
    return compile_cuda(SOURCE, defines={**TYPES[dtype], **tile})


@functools.lru_cache(maxsize=1024)
def prepared(
    dtype: torch.dtype, lies: tuple[Any, ...], aligned: bool, causal: bool, sm_scale: float | None
) -> tuple[Launch, list[Any]]:
    """The launch for Q, K, V of these shapes and strides, at multiples of 16 bytes or not, and how
    the copy engine finds them by address, if it can; kept: to find it takes longer than to make."""
    (B, H, SQ, D), (G, SK) = lies[0][0], lies[1][0][1:3]
    scale = float(D**-0.5 if sm_scale is None else sm_scale) * LOG2E  # for powers of two
    heads = max(CONFIG["l2_mib"] * 2**20 // (2 * SK * D * dtype.itemsize), 1) * (H // G)
    sizes = B, H, G, SQ, SK, D, min(heads, B * H), int(causal), scale
    hopper = torch.cuda.get_device_capability() == (9, 0) and dtype != torch.float32 and D <= 128
    if hopper and aligned and all(describable(*each, dtype.itemsize) for each in lies):
        width = 64 if D <= 64 else 128
        shared = (1 + 2 * CONFIG[f"stages_{width}"]) * 128 * width * 2 + 1024
        kernel, grid = compiled(dtype, width).attend_tma, B * H * -(-SQ // 128)
        maps = [tensor_maps(*each, dtype, (1, 1, 128, 64)) for each in lies]
        return kernel.prepared(grid, 384, *sizes, shared=shared), maps
    return compiled(dtype).attend.prepared(B * H * -(-SQ // 8), 256, *sizes), []


def kernel_fn(
    Q: torch.Tensor, K: torch.Tensor, V: torch.Tensor, causal: bool = True,
    sm_scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """`Q [B, H, Sq, D]`, `K, V [B, G, Sk, D]` where G divides H: `[B, H, Sq, D]`."""
    y = torch.empty_like(Q, memory_format=torch.contiguous_format)
    if y.numel():
        q, k, v = Q.data_ptr(), K.data_ptr(), V.data_ptr()
        lies = (Q.shape, Q.stride()), (K.shape, K.stride()), (V.shape, V.stride())
        launch, maps = prepared(Q.dtype, lies, (q | k | v) % 16 == 0, causal, sm_scale)
        of_q, of_k, of_v = maps or [lambda at, x=x: x.contiguous() for x in (Q, K, V)]
        launch(of_q(q), of_k(k), of_v(v), y)
    return y


def describable(shape: torch.Size, strides: tuple[int, ...], size: int) -> bool:
    """Whether the copy engine can find the rows: multiples of 16 bytes apart, each contiguous."""
    pitches = [s * size for s, n in zip(strides[:3], shape, strict=False) if n > 1]
    return strides[3] == 1 and shape[3] % 8 == 0 and all(p > 0 and p % 16 == 0 for p in pitches)
