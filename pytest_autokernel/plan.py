"""Which checks a kernel gets: the five stages as lists of cases. Pure: no torch, no clock.

What a case costs is bounded by its target. Where an op has dims of independent repetitions
(rows, batch), a case that is too large is cut along them, and its line in the report shows
the dims that were used; where it has none, the case is left out with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from pytest_autokernel.op import LAYOUTS, Case, Dims, Dtype, Op
from pytest_autokernel.settings import Effort

Stage = Literal["smoke", "shape_sweep", "numerical_stability", "determinism", "edge_cases"]
Kind = Literal["compare", "repeat", "renewed", "relation", "drawn"]
TargetName = Literal["cuda", "cpu", "interpreter"]
STAGES: tuple[Stage, ...] = (
    "smoke",
    "shape_sweep",
    "numerical_stability",
    "determinism",
    "edge_cases",
)


@dataclass(frozen=True)
class Target:
    """What the kernel runs on, and the largest case that is reasonable there, in elements of
    all inputs and results; `max_batch` bounds the number of programs in the interpreter."""

    name: TargetName
    max_elements: int
    max_batch: int


@dataclass(frozen=True)
class Amount:
    """How much is done of each thing at one effort."""

    sizes: int  # named sizes, from the smallest; the timed ones always
    drawn: int  # examples per dtype, at least
    repeats: int  # of the determinism stage
    dtypes: int  # for everything but smoke and the named sizes
    shrink_s: float
    huge: bool = False  # offsets beyond 32 bits


AMOUNTS: dict[Effort, Amount] = {
    "quick": Amount(sizes=2, drawn=5, repeats=3, dtypes=1, shrink_s=5),
    "normal": Amount(sizes=99, drawn=20, repeats=20, dtypes=3, shrink_s=20),
    "thorough": Amount(sizes=99, drawn=200, repeats=50, dtypes=3, shrink_s=120, huge=True),
}

# Elements per case. The interpreter takes about 2 ms per program and numpy's speed within it.
LIMITS: dict[TargetName, dict[Effort, tuple[int, int]]] = {
    "interpreter": {"quick": (2**17, 8), "normal": (2**18, 32), "thorough": (2**20, 128)},
    "cpu": {"quick": (2**18, 2**16), "normal": (2**20, 2**20), "thorough": (2**27, 2**31)},
    "cuda": {"quick": (2**27, 2**31), "normal": (2**30, 2**31), "thorough": (2**34, 2**33)},
}

# In GPU memory, for each element of a case: four copies in the inputs' dtype, and room.
BYTES_PER_ELEMENT = 12

# A timed case on the CPU moves 4 MB in fp32: a millisecond or two for a plain kernel.
TIMED_ELEMENTS: dict[TargetName, int] = {"interpreter": 2**18, "cpu": 2**20, "cuda": 2**30}


@dataclass(frozen=True)
class Check:
    """What one test item does. A `drawn` check searches; its case gives dtype and seed only.

    `sized` says that the case is about its very size, `whole` that it must not even be cut along
    its batch dims."""

    stage: Stage
    case: Case
    kind: Kind = "compare"
    relation: str | None = None
    sized: bool = False
    whole: bool = False

    @property
    def id(self) -> str:
        return self.case.id


def target(name: TargetName, effort: Effort, memory_bytes: int | None = None) -> Target:
    """`memory_bytes` is the GPU's: a case and its copies on both sides have to fit."""
    most, batch = LIMITS[name][effort]
    if memory_bytes is not None:
        most = min(most, memory_bytes // BYTES_PER_ELEMENT)
    return Target(name, most, batch)


def fit(op: Op, case: Case, target: Target) -> Case | None:
    """The case, cut along its batch dims until the target can take it; None if it cannot."""
    dims = dict(case.dims)
    for dim in op.dims:
        if not dim.batch:
            continue
        dims[dim.name] = min(dims[dim.name], target.max_batch)
        if _elements(op, dims) > target.max_elements:
            without, one = (_elements(op, {**dims, dim.name: n}) for n in (0, 1))
            most = int((target.max_elements - without) / (one - without))
            dims[dim.name] = min(dims[dim.name], max(1, most))
    if _elements(op, dims) > target.max_elements:
        return None
    return dataclasses.replace(case, dims=dims)


def checks(op: Op, supports: frozenset[str], target: Target, effort: Effort) -> Iterator[Check]:
    """Every check of the five stages, in the order in which they are worth running."""
    for check in _unbounded(op, supports, AMOUNTS[effort]):
        fitted = _fitted(op, check, target)
        if fitted is not None:
            yield dataclasses.replace(check, case=fitted)


def left_out(op: Op, supports: frozenset[str], target: Target, effort: Effort) -> list[str]:
    """The cases that are too large for the target."""
    every = _unbounded(op, supports, AMOUNTS[effort])
    return [f"{c.stage}[{c.id}]" for c in every if _fitted(op, c, target) is None]


def _fitted(op: Op, check: Check, target: Target) -> Case | None:
    """The check's case as the target can take it. Where the size is not the point, the largest
    named one that fits will do."""
    fitted = fit(op, check.case, target)
    if check.whole and fitted != check.case:
        return None
    if fitted is not None or check.sized:
        return fitted
    smaller = (dataclasses.replace(check.case, dims=op.sizes[n]) for n in reversed(_by_size(op)))
    return next((f for case in smaller if (f := fit(op, case, target)) is not None), None)


def timed_cases(op: Op, name: TargetName) -> list[Case]:
    """What the roofline is measured on, whatever the effort, in the dtype that users run there."""
    dtype: Dtype = "bf16" if name == "cuda" else "fp32"
    cases = [Case(size, op.sizes[size], dtype) for size in op.timed]
    room = Target(name, TIMED_ELEMENTS[name], 2**31)
    return [fitted for case in cases if (fitted := fit(op, case, room)) is not None]


def _elements(op: Op, dims: dict[str, int]) -> float:
    return op.cost(dims, 1).bytes


def _unbounded(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    for stage in (_smoke, _shape_sweep, _numerical_stability, _determinism, _edge_cases):
        yield from stage(op, supports, amount)


def _by_size(op: Op) -> list[str]:
    return sorted(op.sizes, key=lambda name: _elements(op, dict(op.sizes[name])))


def _middle(op: Op) -> Dims:
    """A size that every kernel needs several programs for, and that is judged quickly."""
    names = _by_size(op)
    return op.sizes[names[min(2, len(names) - 1)]]


def _smoke(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    smallest = _by_size(op)[0]
    for dtype in op.dtypes:
        yield Check("smoke", Case(smallest, op.sizes[smallest], dtype), sized=True)


def _shape_sweep(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    names = _by_size(op)
    swept = dict.fromkeys([*names[: amount.sizes], *op.timed])
    for size, dtype in product(swept, op.dtypes):
        yield Check("shape_sweep", Case(size, op.sizes[size], dtype), sized=True)
    some, middle = op.dtypes[: amount.dtypes], _middle(op)
    for variant, dtype in product(list(op.claimed(supports))[1:], some):
        yield Check("shape_sweep", Case(f"variant_{variant}", middle, dtype, variant=variant))
    for dtype in some:
        yield Check("shape_sweep", Case("drawn", op.sizes[names[0]], dtype), "drawn")
    for relation, dtype in product(op.relations, some):
        yield Check("shape_sweep", Case(relation, middle, dtype), "relation", relation)


def _numerical_stability(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    for (fill, stability), dtype in product(op.stability.items(), op.dtypes[: amount.dtypes]):
        if dtype in stability.dtypes:
            yield Check("numerical_stability", Case(fill, _middle(op), dtype, fill=fill))


def _determinism(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    for dtype in op.dtypes[: amount.dtypes]:
        yield Check("determinism", Case(op.timed[0], op.sizes[op.timed[0]], dtype), "repeat")
        yield Check("determinism", Case("new_contents", _middle(op), dtype), "renewed")


def _edge_cases(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    some = op.dtypes[: amount.dtypes]
    for (edge, dims), dtype in product(op.edges.items(), some):
        yield Check("edge_cases", Case(edge, dims, dtype), sized=True)
    for layout, dtype in product(LAYOUTS[1:], some):
        yield Check("edge_cases", Case(layout, _middle(op), dtype, layout=layout))
    if amount.huge and op.huge is not None:
        case = Case("huge", op.huge, "bf16")
        if op.batched:
            yield Check("edge_cases", case, sized=True, whole=True)
        else:
            relation = next(iter(op.relations))
            yield Check("edge_cases", case, "relation", relation, sized=True, whole=True)
