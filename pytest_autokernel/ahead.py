"""Compiles what a kernel's cases will need while it is being judged, in processes beside it that
see no GPU, so that its own process finds it in its cache.

It learns of cases that anybody can know before: an op's sizes, and those around the integers of the
kernel's source. Of what is drawn it hears when it is called. Whatever goes wrong here goes wrong
again where it counts, or does not matter.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from pytest_autokernel.binaries import OfflineSubject, call_of, compiles, target_of
from pytest_autokernel.candidate import KernelFile
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case, Op
from pytest_autokernel.verdict import CandidateError

AT_A_TIME = 4  # cases of one request: each has the time limit of one
# Processors that a process of these leaves to others, and how many there are at most.
PROCESSORS, MOST = 4, 4


def begin(judge: Judge, kernel: KernelFile, op: Op, cases: Iterable[Case]) -> Ahead | None:
    """For the GPU that is there, where there are processors to spare."""
    gpu = target_of(judge.hardware.gpu)
    processes = min(len(os.sched_getaffinity(0)) // PROCESSORS, MOST)
    if gpu is None or not processes or not compiles(kernel, gpu):
        return None
    return Ahead(judge, kernel, op, cases, gpu, processes)


class Ahead:
    """So many processes at it, until there is nothing left or it is closed."""

    def __init__(
        self,
        judge: Judge,
        kernel: KernelFile,
        op: Op,
        cases: Iterable[Case],
        gpu: Mapping[str, Any],
        processes: int,
    ) -> None:
        self._closed = False
        judge.nursery(interpreted=False).start()  # it ends with the thread that starts it
        self._subjects = [OfflineSubject(judge, kernel) for _ in range(processes)]
        self._pool = ThreadPoolExecutor(processes)
        queue = [*{repr(call_of(op, case)): case for case in cases}.values()]
        self._done = [
            self._pool.submit(self._compile, subject, op, queue[number::processes], gpu)
            for number, subject in enumerate(self._subjects)
        ]

    def _compile(
        self, subject: OfflineSubject, op: Op, cases: Sequence[Case], gpu: Mapping[str, Any]
    ) -> None:
        with contextlib.closing(subject):
            for first in range(0, len(cases), AT_A_TIME):
                if self._closed:
                    return
                with contextlib.suppress(CandidateError):
                    subject.compiled(op, cases[first : first + AT_A_TIME], gpu)

    def close(self) -> None:
        """End it wherever it is: nothing may be busy beside what is timed."""
        self._closed = True
        while wait(self._done, timeout=0.02).not_done:
            for subject in self._subjects:  # again and again: one may just be about to start
                subject.close()
        self._pool.shutdown()
