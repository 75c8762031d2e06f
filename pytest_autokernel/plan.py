"""Which checks a kernel gets: the five stages as lists of cases. Pure: no torch, no clock.

What a case costs is bounded by its target. Where an op has dims of independent repetitions
(rows, batch), a case that is too large is cut along them, and its line in the report shows
the dims that were used; where it has none, the case is left out with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from pytest_autokernel.op import LAYOUTS, Case, Dims, Dtype, Op
from pytest_autokernel.settings import Effort

Stage = Literal["smoke", "shape_sweep", "numerical_stability", "determinism", "edge_cases"]
Kind = Literal["compare", "repeat", "renewed", "relation", "drawn"]
TargetName = Literal["cuda", "cpu", "interpreter"]
Tool = Literal["memcheck", "racecheck", "initcheck"]  # compute-sanitizer's
STAGES: tuple[Stage, ...] = (
    "smoke",
    "shape_sweep",
    "numerical_stability",
    "determinism",
    "edge_cases",
)


@dataclass(frozen=True)
class Target:
    """What the kernel runs on, and the largest case that is reasonable there: in elements of
    all inputs and results, in programs of a plain kernel (for the interpreter), in operations."""

    name: TargetName
    max_elements: int
    max_programs: float = math.inf
    max_flops: float = math.inf

    def takes(self, op: Op, dims: Dims) -> bool:
        """Whether a case of these dims is small enough."""
        return all(used <= room for used, room in self._rooms(op, dims))

    def most(self, op: Op, dims: Dims, batch: str) -> int:
        """How many of a batch dim there is room for: all costs are linear in it."""
        none, one = (self._rooms(op, {**dims, batch: n}) for n in (0, 1))
        left = [
            (room - fixed) / (used - fixed)
            for (fixed, room), (used, _) in zip(none, one, strict=True)
            if used > fixed and room < math.inf
        ]
        return int(min(left, default=0))

    def _rooms(self, op: Op, dims: Dims) -> list[tuple[float, float]]:
        """What the case takes of each thing, and how much of it there is."""
        cost = op.cost(dims, 1)
        programs = math.prod(dims[dim.name] / dim.batch for dim in op.dims if dim.batch)
        return [
            (cost.bytes, self.max_elements),
            (cost.flops, self.max_flops),
            (programs, self.max_programs),
        ]


@dataclass(frozen=True)
class Amount:
    """How much is done of each thing at one effort."""

    sizes: int  # named sizes, from the smallest; the timed ones always
    drawn: int  # examples per dtype, at least
    repeats: int  # of the determinism stage
    dtypes: int  # for everything but smoke and the named sizes
    shrink_s: float
    huge: bool = False  # offsets beyond 32 bits
    crossed: bool = True  # the stability stage's contents in variants, and in long dims


AMOUNTS: dict[Effort, Amount] = {
    "quick": Amount(sizes=2, drawn=5, repeats=3, dtypes=1, shrink_s=5, crossed=False),
    "normal": Amount(sizes=99, drawn=20, repeats=20, dtypes=3, shrink_s=20),
    "thorough": Amount(sizes=99, drawn=200, repeats=50, dtypes=3, shrink_s=120, huge=True),
}

# Elements, programs and operations per case. The interpreter takes some 2 ms per program, and per
# million operations from 8 ms, on tiles of 64, to ten times that on tiles of 16.
LIMITS: dict[TargetName, dict[Effort, tuple[int, float, float]]] = {
    "interpreter": {
        "quick": (2**17, 16, 6e6),
        "normal": (2**18, 64, 4e7),
        "thorough": (2**20, 512, 4e8),
    },
    "cpu": {
        "quick": (2**18, math.inf, 2e8),
        "normal": (2**20, math.inf, 1e9),
        "thorough": (2**27, math.inf, 1e10),
    },
    "cuda": {
        "quick": (2**27, math.inf, math.inf),
        "normal": (2**30, math.inf, math.inf),
        "thorough": (2**34, math.inf, math.inf),
    },
}

# Elements of a case that is about its contents: some rows of each named length but the longest.
LITTLE = 2**18

TOOLS: tuple[Tool, ...] = ("memcheck", "racecheck", "initcheck")
TOOLS_ON: frozenset[TargetName] = frozenset({"cuda"})
# A tool makes a kernel some 10 to 100 times slower, and each launch some milliseconds.
WITH_TOOL = (2**19, 1e9)  # elements and operations per case

# In GPU memory, for each element of a case: four copies in the inputs' dtype, and room.
BYTES_PER_ELEMENT = 12

# A timed case on the CPU moves 4 MB in fp32: a millisecond or two for a plain kernel.
TIMED_ELEMENTS: dict[TargetName, int] = {"interpreter": 2**18, "cpu": 2**20, "cuda": 2**30}


@dataclass(frozen=True)
class Check:
    """What one test item does. A `drawn` check searches; its case gives dtype and seed only.

    `sized` says that the case is about its very size, `whole` that it must not even be cut along
    its batch dims, `several` that more than one is left of each of these; `little` that few
    elements will do."""

    stage: Stage
    case: Case
    kind: Kind = "compare"
    relation: str | None = None
    sized: bool = False
    whole: bool = False
    several: bool = False
    little: bool = False

    @property
    def id(self) -> str:
        return self.case.id


def target(name: TargetName, effort: Effort, memory_bytes: int | None = None) -> Target:
    """`memory_bytes` is the GPU's: a case and its copies on both sides have to fit."""
    most, programs, flops = LIMITS[name][effort]
    if memory_bytes is not None:
        most = min(most, memory_bytes // BYTES_PER_ELEMENT)
    return Target(name, most, programs, flops)


def fit(op: Op, case: Case, target: Target, kept: str | None = None) -> Case | None:
    """The case, cut along its batch dims until the target can take it; None if it cannot. The dim
    that is `kept` stays as it is.

    The dim with the most programs gives way first: of the others more than one is left, so that
    strides along them are used."""
    dims = dict(case.dims)
    tiles = {dim.name: dim.batch for dim in op.dims if dim.batch and dim.name != kept}
    while not target.takes(op, dims):
        several = sorted((dims[n] / tile, n) for n, tile in tiles.items() if dims[n] > 1)
        if not several:
            return None
        (next_most, _), (_, most) = [(0.0, ""), *several][-2:]
        room = max(1, target.most(op, dims, most), math.floor(next_most * tiles[most]))
        dims[most] = room if room < dims[most] else dims[most] // 2
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
    if check.kind in ("repeat", "renewed"):  # tens of calls
        target = dataclasses.replace(target, max_flops=target.max_flops / 4)
    if check.little:
        target = _little(target)
    others = [] if check.sized else [op.sizes[name] for name in reversed(_by_size(op))]
    for dims in (check.case.dims, *others):
        asked = _several(op, dims) if check.several else dims
        fitted = fit(op, dataclasses.replace(check.case, dims=asked), target)
        if fitted is None or (check.whole and fitted.dims != asked):
            continue
        if not check.several or _several(op, fitted.dims) == fitted.dims:
            return fitted
    return None


def _little(target: Target) -> Target:
    elements, flops = min(target.max_elements, LITTLE), min(target.max_flops, 1e8)
    return dataclasses.replace(target, max_elements=elements, max_flops=flops)


def _several(op: Op, dims: Dims) -> dict[str, int]:
    """The dims with two of each batch dim at least: with one, no stride along it is ever used."""
    return {**dims, **{dim.name: max(2, dims[dim.name]) for dim in op.dims if dim.batch}}


def timed_cases(op: Op, name: TargetName) -> list[Case]:
    """What the roofline is measured on, whatever the effort, in the dtype that users run there.
    Where a timed size cannot be cut down to what is reasonable, the largest that can takes its
    place."""
    dtype: Dtype = "bf16" if name == "cuda" else "fp32"
    room = Target(name, TIMED_ELEMENTS[name])
    found: dict[str, Case] = {}
    for timed in op.timed:
        for size in (timed, *reversed(_by_size(op))):
            if fitted := fit(op, Case(size, op.sizes[size], dtype), room):
                found[size] = fitted
                break
    return list(found.values())


def tools(name: TargetName, effort: Effort) -> tuple[Tool, ...]:
    """Which of compute-sanitizer's tools a kernel is run under, beside its five stages."""
    return TOOLS if effort == "thorough" and name in TOOLS_ON else ()


def tool_cases(op: Op, supports: frozenset[str]) -> list[Case]:
    """What is run under each tool: few cases, all small. Each claimed variant, and the edges,
    where masks are what keeps a kernel inside."""
    elements, flops = WITH_TOOL
    room = Target("cuda", elements, max_flops=flops)
    small = _by_size(op)[0]
    cases = [Case(small, op.sizes[small], op.dtypes[0])]
    for variant in list(op.claimed(supports))[1:]:
        cases.append(Case(f"variant_{variant}", op.sizes[small], op.dtypes[0], variant=variant))
    for edge, dims in op.edges.items():
        if room.takes(op, dims):
            cases.append(Case(edge, dims, op.dtypes[0]))
    return [fitted for case in cases if (fitted := fit(op, case, room)) is not None]


def _unbounded(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    for stage in (_smoke, _shape_sweep, _numerical_stability, _determinism, _edge_cases):
        yield from stage(op, supports, amount)


def _by_size(op: Op) -> list[str]:
    return sorted(op.sizes, key=lambda name: op.cost(op.sizes[name], 1).bytes)


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
    if amount.crossed:
        yield from _crossed(op, supports)


def _crossed(op: Op, supports: frozenset[str]) -> Iterator[Check]:
    """The same contents in long dims, and in each claimed extension, whose variants take turns: a
    kernel may have a path of its own for either."""
    groups: dict[str, list[str]] = {}
    for name, variant in list(op.claimed(supports).items())[1:]:
        groups.setdefault(variant.extension or name, []).append(name)
    for i, (fill, stability) in enumerate(op.stability.items()):
        dtypes = [d for d in op.dtypes if d in stability.dtypes]
        for dtype in dtypes:
            case = Case(f"long_{fill}", _long(op), dtype, fill=fill)
            yield Check("numerical_stability", case, little=True)
        for j, group in enumerate(groups.values()):
            fits = [name for name in group if name not in stability.unfit]
            turn = dtypes if stability.exact else dtypes[(i + j) % max(1, len(dtypes)) :][:1]
            for name, dtype in product(fits[i % max(1, len(fits)) :][:1], turn):
                case = Case(f"{name}_{fill}", _middle(op), dtype, variant=name, fill=fill)
                yield Check("numerical_stability", case, little=True)


def _long(op: Op) -> Dims:
    """The named size that is the longest along the dims that are no repetitions, of those that
    a case about its contents has room for when it is cut."""
    room = _little(Target("cpu", LITTLE))
    batch = {dim.name: 1 for dim in op.dims if dim.batch}
    fitting = [
        d for d in (*op.edges.values(), *op.sizes.values()) if room.takes(op, {**d, **batch})
    ]
    return max(fitting, key=lambda dims: math.prod({**dims, **batch}.values()))


def _determinism(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    for dtype in op.dtypes[: amount.dtypes]:
        yield Check("determinism", Case(op.timed[0], op.sizes[op.timed[0]], dtype), "repeat")
        yield Check("determinism", Case("new_contents", _middle(op), dtype), "renewed")


def _edge_cases(op: Op, supports: frozenset[str], amount: Amount) -> Iterator[Check]:
    some = op.dtypes[: amount.dtypes]
    for (edge, dims), dtype in product(op.edges.items(), some):
        yield Check("edge_cases", Case(edge, dims, dtype), sized=True)
    small = op.sizes[_by_size(op)[:2][-1]]
    for layout, dtype in product(LAYOUTS[1:], some):
        yield Check("edge_cases", Case(layout, small, dtype, layout=layout), several=True)
    if amount.huge and op.huge is not None:
        case = Case("huge", op.huge, "bf16")
        if op.batched:
            yield Check("edge_cases", case, sized=True, whole=True)
        else:
            relation = next(iter(op.relations))
            yield Check("edge_cases", case, "relation", relation, sized=True, whole=True)
