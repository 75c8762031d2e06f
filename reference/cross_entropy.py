"""Cross-entropy of logits and class indices: the mean of log(sum(exp(x))) - x[target].

Targets of -100 are left out of the mean, as in torch.nn.functional.cross_entropy; unlike there
the classes are always the last dimension.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

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
    growth,
    near_square,
)

IGNORED = -100


def reference(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`logits [..., V]`, `targets [...]` (int64): one number."""
    counted = targets != IGNORED
    losses = logits.logsumexp(-1) - _picked(logits, targets)
    return losses.where(counted, 0.0).sum() / counted.sum()


def eager(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def liger(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """2-D; the first of what it returns: liger_kernel/ops/cross_entropy.py (Liger-Kernel 0.8.5).
    It waits for the GPU, to know how many targets count, and so is timed with its launches."""
    from liger_kernel.ops import LigerCrossEntropyFunction

    return LigerCrossEntropyFunction.apply(logits, targets, None, IGNORED)[0]


def quack(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """2-D: quack/cross_entropy.py (quack-kernels 0.2.4 to 0.6.5)."""
    from quack import cross_entropy

    return cross_entropy(logits, targets, ignore_index=IGNORED, reduction="mean")


def flag_gems(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """2-D: flag_gems/fused/cross_entropy_loss.py (FlagGems 5.0.2)."""
    import flag_gems

    return flag_gems.cross_entropy_loss(logits, targets, ignore_index=IGNORED)


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """`logits [batch, vocab]` of a scale and an offset that vary, `targets [batch]`."""
    scale, offset = draw.between(0.5, 4), draw.between(-8, 8)
    return _inputs(draw, dims, scale, offset)


def some_ignored(draw: Draw, made: Tensors) -> Tensors:
    logits, targets = made
    ignored = draw.integers(*targets.shape, low=0, high=3) == 0
    ignored[:1] = False
    return logits, targets.masked_fill(ignored, IGNORED)


def all_ignored(draw: Draw, made: Tensors) -> Tensors:
    """The mean of no losses is NaN."""
    logits, targets = made
    return logits, torch.full_like(targets, IGNORED)


def nested(draw: Draw, made: Tensors) -> Tensors:
    return tuple(t.unflatten(0, near_square(len(t))) for t in made)


def high(draw: Draw, dims: Dims) -> Tensors:
    """All logits far above zero."""
    return _inputs(draw, dims, scale=2, offset=200)


def deep(draw: Draw, dims: Dims) -> Tensors:
    """All logits far below zero."""
    return _inputs(draw, dims, scale=2, offset=-600)


def unlikely(draw: Draw, dims: Dims) -> Tensors:
    """Targets so improbable that their probability is 0 in fp32."""
    logits, targets = inputs(draw, dims)
    return logits.scatter(1, targets[:, None], -150.0), targets


def masked(draw: Draw, dims: Dims) -> Tensors:
    """Whole blocks of classes at -inf, as constrained decoding leaves them; never a target."""
    batch, vocab = dims["batch"], dims["vocab"]
    logits, targets = inputs(draw, dims)
    first = draw.integers(batch, 1, low=0, high=vocab)
    logits = logits.masked_fill(torch.arange(vocab, device=logits.device) < first, -math.inf)
    return logits, targets.maximum(first[:, 0])


def condition(inputs: Tensors, r: torch.Tensor) -> torch.Tensor:
    """Per row exp and log (32), the sum's growth, and the roundings of numbers as large as the
    maximum and the target's logit; then the mean's own."""
    logits, targets = inputs
    top, picked = (t.abs().nan_to_num(posinf=0.0) for t in (logits.amax(-1), _picked(*inputs)))
    rows = (32 + growth(logits.shape[-1]) + 8 * top + 4 * picked).where(targets != IGNORED, 0.0)
    return rows.sum() / (targets != IGNORED).sum() + r.abs() * (4 + math.sqrt(targets.numel()))


def _inputs(draw: Draw, dims: Dims, scale: float, offset: float) -> Tensors:
    logits = draw.normal(dims["batch"], dims["vocab"], scale=scale, offset=offset)
    return logits, draw.integers(dims["batch"], low=0, high=dims["vocab"])


def _picked(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]


def _coarse(inputs: Tensors, shift: int) -> Tensors:
    """Quarters below 16 in size, so that 16 more is exact in each dtype."""
    logits = (inputs[0].float() * 4).round().clamp(-63, 63) / 4
    return (logits + shift).to(inputs[0].dtype), inputs[1]


def _agree(left: torch.Tensor, right: torch.Tensor, inputs: Tensors) -> tuple[torch.Tensor, ...]:
    """The rounding of the results, and that of the logits within: in units of the result's."""
    finer = 2.0**-23 / torch.finfo(inputs[0].dtype).eps
    top = inputs[0].double().abs().amax(-1).mean()
    return left.double(), right.double(), right.double().abs() + finer * top


def _halves(inputs: Tensors) -> list[Tensors]:
    first, second = zip(*(t.tensor_split(2) for t in inputs), strict=True)
    return [first, second]


def _joined(y: tuple[torch.Tensor, ...], inputs: Tensors) -> torch.Tensor:
    """The mean of the halves' means, one of which may be of nothing."""
    sizes = [half[1].numel() for half in _halves(inputs)]
    return sum(n * part.double() for n, part in zip(sizes, y, strict=True) if n) / sum(sizes)


OP = Op(
    name="cross_entropy",
    reference=reference,
    inputs=inputs,
    dims=(Dim("batch", 1, 4096, batch=1), Dim("vocab", 1, 131072)),
    sizes={
        "tiny": {"batch": 32, "vocab": 256},
        "small": {"batch": 256, "vocab": 1024},
        "medium": {"batch": 1024, "vocab": 4096},
        "large": {"batch": 4096, "vocab": 32000},
        "xlarge": {"batch": 8192, "vocab": 50257},
        "llama": {"batch": 4096, "vocab": 32000},
        "gpt2": {"batch": 4096, "vocab": 50257},
        "llama3": {"batch": 4096, "vocab": 128256},
        "deepseek_v3": {"batch": 4096, "vocab": 129280},
        "qwen3": {"batch": 4096, "vocab": 151936},
        "gemma3": {"batch": 1024, "vocab": 262144},
    },
    edges={
        "one": {"batch": 1, "vocab": 1},
        "one_row": {"batch": 1, "vocab": 50257},
        "two_classes": {"batch": 1023, "vocab": 2},
        "odd_1023": {"batch": 1023, "vocab": 32000},
        "gpt2_4096": {"batch": 4096, "vocab": 50257},
        "odd_cols": {"batch": 64, "vocab": 4097},
        "no_rows": {"batch": 0, "vocab": 128},
    },
    tolerance=Tolerance(condition),
    cost=lambda dims, size: Cost(
        flops=4 * dims["batch"] * dims["vocab"],
        bytes=size * (dims["batch"] * dims["vocab"] + 1) + 8 * dims["batch"],
    ),
    roof="read",
    # The final mean, of as many numbers as there are rows.
    library=frozenset({"aten.mean", "aten.sum", "aten.div"}),
    huge={"batch": 16385, "vocab": 131072},
    timed=("large",),
    baselines={
        "eager": eager,
        "compile": compiled(eager),
        "liger": liger,
        "quack": quack,
        "flag_gems": flag_gems,
    },
    variants={
        "core": Variant(),
        "ignore_index": Variant({}, "ignore_index", form=some_ignored),
        "all_ignored": Variant({}, "ignore_index", form=all_ignored),
        "nd": Variant({}, "nd", form=nested),
    },
    stability={
        name: Stability(inputs, trap, unfit=frozenset({"all_ignored"}))
        for name, inputs, trap in (
            ("high", high, "exp overflows where the maximum is not taken off"),
            ("deep", deep, "a maximum that starts at 0, or lanes past the row that hold 0"),
            ("unlikely", unlikely, "the logarithm of a probability that is 0"),
            ("masked", masked, "-inf minus -inf in a block that is masked as a whole"),
        )
    },
    relations={
        "shift": Relation(
            lambda x, draw: [_coarse(x, 0), _coarse(x, 16)],
            lambda y, x: _agree(*y, (x[0] + 16, x[1])),
            slack=1024,
        ),
        "permutation": Relation(
            lambda x, draw: [x, (x[0].flip(-1), x[0].shape[-1] - 1 - x[1])],
            lambda y, x: _agree(*y, x),
            slack=1024,
        ),
        "split": Relation(
            lambda x, draw: [x, *_halves(x)],
            lambda y, x: _agree(y[0], _joined(y[1:], x), x),
            slack=1024,
        ),
    },
    fp32_result=True,
)
