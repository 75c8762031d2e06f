"""What a device reaches: bandwidth, the rate of matrix products, and the shortest time that its
events can tell. For the comparison's process, which no candidate can slow down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

KINDS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def measure_ceilings(device: str, nbytes: int, dtype: str, cpus: Sequence[int]) -> dict[str, float]:
    """What this device reaches: copy and read bandwidth in GB/s on a working set of `nbytes`,
    and the rate of a large matrix product of `dtype` in TFLOP/s.

    A CPU is measured with all threads and with one, and the better counts: two threads on a
    busy machine wait for each other."""
    source = torch.randn(max(nbytes // 8, 1024), device=device)
    target = torch.empty_like(source)
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=KINDS[dtype]) for _ in range(2))
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
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
    torch.backends.cuda.matmul.allow_tf32 = False
    return best


def _best_seconds(work: Callable[[], object], device: str) -> float:
    """The fastest of repeated runs within 0.2 s, and of five at least."""
    best, spent, runs = float("inf"), 0.0, 0
    work()
    while spent < 0.2 or runs < 5:
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            seconds = float(start.elapsed_time(end)) / 1e3
        else:
            begin = time.perf_counter_ns()
            work()
            seconds = (time.perf_counter_ns() - begin) / 1e9
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return best


def event_floor_us(clear_bytes: int) -> float:
    """What two events around nothing read, after a clear of the L2 cache: the least that a sample
    can show."""
    clear = torch.empty(clear_bytes, dtype=torch.uint8, device="cuda")
    readings: list[float] = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        clear.zero_()
        start.record()
        end.record()
        torch.cuda.synchronize()
        readings.append(float(start.elapsed_time(end)) * 1e3)
    return statistics.median(readings)
