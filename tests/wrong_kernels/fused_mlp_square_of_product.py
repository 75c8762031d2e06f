"""Squares after multiplying by up: relu(gate * up)^2.

Killed by shape_sweep[variant_relu2]: relu2: (value|wrong|rows|dtype|scale|boundary)"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "fused_mlp"
SUPPORTS = {"relu2"}


@triton.jit
def load(p, row, col, M, N):
    inside = (row < M)[:, None] & (col < N)[None, :]
    return tl.load(p + row[:, None] * N + col[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def hidden(x, w_gate, w_up, h, M, N, K, RELU2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    gate = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BN):
        k = start + tl.arange(0, BN)
        left = load(x, row, k, M, K)
        gate += tl.dot(left, load(w_gate, col, k, N, K).T, input_precision="ieee")
        up += tl.dot(left, load(w_up, col, k, N, K).T, input_precision="ieee")
    out = gate * tl.sigmoid(gate) * up
    if RELU2:
        out = tl.maximum(gate * up, 0.0) * tl.maximum(gate * up, 0.0)
    inside = (row < M)[:, None] & (col < N)[None, :]
    tl.store(h + row[:, None] * N + col[None, :], out, mask=inside)


@triton.jit
def down(h, w, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BN):
        k = start + tl.arange(0, BN)
        left, right = load(h, row, k, M, K), load(w, col, k, N, K)
        total += tl.dot(left, right.T, input_precision="ieee")
    inside = (row < M)[:, None] & (col < N)[None, :]
    tl.store(y + row[:, None] * N + col[None, :], total, mask=inside)


def kernel_fn(x, w_gate, w_up, w_down, activation="silu"):
    x, w_gate, w_up, w_down = (t.contiguous() for t in (x, w_gate, w_up, w_down))
    (batch, dim), width = x.shape, w_gate.shape[0]
    h, y = x.new_empty(batch, width, dtype=torch.float32), x.new_empty(batch, dim)
    blocks = triton.cdiv(batch, 16)
    if y.numel():
        hidden[blocks, triton.cdiv(width, 64)](
            x, w_gate, w_up, h, batch, width, dim, activation == "relu2", 16, 64
        )
        down[blocks, triton.cdiv(dim, 64)](h, w_down, y, batch, dim, width, 16, 64)
    return y
