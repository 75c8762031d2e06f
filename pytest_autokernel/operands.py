"""A case's operands: what their elements are, drawn from a seed, and where in a buffer they lie."""

from __future__ import annotations

import random

import torch

from pytest_autokernel.channel import TensorMeta
from pytest_autokernel.op import LAYOUTS, Case, Draw, Layout, Op, Tensors

TORCH_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
GUARD = 4096  # bytes of NaN pattern on both sides of every buffer that the judge hands over


class SeededDraw:
    """`op.Draw` on one device."""

    def __init__(self, seed: int, dtype: torch.dtype, device: str) -> None:
        self.dtype = dtype
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.host = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
        raw = torch.randn(shape, generator=self.generator, device=self.device)
        return raw.mul_(scale).add_(offset).to(self.dtype)

    def integers(self, *shape: int, low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.host, dtype=torch.float64))

    def below(self, stop: int) -> int:
        return int(torch.randint(stop, (), generator=self.host))


def make_inputs(op: Op, case: Case, device: str) -> tuple[Tensors, SeededDraw]:
    """The inputs of a case, and the generator for whatever is drawn after them."""
    draw = SeededDraw(case.seed, TORCH_DTYPES[case.dtype], device)
    return made_by(draw, op, case), draw


def made_by(draw: Draw, op: Op, case: Case) -> Tensors:
    """What a case's variant makes of the contents that it is to have."""
    variant = op.variants[case.variant]
    dims = variant.dims(draw, case.dims) if variant.dims else case.dims
    maker = op.inputs if case.fill == "normal" else op.stability[case.fill].inputs
    made = maker(draw, dims)
    return variant.form(draw, made) if variant.form else made


def layouts(case: Case, count: int) -> list[Layout]:
    """The layout of each of a case's `count` inputs: where they are mixed, no two have the same."""
    if case.layout != "mixed":
        return [case.layout] * count
    each = [layout for layout in LAYOUTS if layout != "mixed"]
    random.Random(case.seed).shuffle(each)
    return [each[i % len(each)] for i in range(count)]


def lay_out(tensor: torch.Tensor, layout: Layout) -> TensorMeta:
    """Where the elements of `tensor` go in a buffer with guard bands around them.

    `packed` is a part of a wider tensor, as Q of a fused projection is: rows three times as far
    apart, and of three dims or more the third but last inside the one after it
    (`[B, S, H, D]` seen as `[B, H, S, D]`).
    """
    itemsize = tensor.element_size()
    shape = list(tensor.shape)
    rank = len(shape)
    order, width = list(range(rank)), shape[-1:]  # outermost first, and of the innermost dim
    if rank >= 2 and layout == "transposed":
        order[-2:], width = order[:-3:-1], shape[-2:-1]
    elif rank >= 2 and layout == "padded":
        width = [shape[-1] + 3]
    elif rank >= 2 and layout == "packed":
        order[-3:-1], width = order[-3:-1][::-1], [3 * shape[-1]]
    stride, step = [0] * rank, 2 if layout == "strided" else 1
    for i, n in zip(reversed(order), width + [shape[i] for i in order[-2::-1]], strict=True):
        stride[i], step = step, step * max(n, 1)
    if layout == "broadcast":
        stride[:1] = [0] * min(rank, 1)
    offset = GUARD // itemsize + (1 if layout == "offset" else 0)
    span = (
        sum((n - 1) * st for n, st in zip(shape, stride, strict=True)) + 1 if tensor.numel() else 0
    )
    nbytes = (offset + span) * itemsize + GUARD
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorMeta(dtype, tuple(shape), tuple(stride), offset, -(-nbytes // 8) * 8)
