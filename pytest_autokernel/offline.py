"""What a kernel would do for some inputs, compiled and not run: no GPU is needed, and what was
compiled is in the kernel's cache by then. For the candidate's own process, which is asked for
nothing else. What it says is the candidate's word, by which the judge may skip it and never pass
it.

Here is what Triton launches; offline_libraries.py has C++ and CUDA C++.

Not covered: a kernel that must run to know what to launch (autotuning, values read back).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_autokernel import elf

# Where a line of code came from: the path of the worker's own copy is among it.
PLACES = re.compile(r"^\s*\.(loc|file)\b.*\n|^\s*\.section\s+\.debug(?s:.*)", re.MULTILINE)
METADATA = ("num_warps", "num_ctas", "shared", "cluster_dims", "launch_pdl")


class Unfit(Exception):
    """A launch that the GPU would refuse, and that `kernel_fn` has no answer to."""


class Follower(Protocol):
    """Learns what calls do."""

    resources: list[elf.Resources]

    def follow(self, kernel_fn: Callable[..., Any], call: Mapping[str, Any]) -> None:
        """One call. Raises Unfit; ValueError where a call launches nothing, or cannot be known
        without running it; whatever `kernel_fn` raises on tensors without data."""

    def found(self) -> Mapping[str, Any]:
        """What binaries.py makes a digest of."""


def compiled(kernel_fn: Callable[..., Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """What calls on inputs of these dtypes, shapes and strides would do, and what their kernels
    take; `unfit` has the first call that the GPU would refuse, by its number, and why."""
    gpu, unfit = message["gpu"], None
    if gpu is not None:
        _pretend(gpu)
    follower: Follower
    if message["backend"] == "triton":
        follower = Launches(gpu)
    else:
        from pytest_autokernel.offline_libraries import Libraries

        follower = Libraries(gpu)
    for number, call in enumerate(message["calls"]):
        try:
            follower.follow(kernel_fn, call)
        except Unfit as error:
            unfit = [number, str(error)]
            break
    taken = [dict(one) for n, one in enumerate(follower.resources)
             if one not in follower.resources[:n]]  # fmt: skip
    return {**({} if unfit else follower.found()), "resources": taken, "unfit": unfit}


def _pretend(gpu: Mapping[str, Any]) -> None:
    """Have torch say of the current GPU, and that tensors lie there, what kernels ask before they
    launch. What a tensor's `device` is cannot be changed: binaries.py looks for who asks that."""
    major, minor = divmod(gpu["capability"], 10)
    about = SimpleNamespace(
        major=major,
        minor=minor,
        multi_processor_count=gpu["sms"],
        shared_memory_per_block_optin=gpu["shared_bytes"],
    )
    functions: Mapping[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "get_device_capability": lambda *_: (major, minor),
        "get_device_properties": lambda *_: about,
    }
    for name, function in functions.items():
        setattr(torch.cuda, name, function)
    torch.Tensor.is_cuda = True


class Offline:
    """As much of a driver as compiling asks for (triton/backends/driver.py)."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
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
        if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a TensorDescriptor
            return repr({f.name: self.describe(getattr(value, f.name))
                         for f in dataclasses.fields(value)})  # fmt: skip
        if not isinstance(value, torch.Tensor):
            return repr(value)
        self._seen.append(value)
        storages = dict.fromkeys(t.untyped_storage()._cdata for t in self._seen)
        which = list(storages).index(value.untyped_storage()._cdata)
        lies = tuple(value.shape), value.stride(), value.storage_offset()
        return f"{value.dtype} {lies} in {which}"


class Launches:
    """Triton's kernels, as its JIT compiles them for the GPU. Equal digests do the same."""

    def __init__(self, gpu: Mapping[str, Any]) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        self._capability, self._most_shared = gpu["capability"], gpu["shared_bytes"]
        driver.set_active(Offline(GPUTarget("cuda", self._capability, 32)))
        self._digest = hashlib.sha256()
        self.resources: list[elf.Resources] = []

    def follow(self, kernel_fn: Callable[..., Any], call: Mapping[str, Any]) -> None:
        from triton.runtime.errors import OutOfResources
        from triton.runtime.jit import JITFunction

        inputs = [without_data(meta) for meta in call["inputs"]]
        trace = Trace()
        for tensor in inputs:
            trace.describe(tensor)
        run = JITFunction.run
        JITFunction.run = self._compiling(run, trace)
        try:
            with trace:
                result = kernel_fn(*inputs, **call["options"])
        except OutOfResources as error:
            raise Unfit(f"raised OutOfResources: {error}") from error
        finally:
            JITFunction.run = run
        if not trace.launches:
            raise ValueError("the call launches no kernel of Triton's")
        self._digest.update("\n".join([*trace.lines, trace.describe(result)]).encode())

    def found(self) -> Mapping[str, Any]:
        return {"digest": self._digest.hexdigest()}

    def _compiling(self, run: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
        """In place of JITFunction.run: compile, and say so."""

        def compile_only(jit: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            kernel = run(jit, *args, grid=grid, warmup=True, **kwargs)
            own = {
                name: value for name, value in kwargs.items() if name in jit.signature.parameters
            }
            bound = jit.signature.bind(*args, **own)
            bound.apply_defaults()
            sizes = grid(bound.arguments) if callable(grid) else grid
            trace.launched(kernel, tuple(sizes), bound.arguments)
            self._take(kernel)
            return kernel

        return compile_only

    def _take(self, kernel: Any) -> None:
        """Note what a compiled kernel takes; refuse it as Triton does where it would load it."""
        from triton.runtime.errors import OutOfResources

        name, shared = kernel.metadata.name, kernel.metadata.shared
        of = elf.resources(kernel.asm["cubin"], self._capability)[name]
        self.resources.append({**of, "shared_bytes": shared})
        if self._most_shared is not None and shared > self._most_shared:
            raise OutOfResources(shared, self._most_shared, "shared memory")


def without_data(meta: Mapping[str, Any]) -> torch.Tensor:
    """A tensor that has a place for nothing; its address counts as aligned."""
    dtype = getattr(torch, meta["dtype"])
    return torch.empty_strided(meta["shape"], meta["stride"], dtype=dtype, device="meta")
