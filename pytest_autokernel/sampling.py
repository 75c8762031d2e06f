"""Taking samples, on the side of the process that runs the kernel: on a CPU, and what a GPU's
bench (gpu_sampling.py) shares with it.

A bench is one layout of buffers: inputs placed afresh behind random padding, and the kernel warmed
up. The parent asks two benches in turn for bursts of samples (session.py); nothing here compares.

No timed call finds what the one before it found: before each, one element of an input is
overwritten by another (`Pokes`), which the parent can follow. A kernel that kept an earlier
result, or looks only at a part of its inputs to see whether they are new, gives a wrong one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pytest_autokernel.audit import dispatched
from pytest_autokernel.channel import TensorMeta, view

# Taken before any kernel file runs, so that one which replaces them later times nothing.
_now_ns = time.perf_counter_ns

CPU_SAMPLE_NS = (
    1_000_000  # a sample is at least 1 ms of calls: the clock and the loop then cost < 0.1 %
)
WARMUP_NS = 20_000_000
MAX_PADDING = 8 * 2**20  # bytes; what moves a buffer to another place in caches and banks


class Pokes:
    """Which element of which input is overwritten by which, one after another: the same for the
    same seed, on either side. Only floating-point inputs; of the others some must stay in range."""

    def __init__(self, seed: int, inputs: Sequence[torch.Tensor]) -> None:
        self._random = random.Random(seed)
        self._sizes = [(n, t.numel()) for n, t in enumerate(inputs) if t.is_floating_point()]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Input, the element that is written, and the one that is read, in row-major order."""
        while True:
            which, size = self._random.choice(self._sizes)
            yield which, self._random.randrange(size), self._random.randrange(size)


class CpuBench:
    """A kernel on the CPU: warm caches, threads and affinity as the worker was told."""

    def __init__(
        self,
        kernel_fn: Callable[..., torch.Tensor],
        raws: Sequence[torch.Tensor],
        message: dict[str, Any],
    ) -> None:
        self.kernel_fn, self.options = kernel_fn, message["options"]
        self.padding = torch.empty(message["padding"] % MAX_PADDING, dtype=torch.uint8)
        self.raws = [raw.clone() for raw in raws]
        metas = [TensorMeta.from_json(m) for m in message["inputs"]]
        self.inputs = [view(raw, meta) for raw, meta in zip(self.raws, metas, strict=True)]
        self.bits = [_bits(raw, meta) for raw, meta in zip(self.raws, metas, strict=True)]
        self.output = self._call()
        spent, calls = 0, 0
        start = _now_ns()
        while spent < WARMUP_NS or calls < 3:
            self.output = self._call()
            calls += 1
            spent = _now_ns() - start
        self.calls = max(1, round(CPU_SAMPLE_NS * calls / spent))

    def facts(self) -> dict[str, Any]:
        return {"calls": self.calls, "sets": 1, "captured": False, "peak_bytes": None}

    def samples(self, count: int, seed: int) -> list[float]:
        """`count` samples in microseconds per call, after as many calls as one of them takes: what
        ran in between has put other things into the caches."""
        self.span(self.calls, empty=False)
        pokes = iter(Pokes(seed, self.inputs))
        taken = []
        for _ in range(count):
            drawn = [(self.bits[n], to, of) for n, to, of in take(pokes, self.calls)]
            start = _now_ns()
            for bits, to, of in drawn:
                bits[to] = bits[of]
                self.output = self._call()
            taken.append((_now_ns() - start) / self.calls / 1e3)
        return taken

    def refill(self, raws: Sequence[torch.Tensor]) -> None:
        """Other contents, in the same tensors."""
        for mine, raw in zip(self.raws, raws, strict=True):
            mine.copy_(raw)

    def result(self, which: int) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """What the last call left, and the one set of inputs that there is."""
        return self.output, self.inputs

    def span(self, count: int, empty: bool) -> None:
        """`count` calls for the parent's clock; `empty` leaves out the calls themselves."""
        for _ in range(0 if empty else count):
            self.output = self._call()

    def launched(self) -> list[str]:
        """The torch operators that compute in one call."""
        self.output, names = dispatched(self._call)
        return names

    def _call(self) -> torch.Tensor:
        return self.kernel_fn(*self.inputs, **self.options)


def take(pokes: Iterator[tuple[int, int, int]], count: int) -> list[tuple[int, int, int]]:
    return [poke for _, poke in zip(range(count), pokes, strict=False)]


def poked(values: Sequence[torch.Tensor], seed: int, count: int, sets: int, which: int) -> None:
    """Change `values` as `count` timed calls with this seed did that took turns on `sets` sets of
    inputs, of which `values` are one."""
    for n, to, of in take(iter(Pokes(seed, values)), count)[which::sets]:
        flat = values[n].view(-1)
        flat[to : to + 1].copy_(flat[of : of + 1])


def _bits(raw: torch.Tensor, meta: TensorMeta) -> memoryview[int]:
    """The elements of a contiguous tensor in `raw` as integers, which Python moves in some
    60 ns; torch takes twenty times as long."""
    itemsize: int = getattr(torch, meta.dtype).itemsize
    kind: Any = {1: "B", 2: "H", 4: "I", 8: "Q"}[itemsize]
    buffer: Any = raw.numpy()  # which it is; its stubs say so from Python 3.12 on alone
    return memoryview(buffer).cast(kind)[meta.offset :]
