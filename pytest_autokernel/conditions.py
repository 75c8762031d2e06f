"""What a callable in pytest's own process is timed under: a worker's processors, threads and way of
waiting, so that its rivals in their workers have nothing that it lacks.

Not covered: a worker's allocator, which keeps freed memory (subjects.py); glibc takes that setting
from a running process, but does not give it back.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

PARALLEL = 2**16  # elements that torch computes by all of its threads


@contextlib.contextmanager
def of_a_worker(cpus: Collection[int]) -> Iterator[None]:
    """As in a worker on these processors, until the end of the context."""
    threads, processors = torch.get_num_threads(), len(os.sched_getaffinity(0))
    with _placed(cpus), _asleep(processors + 1):
        torch.set_num_threads(len(cpus))
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _placed(cpus: Collection[int]) -> Iterator[None]:
    """All threads that there are, OpenMP's among them, on these processors; those that come and
    stay have this thread's afterwards."""
    ours, before = os.sched_getaffinity(0), {}
    try:
        for task in _tasks():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                before[task] = os.sched_getaffinity(task)
                os.sched_setaffinity(task, cpus)
        yield
    finally:
        for task in _tasks():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(task, before.get(task, ours))


def _tasks() -> list[int]:
    """The system's numbers of this process's threads."""
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


@contextlib.contextmanager
def _asleep(many: int) -> Iterator[None]:
    """OpenMP's threads sleep as soon as they wait, as those of a worker do (OMP_WAIT_POLICY, which
    is read when a process starts).

    A waiting thread of libgomp's, which is torch's, spins 300,000 times, but 100 times once there
    are more threads than processors (its manual, GOMP_SPINCOUNT). So there are: `many`, which do
    nothing. On two cores that others use too a softmax of 4 MB takes 8 ms without them, 0.6 ms with
    them (torch 2.13.0, 2026-11-22)."""
    there, over = threading.Event(), threading.Event()

    def be_many() -> None:
        try:
            torch.set_num_threads(many)
            torch.ones(PARALLEL, device="cpu").exp_()
        finally:
            there.set()
        over.wait()  # the team ends with this thread

    idle = threading.Thread(target=be_many, name="autokernel-idle", daemon=True)
    idle.start()
    there.wait()
    try:
        yield
    finally:
        over.set()
        idle.join()
