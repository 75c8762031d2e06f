"""Attention in Triton: a block of queries per program, over blocks of keys. The starter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"gqa", "cross", "head_dim"}

# m: queries per program; n: keys per step, in `stages` steps at once. Heads above 128 get half.
CONFIG = {"m": 64, "n": 32, "warps": 4, "stages": 2}
SPACE = {
    "m": [32, 64, 128],
    "n": [32, 64, 128],
    "warps": [4, 8],
    "stages": [1, 2, 3, 4],
    # 227 KiB of shared memory hold a head of 128: queries once, keys and values per stage.
    "rules": ["(m + 2 * n * stages) * 256 <= 232448", "m * n <= 2048 * warps"],
}
# On a GPU, where fp32 products take more registers than the tensor cores' do.
FP32 = {"m": 32, "n": 16, "warps": 8, "stages": 1}
LOG2E = 1.4426950408889634


@triton.jit
def load(pointer, row, col, S, D, WIDEN: tl.constexpr):
    """Rows of a contiguous `[S, D]`, zero outside; in fp32 where the dot needs it."""
    inside = (row < S)[:, None] & (col < D)[None, :]
    tile = tl.load(pointer + row[:, None] * D + col[None, :], mask=inside, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


# Compiled once for all lengths: what is aligned follows from D.
@triton.jit(do_not_specialize=["H", "G", "SQ", "SK"])
def attend(
    q, k, v, y, H, G, SQ, SK, D, scale, CAUSAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """`scale` holds log2(e): weights are powers of two. Every query sees key 0, so that a row's
    maximum is finite from the first block on."""
    blocks = tl.cdiv(SQ, BM)
    head = tl.program_id(0) // blocks
    of_kv = ((head // H) * G + head % H // (H // G)).to(tl.int64) * SK * D
    row = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    d = tl.arange(0, BD)
    queries = load(q + head.to(tl.int64) * SQ * D, row, d, SQ, D, WIDEN)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, BD], tl.float32)
    end = tl.minimum(SK, tl.max(row, 0) + 1) if CAUSAL else SK
    for start in tl.range(0, end, BN, num_stages=STAGES):
        key = start + tl.arange(0, BN)
        keys = load(k + of_kv, key, d, SK, D, WIDEN)
        scores = tl.dot(queries, keys.T, input_precision="ieee") * scale
        seen = (key < SK)[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= row[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        values = load(v + of_kv, key, d, SK, D, WIDEN)
        weights = weights.to(values.dtype)
        out = tl.dot(weights, values, out * shrink[:, None], input_precision="ieee")
        top = higher
    y += head.to(tl.int64) * SQ * D
    inside = (row < SQ)[:, None] & (d < D)[None, :]
    tl.store(y + row[:, None] * D + d[None, :], out / total[:, None], mask=inside)


def kernel_fn(
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    causal: bool = True,
    sm_scale: float | None = None,
) -> torch.Tensor:
    """`Q [B, H, Sq, D]`, `K, V [B, G, Sk, D]` where G divides H: `[B, H, Sq, D]`."""
    Q, K, V = Q.contiguous(), K.contiguous(), V.contiguous()
    B, H, SQ, D = Q.shape
    G, SK = K.shape[1:3]
    y = torch.empty_like(Q)
    if not y.numel():
        return y
    scale = (D**-0.5 if sm_scale is None else sm_scale) * LOG2E
    config = FP32 if Q.dtype == torch.float32 and Q.is_cuda else CONFIG
    width = max(triton.next_power_of_2(D), 16)
    m, n = (max(config[axis] * 128 // max(width, 128), 16) for axis in ("m", "n"))
    attend[(B * H * triton.cdiv(SQ, m),)](
        Q, K, V, y, H, G, SQ, SK, D, scale, causal, m, n, width, config["stages"],
        WIDEN=not Q.is_cuda,  # Triton's interpreter multiplies bf16 wrongly
        num_warps=config["warps"],
    )  # fmt: skip
    return y
