"""Matrix product: C = A B, summed in fp32 at least; fp32 operands are not rounded to tf32."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

from pytest_autokernel.op import (
    Cost,
    Dim,
    Dims,
    Draw,
    Op,
    Relation,
    Stability,
    Tensors,
    Tolerance,
    Variant,
    compiled,
    cut_off,
    growth,
)


def reference(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """`A [..., M, K]`, `B [..., K, N]` with the same leading dims: `[..., M, N]`."""
    return A @ B


def quack(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Of fp16 and bf16: quack/gemm_interface.py (quack-kernels 0.2.4 to 0.6.5)."""
    from quack.gemm_interface import gemm

    return gemm(A, B)


def flag_gems(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """2-D: flag_gems/ops/mm.py, and what it has for Hopper instead (FlagGems 5.0.2)."""
    import flag_gems

    return flag_gems.mm(A, B)


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """`A [M, K]`, `B [K, N]`; products of the size of A's elements."""
    scale, offset = draw.between(0.5, 3), draw.between(-0.5, 0.5)
    A = draw.normal(dims["M"], dims["K"], scale=scale, offset=offset)
    return A, draw.normal(dims["K"], dims["N"], scale=max(dims["K"], 1) ** -0.5)


def batched(draw: Draw, made: Tensors) -> Tensors:
    """Three products, of the same rows and columns in different orders."""
    A, B = made
    return torch.stack([A, A.roll(1, 0), A.flip(0)]), torch.stack([B, B.roll(1, 1), B.flip(1)])


def integers(draw: Draw, dims: Dims) -> Tensors:
    """Small integers, of which fp32 makes exact products in any order."""
    shapes = (dims["M"], dims["K"]), (dims["K"], dims["N"])
    A, B = (draw.integers(*shape, low=-2, high=7).to(draw.dtype) for shape in shapes)
    return A, B


def cancellation(draw: Draw, dims: Dims) -> Tensors:
    """The second half of K takes off what the first half adds, in another order."""
    half = dims["K"] // 2
    A = draw.normal(dims["M"], half, scale=16, offset=64)
    B = draw.normal(half, dims["N"], scale=16, offset=64)
    rest = dims["K"] - 2 * half
    A_rest, B_rest = draw.normal(dims["M"], rest), draw.normal(rest, dims["N"])
    return torch.cat([A, A_rest, -A.flip(1)], 1), torch.cat([B, B_rest, B.flip(0)], 0)


def wide_range(draw: Draw, dims: Dims) -> Tensors:
    """Rows of A and columns of B of sizes from 2^-8 to 2^4."""
    A, B = inputs(draw, dims)
    rows = draw.integers(dims["M"], 1, low=-8, high=5).to(A.dtype).exp2()
    cols = draw.integers(1, dims["N"], low=-8, high=5).to(B.dtype).exp2()
    return A * rows, B * cols


def long_sums(draw: Draw, dims: Dims) -> Tensors:
    """Positive products that add up to some 2^14: one more is below fp16's last bit."""
    size = (2.0**14 / (dims["K"] + 1)) ** 0.5
    A = draw.normal(dims["M"], dims["K"], scale=size / 8, offset=size)
    return A, draw.normal(dims["K"], dims["N"], scale=size / 8, offset=size)


def overflowing(draw: Draw, dims: Dims) -> Tensors:
    """Operands of which a third of the results is beyond fp16, of either sign."""
    A = draw.normal(dims["M"], dims["K"], scale=256)
    return A, draw.normal(dims["K"], dims["N"], scale=256 * max(dims["K"], 1) ** -0.5)


def condition(
    inputs: Tensors, r: torch.Tensor, lost: Callable[[int], float] = growth
) -> torch.Tensor:
    """A tree's few roundings of all that is added, and what a sequential sum loses in steps
    as large as the partial sums, which are looked at in 16 places."""
    A, B = inputs
    partial, largest = torch.zeros_like(r), r.abs()
    for a, b in zip(A.tensor_split(16, -1), B.tensor_split(16, -2), strict=True):
        partial = partial + a @ b
        largest = largest.maximum(partial.abs())
    return 4 * (A.abs() @ B.abs()) + lost(A.shape[-1]) * largest


def spoiled(inputs: Tensors, draw: Draw) -> list[Tensors]:
    """The operands, and the same with a NaN in A's first row."""
    A = inputs[0].clone()
    A[:1, A.shape[1] // 3] = math.nan
    return [inputs, (A, inputs[1])]


def _spoilt(y: Sequence[torch.Tensor], x: Tensors) -> tuple[torch.Tensor, ...]:
    """A NaN takes its whole row; all other rows stay as they were."""
    before = y[0].clone()
    before[:1] = math.nan
    return _agree(y[1], x, before)


def _agree(left: torch.Tensor, x: Tensors, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`left` is the sum of `parts`, but for the rounding of each, and for that of the sums
    within: in units of the result's. The sums get 8 units of 2^-24 of |A||B|: with 2 a right
    kernel was refused on an H200 (fp16, K=1024: 1.24 times the allowance, in 3 of 1,046,528
    elements near zero): tensor cores cut off what fp32 sums would round (`op.cut_off`)."""
    left, *rights = (t.double() for t in (left, *parts))
    finer = 2.0**-21 / torch.finfo(x[0].dtype).eps
    within = finer * (x[0].double().abs() @ x[1].double().abs())
    return left, sum(rights), sum(t.abs() for t in (left, *rights)) + within


def _cost(dims: Dims, size: int) -> Cost:
    M, N, K = dims["M"], dims["N"], dims["K"]
    return Cost(flops=2 * M * N * K, bytes=size * (M * K + K * N + M * N))


OP = Op(
    name="matmul",
    reference=reference,
    inputs=inputs,
    dims=(Dim("M", 1, 2048, batch=32), Dim("N", 1, 2048, batch=32), Dim("K", 1, 8192)),
    sizes={
        "tiny": {"M": 128, "N": 128, "K": 128},
        "small": {"M": 512, "N": 512, "K": 512},
        "medium": {"M": 1024, "N": 1024, "K": 1024},
        "large": {"M": 2048, "N": 2048, "K": 2048},
        "xlarge": {"M": 4096, "N": 4096, "K": 4096},
        "tall": {"M": 8192, "N": 1024, "K": 1024},
        "wide": {"M": 1024, "N": 8192, "K": 1024},
        "deep_k": {"M": 1024, "N": 1024, "K": 8192},
        "llm_qkv": {"M": 4096, "N": 4096, "K": 512},
        "llm_mlp": {"M": 4096, "N": 11008, "K": 4096},
        "llama3_8b_qkv": {"M": 4096, "N": 6144, "K": 4096},
        "llama3_70b_down": {"M": 4096, "N": 8192, "K": 28672},
        "qwen3_32b_up": {"M": 4096, "N": 25600, "K": 5120},
        "deepseek_v3_o": {"M": 4096, "N": 7168, "K": 16384},
        "decode": {"M": 16, "N": 14336, "K": 4096},
    },
    edges={
        "one": {"M": 1, "N": 1, "K": 1},
        "row_by_matrix": {"M": 1, "N": 4097, "K": 1023},
        "outer": {"M": 257, "N": 129, "K": 1},
        "dot": {"M": 1, "N": 1, "K": 50257},
        "odd_1023": {"M": 1023, "N": 1023, "K": 1023},
        "odd_4097": {"M": 4097, "N": 4097, "K": 512},
        "odd_1537": {"M": 1537, "N": 1537, "K": 1537},
        "no_rows": {"M": 0, "N": 64, "K": 64},
        "no_cols": {"M": 64, "N": 0, "K": 64},
        "nothing_to_sum": {"M": 64, "N": 64, "K": 0},
    },
    tolerance=Tolerance(condition, of_16_bits=functools.partial(condition, lost=cut_off)),
    cost=_cost,
    roof="math",
    huge={"M": 131073, "N": 64, "K": 16384},
    batched=1,
    timed=("large",),
    baselines={
        "eager": torch.matmul,
        "compile": compiled(reference),
        "quack": quack,
        "flag_gems": flag_gems,
    },
    variants={"core": Variant(), "batched": Variant({}, "batched", form=batched)},
    stability={
        "integers": Stability(
            integers, "a sum kept in bf16, whose integers end at 256", exact=True
        ),
        "cancellation": Stability(
            cancellation, "partial sums beyond fp16, of which little is left"
        ),
        "wide_range": Stability(wide_range, "one scale for a whole matrix, as fp8 would need"),
        "long_sums": Stability(long_sums, "a sum kept in the inputs' own dtype stands still"),
        "overflow": Stability(
            overflowing, "results held at the largest finite number", dtypes=("fp16",)
        ),
    },
    relations={
        "doubling": Relation(
            lambda x, draw: [x, (x[0] * 2, x[1])],
            lambda y, x: _agree(2 * y[0].double(), x, y[1]),
        ),
        "split": Relation(
            lambda x, draw: [
                x,
                *zip(x[0].tensor_split(2, 1), x[1].tensor_split(2, 0), strict=True),
            ],
            lambda y, x: _agree(y[0], x, y[1], y[2]),
        ),
        "transposition": Relation(
            lambda x, draw: [x, (x[1].t(), x[0].t())], lambda y, x: _agree(y[0], x, y[1].t())
        ),
        "spoiled": Relation(spoiled, _spoilt),
        "permutation": Relation(
            lambda x, draw: [x, (x[0].flip(0, 1), x[1].flip(0))],
            lambda y, x: _agree(y[0], x, y[1].flip(0)),
        ),
    },
)
