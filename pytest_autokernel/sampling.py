"""Taking samples, on the side of the process that runs the kernel.

A bench is one layout of buffers: inputs placed afresh behind random padding, the kernel
warmed up, and on a GPU captured as a graph. The parent asks two benches in turn for bursts of
samples (timing.py); nothing here compares.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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


class CpuBench:
    """A kernel on the CPU: warm caches, threads and affinity as the worker was told."""

    def __init__(
        self,
        kernel_fn: Callable[..., torch.Tensor],
        raws: Sequence[torch.Tensor],
        metas: Sequence[TensorMeta],
        message: dict[str, Any],
    ) -> None:
        self.kernel_fn, self.options = kernel_fn, message["options"]
        self.padding = torch.empty(message["padding"] % MAX_PADDING, dtype=torch.uint8)
        self.inputs = [view(raw.clone(), meta) for raw, meta in zip(raws, metas, strict=True)]
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

    def samples(self, count: int) -> list[float]:
        """`count` samples in microseconds per call."""
        taken = []
        for _ in range(count):
            start = _now_ns()
            for _ in range(self.calls):
                self.output = self._call()
            taken.append((_now_ns() - start) / self.calls / 1e3)
        return taken

    def _call(self) -> torch.Tensor:
        return self.kernel_fn(*self.inputs, **self.options)


class CudaBench:
    """A kernel on a CUDA GPU: one call per sample as a captured graph, after a clear of the L2
    cache, between two events with no synchronisation before them."""

    def __init__(
        self,
        kernel_fn: Callable[..., torch.Tensor],
        raws: Sequence[torch.Tensor],
        metas: Sequence[TensorMeta],
        message: dict[str, Any],
    ) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self.kernel_fn, self.options = kernel_fn, message["options"]
        self.padding = torch.empty(
            message["padding"] % MAX_PADDING, dtype=torch.uint8, device="cuda"
        )
        self.inputs = [view(raw.cuda(), meta) for raw, meta in zip(raws, metas, strict=True)]
        self.clear = torch.empty(message["clear_bytes"], dtype=torch.uint8, device="cuda")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.output = self._call()
        torch.cuda.synchronize()
        self.peak_bytes = torch.cuda.max_memory_allocated() - before
        self.graph = self._capture()
        self.samples(3)

    def facts(self) -> dict[str, Any]:
        return {
            "calls": 1,
            "captured": self.graph is not None,
            "peak_bytes": self.peak_bytes,
            "floor_us": self._floor_us(),
        }

    def samples(self, count: int) -> list[float]:
        """`count` samples in microseconds per call."""
        events = [(_Event(enable_timing=True), _Event(enable_timing=True)) for _ in range(count)]
        for start, end in events:
            self.clear.zero_()
            start.record()
            if self.graph is None:
                self.output = self._call()
            else:
                self.graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events]

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
