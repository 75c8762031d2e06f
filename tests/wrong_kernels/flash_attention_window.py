"""Attends the last 512 keys only, as with a sliding window.

Killed by edge_cases[long]: value|wrong|rows|dtype|scale|boundary"""

import triton
import triton.language as tl

KERNEL_TYPE = "flash_attention"


@triton.jit
def load(p, row, d, S, D, row_stride):
    inside = (row < S)[:, None] & (d < D)[None, :]
    return tl.load(p + row[:, None] * row_stride + d[None, :], mask=inside, other=0.0).to(
        tl.float32
    )


@triton.jit(do_not_specialize=["H", "G", "SQ", "SK", "D"])
def attend(
    q, k, v, y, H, G, SQ, SK, D, scale,
    CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    of_kv = head * SK * D
    row, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    queries = load(q + head * SQ * D, row, d, SQ, D, D)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, BD], tl.float32)
    for start in range(
        tl.maximum(tl.program_id(0) * BM - 512, 0) if CAUSAL else 0,
        tl.minimum(SK, tl.max(row, 0) + 1) if CAUSAL else SK,
        BN,
    ):
        key = start + tl.arange(0, BN)
        scores = (
            tl.dot(queries, load(k + of_kv, key, d, SK, D, D).T, input_precision="ieee") * scale
        )
        seen = (key < SK)[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= row[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        values = load(v + of_kv, key, d, SK, D, D)
        out = out * shrink[:, None] + tl.dot(weights, values, input_precision="ieee")
        top = higher
    inside = (row < SQ)[:, None] & (d < D)[None, :]
    tl.store(y + head * SQ * D + row[:, None] * D + d[None, :], out / total[:, None], mask=inside)


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    Q, K, V = Q.contiguous(), K.contiguous(), V.contiguous()
    (B, H, SQ, D), (G, SK) = Q.shape, K.shape[1:3]
    width = max(16, triton.next_power_of_2(D))
    y = Q.new_empty(Q.shape)
    scale = D**-0.5 if sm_scale is None else sm_scale
    if y.numel():
        grid = triton.cdiv(SQ, 64), B * H
        attend[grid](
            Q, K, V, y, H, G, SQ, SK, D, scale, causal, 64, 64, width, num_warps=8, num_stages=1
        )
    return y
