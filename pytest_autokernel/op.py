"""What an op is: its reference, its domain of inputs, its tolerance and its cost.

One `Op` is all that is known of an op, and lives in one file of a `reference/` folder. This
module holds the parts that such a file is made of. It imports neither torch nor anything of
ours, so that reading an op's shape costs nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    import torch

Dims = Mapping[str, int]
Tensors = tuple["torch.Tensor", ...]
Dtype = Literal["fp16", "bf16", "fp32"]
Layout = Literal[
    "contiguous", "transposed", "strided", "offset", "padded", "packed", "broadcast", "mixed"
]

DTYPES: tuple[Dtype, ...] = ("fp16", "bf16", "fp32")
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
ITEMSIZE: Mapping[str, int] = MappingProxyType({"fp16": 2, "bf16": 2, "fp32": 4})


class Draw(Protocol):
    """Where an op's input maker gets its data: seeded, on one device, in the case's dtype."""

    @property
    def dtype(self) -> torch.dtype: ...

    def normal(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
        """A normal tensor of `shape` in the case's dtype: `offset + scale * N(0, 1)`."""

    def integers(self, *shape: int, low: int, high: int) -> torch.Tensor:
        """An int64 tensor of `shape`, uniform over `low <= n < high`."""

    def between(self, low: float, high: float) -> float:
        """One number, uniform over `low <= n <= high`."""

    def below(self, stop: int) -> int:
        """One integer, uniform over `0 <= n < stop`."""


@dataclass(frozen=True)
class Dim:
    """One dimension of an op and the range that random cases draw it from.

    `choices`, where given, are the only values allowed (a power-of-two head size). `batch`
    marks a dimension of independent repetitions, and says how many of them a program of a plain
    kernel handles: a case that is too large for its device is cut along it, and the report says so.
    """

    name: str
    low: int
    high: int
    choices: tuple[int, ...] = ()
    batch: int = 0


@dataclass(frozen=True)
class Case:
    """One call of a kernel: named, or drawn by Hypothesis. All of it comes from the judge."""

    name: str
    dims: Dims
    dtype: Dtype
    variant: str = "core"
    fill: str = "normal"
    layout: Layout = "contiguous"
    seed: int = 0

    @property
    def id(self) -> str:
        return f"{self.name}-{self.dtype}"

    def __str__(self) -> str:
        """The case in one line, without its name: `4096x50257 bf16 dim0 strided spike`."""
        words = ["x".join(str(n) for n in self.dims.values()), self.dtype]
        plain = {"core", "contiguous", "normal"}
        return " ".join(
            words + [w for w in (self.variant, self.layout, self.fill) if w not in plain]
        )

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "dims": dict(self.dims)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Case:
        return Case(**data)


@dataclass(frozen=True)
class Cost:
    """The least work that an op needs: floating-point operations, and bytes of main memory.

    Bytes count each operand once and each result once.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Tolerance:
    """How far a right kernel may be from the exact value, element by element.

    With `r` the exact result in float64 and `u` the unit roundoff of the result's dtype,

        1.05 u |r|  +  (roundings - 1) u |intermediate|  +  2^-24 condition  +  roundings tiny

    `roundings` counts how often the op's contract lets a value be stored in the result's
    dtype (1: only at the end); each may meet a subnormal, which is `tiny` apart from the next.
    `condition(inputs, r, **options)` says, in units of 2^-24, what fp32 arithmetic may lose on
    these very inputs: it carries the length of the reductions and their cancellation.
    `intermediate`, called alike, defaults to `r`. The options are those of the case's variant.
    `together(inputs, **options)` gives `r` and these two at once, for an op
    in which they share most of their work.
    `of_16_bits` is the condition for inputs of 16 bits, which tensor cores may multiply
    (`cut_off`), where it is another.
    """

    condition: Callable[..., torch.Tensor]
    roundings: int = 1
    intermediate: Callable[..., torch.Tensor] | None = None
    together: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None
    of_16_bits: Callable[..., torch.Tensor] | None = None


@dataclass(frozen=True)
class Variant:
    """A form of the op: other keyword arguments or inputs of another rank.

    `extension` names the claim in a kernel's `SUPPORTS` that it needs; none is the core.
    `dims`, where given, changes what the inputs are made of, and `form` what was made: so that a
    variant meets all contents that the core does.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    extension: str | None = None
    dims: Callable[[Draw, Dims], Dims] | None = None
    form: Callable[[Draw, Tensors], Tensors] | None = None


@dataclass(frozen=True)
class Stability:
    """Inputs on which a careless kernel is wrong, and why (`trap`).

    `exact` marks inputs on which fp32 arithmetic in any order makes no error at all: the result
    must be the exact one, rounded once, bit for bit. `unfit` are the variants in which a right
    kernel may overflow, or which leave nothing of these contents.
    """

    inputs: Callable[[Draw, Dims], Tensors]
    trap: str
    dtypes: tuple[Dtype, ...] = DTYPES
    exact: bool = False
    unfit: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Relation:
    """A property that links a kernel's results on related inputs, with no reference needed.

    `related(inputs, draw)` gives the input tuples of the calls. `sides(outputs, inputs)`, whose
    inputs are those of the first call, gives two float64 tensors that must agree and the
    magnitude at which their elements were rounded:
    `|left - right| <= 2 u magnitude + 2^-24 slack magnitude`.
    """

    related: Callable[[Tensors, Draw], Sequence[Tensors]]
    sides: Callable[
        [Sequence[torch.Tensor], Tensors], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ]
    slack: float = 64.0


@dataclass(frozen=True)
class Op:
    """Everything known of an op. See the module's parts for the meaning of each field.

    `reference(*inputs, **options)` computes in the dtype of its inputs; the oracle hands it
    float64. `baselines` are what a user would call instead; the first is the one to beat, and by
    which the oracle knows what PyTorch reaches, unless there is a `trusted` form of it that gives
    the same bits each time.
    `roof` says what bounds the op: copying memory, reading it, or arithmetic. The result has
    the first input's dtype; where `fp32_result` is set it may be fp32 instead. `library` are the
    torch operators that a kernel may call and still be one, as `aten.NAME`, and the GPU kernels
    behind them that are not torch's own. `deterministic` asks for equal bits in repeated runs;
    without it sums may be reordered, and no more than that. `batched` is how many
    inputs, from the first on, share their first dim with the result, and nothing else along it:
    large results are compared in pieces. `huge` has an operand of more than 2^31 elements.
    `timed` sizes count by their `weights` (1 unless given); of a `critical` one no loss is taken.
    """

    name: str
    reference: Callable[..., torch.Tensor]
    inputs: Callable[[Draw, Dims], Tensors]
    dims: tuple[Dim, ...]
    sizes: Mapping[str, Dims]
    edges: Mapping[str, Dims]
    tolerance: Tolerance
    cost: Callable[[Dims, int], Cost]
    roof: Literal["copy", "read", "math"]
    timed: tuple[str, ...]
    baselines: Mapping[str, Callable[..., torch.Tensor]]
    trusted: Callable[..., torch.Tensor] | None = None
    variants: Mapping[str, Variant] = field(default_factory=lambda: {"core": Variant()})
    stability: Mapping[str, Stability] = field(default_factory=dict)
    relations: Mapping[str, Relation] = field(default_factory=dict)
    dtypes: tuple[Dtype, ...] = DTYPES
    fp32_result: bool = False
    library: frozenset[str] = frozenset()
    deterministic: bool = True
    batched: int = 0
    huge: Dims | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    critical: frozenset[str] = frozenset()

    def fills(self, dtype: Dtype, variant: str = "core") -> list[str]:
        """The contents beside normal ones that a variant can be given in a dtype."""
        return [
            name
            for name, stability in self.stability.items()
            if dtype in stability.dtypes and variant not in stability.unfit
        ]

    @property
    def extensions(self) -> tuple[str, ...]:
        """What a kernel may claim in `SUPPORTS` beyond the core."""
        return tuple(dict.fromkeys(v.extension for v in self.variants.values() if v.extension))

    def claimed(self, supports: frozenset[str]) -> dict[str, Variant]:
        """The variants that a kernel with these claims is judged on."""
        return {
            n: v for n, v in self.variants.items() if v.extension is None or v.extension in supports
        }


def growth(n: int) -> float:
    """How far a sum of `n` fp32 numbers of one sign may stray, in units of 2^-24 of the sum.

    The roundings of a sequential sum walk at random, 2 sqrt(n) at most, and addends below the
    sum's last bit are lost: 941 units for 50,257 exponentials of normal numbers times 3
    (measured). A tree or one sum per lane stays far below.
    """
    return 2 * math.sqrt(n) + n / 32


def cut_off(n: int) -> float:
    """How far a sum of `n` products of one sign may stray in tensor cores, in `growth`'s units.

    They do not round. An H100's take 16 products and the sum at a time, all to 2 bits beyond the
    largest one's fp32, and cut off what is below, in the end at fp32's own last bit: 5.25 units of
    that largest one's power of two (Fasi et al., 2021, found this out for the generations before).
    Of a sum that grows evenly 1/3 to 2/3 of it, in all of n / 16 steps; 4,264 units or more of
    50,257 products were lost on an H200, where n / 4 is 12,564.
    """
    return growth(n) + n / 4


def drift(addends: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """What a sequential fp32 sum of numbers >= 0 loses after its largest addend, where that is 1 in
    a kernel that scales by it: all others are rounded to its last bit, and where they are about
    alike, to 0, all of them. `[..., 1]` in units of 2^-24 of the sum: 250 for 1,023 addends
    exp(x - 17) beside a 1, with normal x, which is more than their `growth`."""
    last_bit = 2.0**-23 * addends.amax(dim, keepdim=True)
    last_bit = last_bit.where(last_bit > 0, 1.0)
    lost = (addends / last_bit).round() * last_bit - addends
    total = addends.sum(dim, keepdim=True)
    return 2.0**24 * lost.sum(dim, keepdim=True).abs() / total.where(total > 0, 1.0)


def near_square(n: int) -> tuple[int, int]:
    """Two factors of `n`, as close to each other as can be: makes 3-D inputs of 2-D ones."""
    low = max((d for d in range(1, math.isqrt(n) + 1) if n % d == 0), default=1)
    return low, n // low


def compiled(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`fn` as torch.compile makes it, from its first call on.

    Without CUDA graphs, which would copy the inputs at each call; for each shape anew.
    """

    @functools.cache
    def build() -> Callable[..., torch.Tensor]:
        import torch

        return torch.compile(fn, mode="max-autotune-no-cudagraphs", dynamic=False)

    return lambda *inputs, **options: build()(*inputs, **options)


def fastest(*forms: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Whichever form of an op is the fastest on this GPU, each tried once for inputs of one kind.

    One that refuses them is not; on the CPU it is the first.
    """
    best: dict[tuple[object, ...], Callable[..., torch.Tensor]] = {}

    def call(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        if not inputs[0].is_cuda:
            return forms[0](*inputs, **options)
        kind = (*((t.shape, t.stride(), t.dtype) for t in inputs), *options.items())
        if kind not in best:
            best[kind] = min(
                forms, key=lambda form: _milliseconds(functools.partial(form, *inputs, **options))
            )
        return best[kind](*inputs, **options)

    return call


def _milliseconds(work: Callable[[], object]) -> float:
    """On the GPU: the least of ten times after one, or infinity for what raises."""
    import torch

    readings: list[float] = []
    try:
        work()
    except RuntimeError:
        return math.inf
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        readings.append(start.elapsed_time(end))
    return min(readings)
