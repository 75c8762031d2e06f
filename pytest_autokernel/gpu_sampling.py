"""Taking samples on a CUDA GPU, on the side of the process that runs the kernel.

A sample is some calls in a row, as one captured graph between two events. Each call has inputs
and a result of its own (with a warm L2 cache, inputs that all share), so that a cold cache is cold
for each of them, and a short kernel's time is many times what the events themselves cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pytest_autokernel.channel import TensorMeta, view
from pytest_autokernel.sampling import MAX_PADDING, Pokes, take

if TYPE_CHECKING:
    from collections.abc import Callable

# Taken before any kernel file runs, so that one which replaces them later times nothing.
_Event = torch.cuda.Event
_Graph = torch.cuda.CUDAGraph
_now_ns = time.perf_counter_ns

# The GPU's cycles (some 60 us) in which the host comes to be ahead of it: from there on the
# events wait for the GPU alone.
HEAD_START = 100_000
ALIGNMENT = 512  # bytes, as torch's allocator has it


class CudaBench:
    """One layout of a kernel's buffers. `message["calls"]` is how many calls make a sample, and
    `message["clear_bytes"]` how much is written before it to clear the L2 cache: 0 keeps it warm.
    """

    def __init__(
        self,
        kernel_fn: Callable[..., torch.Tensor],
        raws: Sequence[torch.Tensor],
        message: dict[str, Any],
    ) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self.kernel_fn, self.options, self.calls = kernel_fn, message["options"], message["calls"]
        self.sets = self.calls if message["clear_bytes"] else 1
        self.clear = torch.empty(message["clear_bytes"], dtype=torch.uint8, device="cuda")
        padding = message["padding"] % MAX_PADDING
        self.padding = torch.empty(padding, dtype=torch.uint8, device="cuda")
        metas = [TensorMeta.from_json(m) for m in message["inputs"]]
        self.raws = [_copies(raw, self.sets, padding // self.sets) for raw in raws]
        buffers = list(zip(self.raws, metas, strict=True))
        each = [[view(raw.data, meta) for raw in raws] for raws, meta in buffers]
        self.inputs = list(zip(*each, strict=True))
        self.elements = [_elements(raws, meta) for raws, meta in buffers]
        self.peak_bytes = self._peak_bytes()
        self.outputs = [self._call(0)]
        self.graph = self._captured(self._calls)
        # Results that come anew with each call have no place that a graph could know.
        self.forgets = self._captured(self._forget) if self.graph is not None else None
        self._samples(3, iter([]))

    def facts(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "sets": self.sets,
            "captured": self.graph is not None,
            "peak_bytes": self.peak_bytes,
        }

    def samples(self, count: int, seed: int) -> list[float]:
        """`count` samples in microseconds per call."""
        return self._samples(count, iter(Pokes(seed, self.inputs[0])))

    def result(self, which: int) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """What the last call on a set of inputs left, and that set."""
        return self.outputs[which % len(self.outputs)], self.inputs[which % self.sets]

    def refill(self, raws: Sequence[torch.Tensor]) -> None:
        """Other contents, in the same tensors."""
        for mine, raw in zip(self.raws, raws, strict=True):
            mine.copy_(raw)

    def span(self, count: int, empty: bool) -> None:
        """`count` samples' calls for the parent's clock; `empty` leaves out the calls themselves,
        so that the difference is theirs."""
        for _ in range(count):
            _play(self.forgets, self._forget)
            if not empty:
                _play(self.graph, self._calls)
        torch.cuda.synchronize()

    def launched(self) -> list[str]:
        """The names of the GPU kernels that one call launches."""
        from torch.profiler import ProfilerActivity, profile

        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
            self.outputs = [self._call(0)]
            torch.cuda.synchronize()
        events = [event for event in seen.events() if event.device_type.name == "CUDA"]
        return sorted({event.name for event in events})

    def _samples(self, count: int, pokes: Iterator[tuple[int, int, int]]) -> list[float]:
        events = [(_Event(enable_timing=True), _Event(enable_timing=True)) for _ in range(count)]
        for start, end in events:
            self._poke(pokes)
            torch.cuda._sleep(HEAD_START)
            _play(self.forgets, self._forget)
            start.record()
            _play(self.graph, self._calls)
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 / self.calls for start, end in events]

    def _poke(self, pokes: Iterator[tuple[int, int, int]]) -> None:
        for call, (n, to, of) in enumerate(take(pokes, self.calls)):
            elements = self.elements[n][call % self.sets]
            elements[to : to + 1].copy_(elements[of : of + 1])

    def _forget(self) -> None:
        """Poison the results that the graph writes to, and clear the L2 cache."""
        for output in self.outputs:
            if output.is_floating_point():
                output.fill_(float("nan"))
        self.clear.zero_()

    def _calls(self) -> None:
        self.outputs = [self._call(i) for i in range(self.calls)]

    def _call(self, which: int) -> torch.Tensor:
        return self.kernel_fn(*self.inputs[which % self.sets], **self.options)

    def _peak_bytes(self) -> int:
        """What one call allocates at most, its result included."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self._call(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Work as a graph, or None where it cannot be captured (it synchronises, say)."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = _Graph()
        try:
            with torch.cuda.graph(graph):
                work()
        except RuntimeError:
            torch.cuda.synchronize()
            work()  # what was captured is not to be had
            return None
        return graph


class HostBench(CudaBench):
    """The same calls without a graph and by the host's clock: what a caller from Python waits for,
    each launch included, where many calls follow one another."""

    def _captured(self, work: Callable[[], None]) -> None:
        work()

    def _samples(self, count: int, pokes: Iterator[tuple[int, int, int]]) -> list[float]:
        taken = []
        for _ in range(count):
            self._poke(pokes)
            self._forget()
            torch.cuda.synchronize()
            start = _now_ns()
            self._calls()
            torch.cuda.synchronize()
            taken.append((_now_ns() - start) / 1e3 / self.calls)
        return taken


def _play(graph: torch.cuda.CUDAGraph | None, work: Callable[[], None]) -> None:
    if graph is None:
        work()
    else:
        graph.replay()


def _copies(raw: torch.Tensor, count: int, padding: int) -> torch.Tensor:
    """`[count, bytes]`: copies of a buffer, none of which begins in another's middle."""
    step = -(-(raw.numel() + padding) // ALIGNMENT) * ALIGNMENT
    room = torch.empty(count * step, dtype=torch.uint8, device="cuda")
    copies = room.as_strided((count, raw.numel()), (step, 1))
    return copies.copy_(raw)


def _elements(raws: torch.Tensor, meta: TensorMeta) -> list[torch.Tensor]:
    """The elements of a contiguous tensor in each copy of its buffer, in row-major order."""
    return [view(raw, meta).view(-1) for raw in raws]
