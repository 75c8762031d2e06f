"""Taking samples, on the side of the process that runs the kernel.

A bench is one layout of buffers: inputs placed afresh behind random padding, the kernel
warmed up, and on a GPU captured as a graph. The parent asks two benches in turn for bursts of
samples (timing.py); nothing here compares.

No timed call finds what the one before it found: before each, one element of an input is
overwritten by another (`Pokes`), which the parent can follow. A kernel that kept an earlier
result, or looks only at a part of its inputs to see whether they are new, gives a wrong one.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pytest_autokernel.channel import TensorMeta, view

# Taken before any kernel file runs, so that one which replaces them later times nothing.
_now_ns = time.perf_counter_ns
_Event = torch.cuda.Event
_Graph = torch.cuda.CUDAGraph

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
        return {"calls": self.calls, "captured": False, "peak_bytes": None, "floor_us": None}

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

    def span(self, count: int, empty: bool) -> None:
        """`count` calls for the parent's clock; `empty` leaves out the calls themselves."""
        for _ in range(0 if empty else count):
            self.output = self._call()

    def launched(self) -> list[str]:
        """There are no launches to see here."""
        self.output = self._call()
        return []

    def _call(self) -> torch.Tensor:
        return self.kernel_fn(*self.inputs, **self.options)


class CudaBench:
    """A kernel on a CUDA GPU: one call per sample as a captured graph, after a clear of the L2
    cache, between two events with no synchronisation before them."""

    def __init__(
        self,
        kernel_fn: Callable[..., torch.Tensor],
        raws: Sequence[torch.Tensor],
        message: dict[str, Any],
    ) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self.kernel_fn, self.options = kernel_fn, message["options"]
        self.padding = torch.empty(
            message["padding"] % MAX_PADDING, dtype=torch.uint8, device="cuda"
        )
        metas = [TensorMeta.from_json(m) for m in message["inputs"]]
        self.raws = [raw.to("cuda", copy=True) for raw in raws]
        self.inputs = [view(raw, meta) for raw, meta in zip(self.raws, metas, strict=True)]
        self.clear = torch.empty(message["clear_bytes"], dtype=torch.uint8, device="cuda")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.output = self._call()
        torch.cuda.synchronize()
        self.peak_bytes = torch.cuda.max_memory_allocated() - before
        self.graph = self._capture()
        self._samples(3, iter([]))

    def facts(self) -> dict[str, Any]:
        return {
            "calls": 1,
            "captured": self.graph is not None,
            "peak_bytes": self.peak_bytes,
            "floor_us": self._floor_us(),
        }

    def samples(self, count: int, seed: int) -> list[float]:
        """`count` samples in microseconds per call."""
        return self._samples(count, iter(Pokes(seed, self.inputs)))

    def _samples(self, count: int, pokes: Iterator[tuple[int, int, int]]) -> list[float]:
        events = [(_Event(enable_timing=True), _Event(enable_timing=True)) for _ in range(count)]
        for start, end in events:
            for n, to, of in take(pokes, 1):
                flat = self.inputs[n].view(-1)
                flat[to : to + 1].copy_(flat[of : of + 1])
            self._once(start, end)
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events]

    def refill(self, raws: Sequence[torch.Tensor]) -> None:
        """Other contents, in the same tensors."""
        for mine, raw in zip(self.raws, raws, strict=True):
            mine.copy_(raw)

    def span(self, count: int, empty: bool) -> None:
        """`count` calls as they are sampled, for the parent's clock; `empty` leaves out the calls
        themselves, so that the difference is theirs."""
        for _ in range(count):
            self._forget()
            if not empty:
                self._play()
        torch.cuda.synchronize()

    def launched(self) -> list[str]:
        """The names of the GPU kernels that one call launches."""
        from torch.profiler import ProfilerActivity, profile

        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
            self.output = self._call()
            torch.cuda.synchronize()
        events = [event for event in seen.events() if event.device_type.name == "CUDA"]
        return sorted({event.name for event in events})

    def _once(self, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        self._forget()
        start.record()
        self._play()
        end.record()

    def _forget(self) -> None:
        """Poison the result that the graph writes to, and clear the L2 cache."""
        if self.graph is not None and self.output.is_floating_point():
            self.output.fill_(float("nan"))
        self.clear.zero_()

    def _play(self) -> None:
        if self.graph is None:
            self.output = self._call()
        else:
            self.graph.replay()

    def _call(self) -> torch.Tensor:
        return self.kernel_fn(*self.inputs, **self.options)

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        """The call as a graph, or None where it cannot be captured (it synchronises, say)."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.output = self._call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = _Graph()
        try:
            with torch.cuda.graph(graph):
                self.output = self._call()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph

    def _floor_us(self) -> float:
        """What two events around nothing read: the least that a sample can show."""
        readings: list[float] = []
        for _ in range(10):
            start, end = _Event(enable_timing=True), _Event(enable_timing=True)
            self.clear.zero_()
            start.record()
            end.record()
            torch.cuda.synchronize()
            readings.append(start.elapsed_time(end) * 1e3)
        return statistics.median(readings)


def take(pokes: Iterator[tuple[int, int, int]], count: int) -> list[tuple[int, int, int]]:
    return [poke for _, poke in zip(range(count), pokes, strict=False)]


def poked(values: Sequence[torch.Tensor], seed: int, count: int) -> None:
    """Change `values` as `count` timed calls with this seed did."""
    for n, to, of in take(iter(Pokes(seed, values)), count):
        flat = values[n].view(-1)
        flat[to : to + 1].copy_(flat[of : of + 1])


def _bits(raw: torch.Tensor, meta: TensorMeta) -> memoryview[int]:
    """The elements of a contiguous tensor in `raw` as integers, which Python moves in some
    60 ns; torch takes twenty times as long."""
    itemsize: int = getattr(torch, meta.dtype).itemsize
    kind: Any = {1: "B", 2: "H", 4: "I", 8: "Q"}[itemsize]
    buffer: Any = raw.numpy()  # which it is; its stubs say so from Python 3.12 on alone
    return memoryview(buffer).cast(kind)[meta.offset :]


def measure_ceilings(device: str, nbytes: int, dtype: str, cpus: Sequence[int]) -> dict[str, float]:
    """What this device reaches: copy and read bandwidth in GB/s on a working set of `nbytes`,
    and the rate of a large matrix product of `dtype` in TFLOP/s.

    A CPU is measured with all threads and with one, and the better counts: two threads on a
    busy machine wait for each other."""
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    source = torch.randn(max(nbytes // 8, 1024), device=device)
    target = torch.empty_like(source)
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    size = source.numel() * source.element_size()
    best: dict[str, float] = {}
    before = torch.get_num_threads()
    for threads in {len(cpus), 1} if device == "cpu" else {1}:
        torch.set_num_threads(threads)
        reached = {
            "copy_gb_s": 2 * size / _best_seconds(lambda: target.copy_(source), device) / 1e9,
            "read_gb_s": size / _best_seconds(source.sum, device) / 1e9,
            "tflops": 2 * side**3 / _best_seconds(lambda: a @ b, device) / 1e12,
        }
        best = {name: max(rate, best.get(name, 0.0)) for name, rate in reached.items()}
    torch.set_num_threads(before)
    return best


def _best_seconds(work: Callable[[], object], device: str) -> float:
    """The fastest of repeated runs within 0.2 s, and of five at least."""
    best, spent, runs = float("inf"), 0.0, 0
    work()
    while spent < 0.2 or runs < 5:
        if device == "cuda":
            start, end = _Event(enable_timing=True), _Event(enable_timing=True)
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            seconds = float(start.elapsed_time(end)) / 1e3
        else:
            begin = _now_ns()
            work()
            seconds = (_now_ns() - begin) / 1e9
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return best
