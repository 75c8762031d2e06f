"""Which kernels are the same where they are timed, so that none is timed twice, and what they take
of a GPU: known by compiling them alone.

Triton's kernels are compared by all that a call does (offline.py). C++ and CUDA C++ are compared by
what the compiler makes of them (elf.py says which bytes), together with the Python around it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pytest_autokernel.candidate import KernelFile
from pytest_autokernel.gpu import Device
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case, Op
from pytest_autokernel.operands import TORCH_DTYPES, made_by
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import CandidateError, Outcome, Verdict
from pytest_autokernel.witness import resources_of

DIGEST = re.compile(r"[0-9a-f]{64}")
COMPILERS = {"compile_cpp", "compile_cuda"}


class OfflineSubject(WorkerSubject):
    """A kernel in a worker that sees no GPU, and so has no part in anybody's timing."""

    def __init__(self, judge: Judge, kernel: KernelFile) -> None:
        super().__init__(judge, kernel, "cpu")
        self.interpreted = False

    def compiled(
        self, op: Op, cases: Sequence[Case], gpu: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """What the kernel would do in these cases, by its own word (offline.py). What was compiled
        is kept for the kernel's later processes. Raises CandidateError."""
        calls = [call_of(op, case) for case in cases]
        message = {"do": "compiled", "backend": self.kernel.backend, "gpu": gpu, "calls": calls}
        return self.ask(message)[0]


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


@dataclass(frozen=True)
class Binary:
    """What compiling a kernel tells: a digest of what it does in its timed cases, equal ones being
    equally fast; what its GPU kernels take; and, where the GPU would refuse to launch one, that as
    an outcome. All by the kernel's own process: a reason to skip it, never to pass it."""

    digest: str | None = None
    resources: Sequence[Mapping[str, Any]] = ()
    unfit: Outcome | None = None


def target_of(device: Device | None) -> Mapping[str, Any] | None:
    """What to compile for on this GPU; None on any that is not NVIDIA's."""
    digits = device.capability.replace(".", "") if device else ""
    if device is None or not digits.isdecimal():
        return None
    return {
        "capability": int(digits),
        "sms": device.sms,
        "shared_bytes": device.shared_bytes,
    }


def binary(
    judge: Judge, kernel: KernelFile, op: Op, cases: Sequence[Case], gpu: Mapping[str, Any] | None
) -> Binary:
    """Compile a kernel as it is in these cases. What cannot be known so is left out."""
    if kernel.backend != "cpp" and not compiles(kernel, gpu):
        return Binary()
    with contextlib.closing(OfflineSubject(judge, kernel)) as subject:
        try:
            reply = subject.compiled(op, cases, gpu)
        except CandidateError:  # no reason to refuse it: where it is run it may well work
            return Binary()
    found = _digest(kernel.text, reply)
    return Binary(found, resources_of(reply.get("resources")), _unfit(reply.get("unfit"), cases))


def compiles(kernel: KernelFile, gpu: Mapping[str, Any] | None) -> bool:
    """Whether there is code for this GPU that can be compiled without it."""
    on_gpu = gpu is not None and kernel.backend in ("triton", "cuda")
    return on_gpu and not _asks_where(kernel.text)


def _digest(text: str, reply: Mapping[str, Any]) -> str | None:
    match reply:
        case {"digest": str(found)} if DIGEST.fullmatch(found):
            return found
        case {"built": [*built]}:
            pairs = [(str(source), str(code)) for source, code in built]
            python = wrapper(text, {source for source, _ in pairs})
            return hashlib.sha256(repr([python, [c for _, c in pairs]]).encode()).hexdigest()
    return None


def _unfit(told: object, cases: Sequence[Case]) -> Outcome | None:
    match told:
        case [int(number), str(reason)] if 0 <= number < len(cases):
            return Outcome(Verdict.FAIL, cases[number], 0, reason=reason[:500])
    return None


def wrapper(text: str, compiled: set[str]) -> str:
    """A kernel file's Python, without those sources that were compiled and that go to a compiler
    and nowhere else. Other words and comments of C++ count."""
    tree = ast.parse(text)
    given = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in COMPILERS
        for argument in node.args[:1]
    }
    elsewhere = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and id(node) not in given
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if len(names) == len(node.targets) and not names & elsewhere:
                node.value.value = "" if node.value.value in compiled else node.value.value
    return ast.dump(tree)


def _asks_where(text: str) -> bool:
    """Whether a kernel may do something else on tensors that are on no GPU: `x.is_cuda` is answered
    as on one, and these are not."""
    attributes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    return any(
        node.attr in ("is_cpu", "is_meta")
        or (node.attr == "type" and getattr(node.value, "attr", None) == "device")
        or (node.attr == "type" and getattr(node.value, "id", None) == "device")
        for node in attributes
    )


def call_of(op: Op, case: Case) -> dict[str, object]:
    inputs = made_by(WithoutData(TORCH_DTYPES[case.dtype]), op, case)
    return {
        "options": dict(op.variants[case.variant].options),
        "inputs": [
            {
                "dtype": str(t.dtype).removeprefix("torch."),
                "shape": list(t.shape),
                "stride": list(t.stride()),
            }
            for t in inputs
        ],
    }
