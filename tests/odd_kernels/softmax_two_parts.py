"""Two kernels: one finds each row's maximum and sum in pieces, the other divides."""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"
SUPPORTS = {"nd"}
CONFIG = {"piece": 4096}


@triton.jit
def statistics(x, tops, totals, cols, pieces, PIECE: tl.constexpr):
    row, piece = tl.program_id(0), tl.program_id(1)
    col = piece * PIECE + tl.arange(0, PIECE)
    v = tl.load(x + row * cols + col, mask=col < cols, other=-float("inf")).to(tl.float32)
    top = tl.max(v, 0)
    base = tl.where(top == -float("inf"), 0.0, top)
    tl.store(tops + row * pieces + piece, top)
    tl.store(totals + row * pieces + piece, tl.sum(tl.exp(v - base), 0))


@triton.jit
def divide(x, tops, totals, y, cols, pieces, PIECE: tl.constexpr, PIECES: tl.constexpr):
    row, piece = tl.program_id(0), tl.program_id(1)
    every = tl.arange(0, PIECES)
    top = tl.load(tops + row * pieces + every, mask=every < pieces, other=-float("inf"))
    total = tl.load(totals + row * pieces + every, mask=every < pieces, other=0.0)
    highest = tl.max(top, 0)
    total = tl.sum(tl.where(total > 0, total * tl.exp(top - highest), total), 0)
    col = piece * PIECE + tl.arange(0, PIECE)
    v = tl.load(x + row * cols + col, mask=col < cols, other=0.0).to(tl.float32)
    tl.store(y + row * cols + col, tl.exp(v - highest) / total, mask=col < cols)


def kernel_fn(x, dim=-1):
    y = torch.zeros_like(x, memory_format=torch.contiguous_format)
    if not y.numel():
        return y
    x, cols, piece = x.contiguous(), x.shape[-1], CONFIG["piece"]
    grid = x.numel() // cols, triton.cdiv(cols, piece)
    tops, totals = torch.empty(grid, device=x.device), torch.empty(grid, device=x.device)
    statistics[grid](x, tops, totals, cols, grid[1], piece)
    divide[grid](x, tops, totals, y, cols, grid[1], piece, triton.next_power_of_2(grid[1]))
    return y
