"""Which kernels are the same where they are timed, so that none is timed twice."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pytest_autokernel.candidate import KernelFile
from pytest_autokernel.gpu import Device
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case, Op
from pytest_autokernel.operands import TORCH_DTYPES
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import CandidateError

DIGEST = re.compile(r"[0-9a-f]{64}")
Target = tuple[str, int, int]  # triton.backends.compiler.GPUTarget's


class OfflineSubject(WorkerSubject):
    """A Triton kernel in a worker that sees no GPU, and so has no part in anybody's timing."""

    def __init__(self, judge: Judge, kernel: KernelFile) -> None:
        super().__init__(judge, kernel, "cpu")
        self.interpreted = False


@dataclass(frozen=True)
class WithoutData:
    """`op.Draw` of tensors that have a shape alone."""

    dtype: torch.dtype

    def normal(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def integers(self, *shape: int, low: int, high: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def between(self, low: float, high: float) -> float:
        return low

    def below(self, stop: int) -> int:
        return 0


def target_of(device: Device | None) -> Target | None:
    """What Triton compiles for on this GPU; None on any that is not NVIDIA's."""
    digits = device.capability.replace(".", "") if device else ""
    return ("cuda", int(digits), 32) if digits.isdecimal() else None


def binary(
    judge: Judge, kernel: KernelFile, op: Op, cases: Sequence[Case], target: Target | None
) -> str | None:
    """A digest of what a Triton kernel does in these cases: equal ones are equally fast. None where
    it cannot be known beforehand. What was compiled is kept for the kernel's later processes."""
    if kernel.backend != "triton" or target is None:
        return None
    with contextlib.closing(OfflineSubject(judge, kernel)) as subject:
        message = {"do": "digest", "target": target, "calls": [_call(op, case) for case in cases]}
        try:
            found = subject.ask(message)[0].get("digest")
        except CandidateError:  # no reason to refuse it: on a GPU it may well run
            return None
    return found if isinstance(found, str) and DIGEST.fullmatch(found) else None


def _call(op: Op, case: Case) -> dict[str, object]:
    variant = op.variants[case.variant]
    inputs = (variant.inputs or op.inputs)(WithoutData(TORCH_DTYPES[case.dtype]), case.dims)
    return {
        "options": dict(variant.options),
        "inputs": [
            {
                "dtype": str(t.dtype).removeprefix("torch."),
                "shape": list(t.shape),
                "stride": list(t.stride()),
            }
            for t in inputs
        ],
    }
