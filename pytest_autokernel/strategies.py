"""An op's domain as one Hypothesis strategy, and a bounded, seeded search through it.

Plain integers rarely meet the sizes at which kernels break; so dimensions are drawn towards
1, powers of two, tile sizes and their neighbours, primes, and the integers in the kernel's
own source (n - 1, n, n + 1). Hypothesis shrinks what fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from pytest_autokernel.op import LAYOUTS, Case, Dim, Dims, Dtype, Op

POWERS = [2**i for i in range(20)]
TILES = [k * tile + d for tile in (16, 32, 64, 128, 256) for k in (1, 2, 3, 7) for d in (-1, 0, 1)]
PRIMES = [3, 5, 7, 13, 31, 61, 97, 127, 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521]


def dim(dim: Dim, integers: Iterable[int], most: int) -> st.SearchStrategy[int]:
    """Sizes of one dimension, no larger than `most`."""
    if dim.choices:
        return st.sampled_from(dim.choices)
    high = max(dim.low, min(dim.high, most))
    harvested = [k * n + d for n in integers for k in (1, 3, 5) for d in (-1, 0, 1)]
    pools = ([1, 2, 3], TILES, POWERS, PRIMES, harvested)
    inside = [sorted({n for n in pool if dim.low <= n <= high}) for pool in pools]
    return st.one_of(
        *(st.sampled_from(pool) for pool in inside if pool), st.integers(dim.low, high)
    )


# A case that is small enough, cut along its batch dims but for the one that is named; or None.
Fit = Callable[[Case, str | None], Case | None]


@st.composite
def cases(
    draw: st.DrawFn,
    op: Op,
    variants: tuple[str, ...],
    dtype: Dtype,
    integers: frozenset[int],
    fit: Fit,
) -> Case:
    """A case of `op` in `dtype` that `fit` lets through, made smaller if need be."""
    sizes = {d.name: draw(dim(d, integers, d.high)) for d in op.dims}
    variant = draw(st.sampled_from(variants))
    fills = op.fills(dtype, variant)
    case = Case(
        name="drawn",
        dims=sizes,
        dtype=dtype,
        variant=variant,
        fill=draw(st.sampled_from(["normal"] * max(1, len(fills)) + fills)),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**48 - 1)),
    )
    return shrunk(op, case, fit) or replace(case, dims=_least(op))


def shrunk(op: Op, case: Case, fit: Fit, kept: str | None = None) -> Case | None:
    """The case with its dims halved, the largest first, until `fit` lets it through; None if it
    never does. The dim that is `kept` stays as it is."""
    sizes, least = dict(case.dims), _least(op)
    while (fitted := fit(replace(case, dims=dict(sizes)), kept)) is None:
        larger = [d for d in op.dims if sizes[d.name] > least[d.name] and d.name != kept]
        if not larger:
            return None
        largest = max(larger, key=lambda d: (not d.batch, sizes[d.name]))
        half = -(-sizes[largest.name] // 2)
        smaller = [n for n in largest.choices if n < sizes[largest.name]]
        sizes[largest.name] = max(smaller, default=max(largest.low, half))
    return fitted


def _least(op: Op) -> dict[str, int]:
    return {d.name: (d.choices or (d.low,))[0] for d in op.dims}


def special_cases(
    op: Op,
    dims: Dims,
    dtype: Dtype,
    integers: Iterable[int],
    seed: int,
    share: Callable[[int], bool],
    fit: Fit,
) -> Iterator[Case]:
    """At each integer of the kernel's source, each dim in turn: a kernel that treats one size
    apart is met at that size for certain, not by luck, with the other dims as small as `fit` asks
    for. The sizes beside it are met in one dtype only: `share` says which are this one's."""
    around = {n + d: d for d in (-1, 1) for n in integers} | dict.fromkeys(integers, 0)
    for dim in op.dims:
        for size, beside in sorted(around.items()):
            possible = dim.low <= size <= dim.high and (not dim.choices or size in dim.choices)
            if possible and (not beside or share(size)):
                case = Case("special", {**dims, dim.name: size}, dtype, seed=seed + size)
                fitted = shrunk(op, case, fit, dim.name)
                if fitted is not None:
                    yield fitted


class Failed(Exception):
    """A drawn case that the kernel failed."""


def search(
    strategy: st.SearchStrategy[Case],
    passes: Callable[[Case], bool],
    examples: int,
    shrink_seconds: float,
    random_seed: int,
) -> tuple[int, Case | None]:
    """Try `examples` cases; the number answered, and the smallest that failed, if any.

    Shrinking ends after `shrink_seconds`: from then on only known cases are answered, so that
    Hypothesis settles on the best it has. Everything that it would otherwise read from the
    environment (CI derandomises it, a database replays) is set here.
    """
    known: dict[str, bool] = {}
    answered = 0
    failed: list[Case] = []
    deadline = [float("inf")]

    @seed(random_seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def attempt(case: Case) -> None:
        nonlocal answered
        key = repr(case)
        if key not in known:
            if time.monotonic() > deadline[0]:
                return
            known[key] = passes(case)
        answered += 1
        if not known[key]:
            if not failed:
                deadline[0] = time.monotonic() + shrink_seconds
            failed.append(case)
            raise Failed

    try:
        attempt()
    except Failed:
        return answered, failed[-1]
    return answered, None
