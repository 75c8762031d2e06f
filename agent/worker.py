"""Who judges: a worker answers one question at a time, on a GPU that is its own for the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import pynvml

from .judge import Judge, PytestJudge
from .process import Processes, Standing

VISIBLE = "CUDA_VISIBLE_DEVICES"


class WorkerLost(Exception):
    """A worker is gone, with what it was at. Another one can be asked the same."""


class Worker(Protocol):
    """Judges kernels of one repository. Two threads use it: one asks for binaries, the other all
    else. `where` is its GPU, and its machine where that is another."""

    where: str

    def judge(self, kernel: str) -> Judge:
        """The judge of a kernel, by its path in the repository. Asked, it raises WorkerLost."""

    def close(self) -> None:
        """End all that it has started. May be called from another thread, and again."""


class Local:
    """Runs pytest in a work tree of its own, on the GPU that `gpu` is for CUDA_VISIBLE_DEVICES;
    with None, on what pytest finds."""

    def __init__(
        self, worktree: Path, scratch: Path, gpu: str | None = None, where: str = ""
    ) -> None:
        self._worktree, self._scratch, self.where = worktree, scratch, where
        self._processes = Processes({} if gpu is None else {VISIBLE: gpu})
        self._standing, self._compiling = (
            Standing(worktree, scratch / name, processes=self._processes)
            for name in ("standing.txt", "compiling.txt")
        )

    def judge(self, kernel: str) -> PytestJudge:
        return PytestJudge(
            self._worktree,
            kernel,
            self._scratch,
            self._standing,
            self._compiling,
            processes=self._processes,
        )

    def close(self) -> None:
        self._processes.close()


def gpus() -> dict[str, str]:
    """The GPUs that CUDA programs see here, by what CUDA_VISIBLE_DEVICES calls them, and their
    kinds, if known."""
    given = os.environ.get(VISIBLE)
    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        known = {
            _text(pynvml.nvmlDeviceGetUUID(handle)): _text(pynvml.nvmlDeviceGetName(handle))
            for handle in handles
        }
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # no driver, no GPU
        return {}
    if given is None:
        return known
    names = [name.strip() for name in given.split(",")]
    return {name: known.get(name, "") for name in names if name}


def _text(value: str | bytes) -> str:
    """Older NVML bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value
