"""Goes through the keys twice: for each query's maximum and sum, then for the weights.

So that no sum is ever scaled anew."""

import triton
import triton.language as tl

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"head_dim"}


@triton.jit
def load(p, row, d, S, D):
    inside = (row < S)[:, None] & (d < D)[None, :]
    return tl.load(p + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def score(queries, k, row, key, d, S, D, scale, CAUSAL: tl.constexpr):
    scores = tl.dot(queries, load(k, key, d, S, D).T, input_precision="ieee") * scale
    seen = (key < S)[None, :]
    if CAUSAL:
        seen &= key[None, :] <= row[:, None]
    return tl.where(seen, scores, -float("inf"))


@triton.jit
def attend(
    q, k, v, y, S, D, scale,
    CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    base = tl.program_id(1).to(tl.int64) * S * D
    row, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    queries = load(q + base, row, d, S, D)
    end = tl.minimum(S, (tl.program_id(0) + 1) * BM) if CAUSAL else S
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    for start in range(0, end, BN):
        scores = score(queries, k + base, row, start + tl.arange(0, BN), d, S, D, scale, CAUSAL)
        higher = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
        top = higher
    out = tl.zeros([BM, BD], tl.float32)
    for start in range(0, end, BN):
        key = start + tl.arange(0, BN)
        scores = score(queries, k + base, row, key, d, S, D, scale, CAUSAL)
        weights = tl.exp(scores - top[:, None]) / total[:, None]
        out = tl.dot(weights, load(v + base, key, d, S, D), out, input_precision="ieee")
    inside = (row < S)[:, None] & (d < D)[None, :]
    tl.store(y + base + row[:, None] * D + d[None, :], out, mask=inside)


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    Q, K, V = Q.contiguous(), K.contiguous(), V.contiguous()
    B, H, S, D = Q.shape
    y = Q.new_empty(Q.shape)
    scale = D**-0.5 if sm_scale is None else sm_scale
    if y.numel():
        width = max(triton.next_power_of_2(D), 16)
        most = 16 if Q.is_cuda else 256  # Triton's interpreter takes its time by the program
        block = min(max(triton.next_power_of_2(S), 16), most)
        grid = triton.cdiv(S, block), B * H
        attend[grid](Q, K, V, y, S, D, scale, causal, block, block, width)
    return y
