"""Halves of the keys on their own, each with its log-sum-exp, joined by a second kernel."""

import math

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"gqa"}


@triton.jit
def load(p, row, d, end, D: tl.constexpr):
    p += row[:, None] * D + d[None, :]
    return tl.load(p, mask=(row < end)[:, None], other=0.0).to(tl.float32)


@triton.jit
def attend_part(
    q, k, v, part, log_sum, G, S, length, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    of_kv = head // G * S * D
    row, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    queries = load(q + head * S * D, row, d, S, D)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, D], tl.float32)
    first = tl.program_id(2) * length
    last = tl.minimum(first + length, S)
    for start in range(first, last, BN):
        key = start + tl.arange(0, BN)
        scores = tl.dot(queries, load(k + of_kv, key, d, last, D).T, input_precision="ieee")
        seen = (key < last)[None, :]
        if CAUSAL:
            seen &= key[None, :] <= row[:, None]
        scores = tl.where(seen, scores * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weights, shrink = tl.exp2(scores - base[:, None]), tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 1)
        values = load(v + of_kv, key, d, last, D)
        out = out * shrink[:, None] + tl.dot(weights, values, input_precision="ieee")
        top = higher
    place = (tl.program_id(2) * tl.num_programs(1) + head) * S + row
    out /= tl.where(total == 0, 1.0, total)[:, None]
    tl.store(part + place[:, None] * D + d[None, :], out, mask=(row < S)[:, None])
    tl.store(log_sum + place, tl.log2(total) + top, mask=row < S)


@triton.jit
def join(part, log_sum, y, rows, D: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    row, d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    place, inside = row[:, None] * D + d[None, :], (row < rows)[:, None]
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    for i in tl.static_range(PARTS):
        top = tl.maximum(top, tl.load(log_sum + i * rows + row, mask=row < rows, other=0.0))
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, D], tl.float32)
    for i in tl.static_range(PARTS):
        share = tl.exp2(tl.load(log_sum + i * rows + row, mask=row < rows, other=0.0) - top)
        out += share[:, None] * tl.load(part + i * rows * D + place, mask=inside, other=0.0)
        total += share
    tl.store(y + place, out / total[:, None], mask=inside)


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    Q, K, V = Q.contiguous(), K.contiguous(), V.contiguous()
    B, H, S, D = Q.shape
    y = Q.new_empty(Q.shape)
    part = Q.new_empty(2, *y.shape, dtype=torch.float32)
    log_sum = Q.new_empty(2, B, H, S, dtype=torch.float32)
    scale = (1 / math.sqrt(D) if sm_scale is None else sm_scale) * math.log2(math.e)
    if y.numel():
        most = 16 if Q.is_cuda else 256  # Triton's interpreter takes its time by the program
        block = min(max(triton.next_power_of_2(S), 16), most)
        grid = triton.cdiv(S, block), B * H, 2
        group = H // K.shape[1]
        attend_part[grid](
            Q, K, V, part, log_sum, group, S, triton.cdiv(S, 2), scale, D, causal, block, block
        )
        join[(triton.cdiv(B * H * S, most),)](part, log_sum, y, B * H * S, D, 2, most)
    return y
