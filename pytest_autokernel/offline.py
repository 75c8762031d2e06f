"""What a Triton kernel would launch for some inputs, compiled and not launched: no GPU is needed,
and what was compiled is in Triton's cache by then. For the candidate's own process; what it says
is the candidate's word, by which the judge may skip it and never pass it.

Not covered: a kernel that must run to know what to launch (autotuning, values read back).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# Where a line of code came from: the path of the worker's own copy is among it.
PLACES = re.compile(r"^\s*\.(loc|file)\b.*\n|^\s*\.section\s+\.debug(?s:.*)", re.MULTILINE)
METADATA = ("num_warps", "num_ctas", "shared", "cluster_dims", "launch_pdl")


class Offline:
    """As much of a driver as compiling asks for (triton/backends/driver.py)."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Trace(TorchDispatchMode):
    """Everything that a call does, as lines of text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.launches = 0
        self._seen: list[torch.Tensor] = []  # alive, so that no other has its storage's number

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        words = ", ".join(map(self.describe, [*args, *(kwargs or {}).values(), result]))
        self.lines.append(f"{func}: {words}")
        return result

    def launched(self, kernel: Any, grid: Any, bound: Mapping[str, Any]) -> None:
        metadata = [getattr(kernel.metadata, name, None) for name in METADATA]
        arguments = {name: self.describe(value) for name, value in bound.items()}
        self.lines.append(f"{PLACES.sub('', kernel.asm['ptx'])} {metadata} {grid} {arguments}")
        self.launches += 1

    def describe(self, value: Any) -> str:
        """A value in words that say of a tensor where and how it lies, and which it is."""
        if not isinstance(value, torch.Tensor):
            return repr(value)
        self._seen.append(value)
        storages = dict.fromkeys(t.untyped_storage()._cdata for t in self._seen)
        which = list(storages).index(value.untyped_storage()._cdata)
        lies = tuple(value.shape), value.stride(), value.storage_offset()
        return f"{value.dtype} {lies} in {which}"


def digest(
    kernel_fn: Callable[..., Any], calls: Sequence[Mapping[str, Any]], target: Sequence[Any]
) -> str:
    """A digest of all that calls on inputs of these dtypes, shapes and strides do. Equal ones do
    the same. Raises ValueError where a call launches nothing, and whatever `kernel_fn` raises on
    tensors without data."""
    driver.set_active(Offline(GPUTarget(*target)))
    found = hashlib.sha256()
    for call in calls:
        inputs = [without_data(meta) for meta in call["inputs"]]
        trace = Trace()
        for tensor in inputs:
            trace.describe(tensor)
        run = JITFunction.run
        JITFunction.run = _compiling(run, trace)
        try:
            with trace:
                result = kernel_fn(*inputs, **call["options"])
        finally:
            JITFunction.run = run
        if not trace.launches:
            raise ValueError("the call launches no kernel of Triton's")
        found.update("\n".join([*trace.lines, trace.describe(result)]).encode())
    return found.hexdigest()


def without_data(meta: Mapping[str, Any]) -> torch.Tensor:
    """A tensor that has a place for nothing; its address counts as aligned."""
    dtype = getattr(torch, meta["dtype"])
    return torch.empty_strided(meta["shape"], meta["stride"], dtype=dtype, device="meta")


def _compiling(run: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    """In place of JITFunction.run: compile, and say so."""

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        own = {name: value for name, value in kwargs.items() if name in self.signature.parameters}
        bound = self.signature.bind(*args, **own)
        bound.apply_defaults()
        sizes = grid(bound.arguments) if callable(grid) else grid
        trace.launched(kernel, tuple(sizes), bound.arguments)
        return kernel

    return compile_only
