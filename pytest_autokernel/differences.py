"""A difference in words: where it is worst, how large, and what kind of mistake it looks like."""

from __future__ import annotations

import math

import torch


def worst_place(
    value: torch.Tensor, expected: torch.Tensor, error: torch.Tensor, allowance: torch.Tensor
) -> str:
    """Where the worst difference is, and what kind it looks like."""
    bad = error > allowance
    flat = int((error / allowance).nan_to_num(0.0).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape))
    place = (
        f"at {list(index)} got {float(value[index]):.9g}, expected {float(expected[index]):.9g}, "
        f"off by {float(error[index]):.3g} where {float(allowance[index]):.3g} is allowed"
    )
    return f"{_kind(value, expected, bad)}: {place} ({int(bad.sum())} of {bad.numel()} elements)"


def _kind(value: torch.Tensor, expected: torch.Tensor, bad: torch.Tensor) -> str:
    """What a difference looks like: the first of these that fits."""
    if bool((value == 0).where(bad, True).all()):
        return "zeros where values belong"
    if bad.all() and bad.numel() > 1:
        ratio = (value / expected)[expected != 0]
        if ratio.numel() and float(ratio.std()) < 0.01 * abs(float(ratio.mean())):
            return f"scale: every element is {float(ratio.mean()):.4g} times the expected"
    if not bad.all() and (place := _place(bad)):
        return place
    if like := _dtype_like(value, expected, bad):
        return f"dtype: errors of the size of {like}'s roundings"
    return "wrong everywhere" if bad.all() and bad.numel() > 1 else "value"


def _dtype_like(value: torch.Tensor, expected: torch.Tensor, bad: torch.Tensor) -> str | None:
    """The precision in which many elements seem to have been kept, by the middle of their
    relative errors: a rounding to `p` bits and a few operations after it leave 2^-p or so."""
    relative = ((value - expected).abs() / expected.abs())[bad & (expected != 0)]
    if relative.numel() < 32:
        return None
    middle, top = (float(relative.quantile(q)) for q in (0.5, 0.95))
    if not middle > 0 or top > 8 * middle:
        return None
    sizes = {"fp16 or tf32": (-14.0, -9.4), "bf16": (-9.4, -6.4), "fp8": (-6.4, -3.8)}
    found = (name for name, (low, high) in sizes.items() if low < math.log2(middle) <= high)
    return next(found, None)


def _place(bad: torch.Tensor) -> str | None:
    """Where the wrong elements lie, if they are several and lie together."""
    if int(bad.sum()) < 2:
        return None
    if bad.dim() >= 1 and bad.shape[-1] > 1:
        columns = bad.reshape(-1, bad.shape[-1]).any(0).nonzero().flatten()
        first, last = int(columns[0]), int(columns[-1])
        if first > 0 and bad[..., first:].all():
            return f"tail: all elements from {first} of {bad.shape[-1]} on along the last dim"
        if first > 0 and first == last:
            return f"boundary: only at {first} of {bad.shape[-1]} along the last dim"
        for tile in (256, 128, 64, 32, 16):
            if columns.numel() > 1 and bool((columns % tile == columns[0] % tile).all()):
                return f"boundary: only every {tile} elements along the last dim, from {first} on"
    if bad.dim() >= 2 and bool((bad.any(-1) == bad.all(-1)).all()):
        rows = bad.any(-1)
        return f"whole rows: {int(rows.sum())} of {rows.numel()}"
    return None
