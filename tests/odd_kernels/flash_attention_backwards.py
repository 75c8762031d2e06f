"""From the last key to the first, with a finite number for what is not seen.

A block that is masked as a whole adds ones, which the first key that is seen scales to nothing."""

import triton
import triton.language as tl

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"cross"}

UNSEEN = tl.constexpr(-1e30)


@triton.jit
def load(p, row, d, S, D: tl.constexpr):
    p += row[:, None] * D + d[None, :]
    return tl.load(p, mask=(row < S)[:, None], other=0.0).to(tl.float32)


@triton.jit
def attend(
    q, k, v, y, SQ, SK, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    row, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    queries = load(q + head * SQ * D, row, d, SQ, D) * scale
    top = tl.full([BM], UNSEEN, tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, D], tl.float32)
    blocks = tl.cdiv(SK, BN)
    for i in range(blocks):
        key = (blocks - 1 - i) * BN + tl.arange(0, BN)
        keys = load(k + head * SK * D, key, d, SK, D)
        scores = tl.dot(queries, keys.T, input_precision="ieee")
        scores = tl.where((key < SK)[None, :], scores, UNSEEN)
        if CAUSAL:
            scores = tl.where(key[None, :] <= row[:, None], scores, UNSEEN)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights, shrink = tl.exp(scores - higher[:, None]), tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        values = load(v + head * SK * D, key, d, SK, D)
        out = out * shrink[:, None] + tl.dot(weights, values, input_precision="ieee")
        top = higher
    tl.store(
        y + (head * SQ + row[:, None]) * D + d[None, :], out / total[:, None], (row < SQ)[:, None]
    )


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    Q, K, V = Q.contiguous(), K.contiguous(), V.contiguous()
    B, H, S, D = Q.shape
    y = Q.new_empty(Q.shape)
    scale = D**-0.5 if sm_scale is None else sm_scale
    if y.numel():
        most = 16 if Q.is_cuda else 256  # Triton's interpreter takes its time by the program
        block = min(max(triton.next_power_of_2(S), 16), most)
        grid = triton.cdiv(S, block), B * H
        attend[grid](Q, K, V, y, S, K.shape[2], scale, D, causal, block, block)
    return y
