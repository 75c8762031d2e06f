"""What a call of a kernel does beside computing, seen from within its process while it runs:
which torch operators it dispatches, what it writes around the tensors that it allocates, and
what it leaves changed.

It reports and judges nothing (policy.py does). A candidate that fights it can blind it, and wins
little by that: its results are compared elsewhere. The torch functions used here are taken
before any candidate is loaded.
"""

from __future__ import annotations

import _thread
import random
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GUARD = 4096  # bytes on both sides of what a kernel allocates
POISON = 0xFF  # NaN in every floating-point format; -1 in integers

ALLOCATORS = frozenset(
    {
        "aten.empty",
        "aten.empty_like",
        "aten.empty_strided",
        "aten.empty_permuted",
        "aten.new_empty",
        "aten.new_empty_strided",
    }
)
# What starts another process, as sys.audit tells it. Not what `subprocess` starts, in whichever of
# these ways: compilers, Triton's own at a kernel's first call among them.
PROCESSES = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec"})

_empty = torch.empty
_profile = torch.autograd.profiler.profile
_get_numpy = torch.Tensor.numpy
_get_dlpack = torch.Tensor.__dlpack__


class Watch(TorchDispatchMode):
    """Active during one call of `kernel_fn`. `operators` are the torch operators that are no
    views, each with the kernel file's line that first led to it; what is allocated is poisoned, and
    has guard bands that `outside` looks at afterwards."""

    def __init__(self, kernel_path: str) -> None:
        super().__init__()
        self.kernel_path = kernel_path
        self.operators: dict[str, int | None] = {}
        self.guarded: list[tuple[torch.Tensor, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if name in ALLOCATORS:
            return self._with_guards(result)
        if not _is_view(func):
            self.note(name)
        return result

    def note(self, name: str) -> None:
        """Record an operator, and where in the kernel file it comes from."""
        if name not in self.operators:
            self.operators[name] = _line_in(self.kernel_path)

    def _with_guards(self, made: torch.Tensor) -> torch.Tensor:
        """A tensor like `made`, poisoned, in memory with guard bands around it."""
        if made.layout != torch.strided or made.numel() == 0 or made.is_pinned():
            return made
        itemsize = made.element_size()
        span = 1 + sum((n - 1) * s for n, s in zip(made.shape, made.stride(), strict=True))
        inner = -(-span * itemsize // 16) * 16
        raw = _empty(inner + 2 * GUARD, dtype=torch.uint8, device=made.device).fill_(POISON)
        self.guarded.append((raw, GUARD + span * itemsize))
        flat = raw[GUARD : GUARD + inner].view(made.dtype)
        return flat.as_strided(made.shape, made.stride(), flat.storage_offset())

    def outside(self) -> str | None:
        """What was written outside of the allocated tensors, in words."""
        for raw, end in self.guarded:
            for band, place in ((raw[:GUARD], "before"), (raw[end:], "after")):
                if not bool((band == POISON).all()):
                    touched = int((band != POISON).sum())
                    return f"{touched} bytes {place} a tensor that the kernel allocated"
        return None

    def __enter__(self) -> Watch:
        global _watching
        _watching = self
        super().__enter__()
        return self

    def __exit__(self, *about: object) -> None:
        global _watching
        _watching = None
        super().__exit__(*about)


class _InThread(TorchDispatchMode):
    """The same eyes in a thread that the candidate started: dispatch modes are per thread."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _watching and not _is_view(func):
            _watching.note(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


_watching: Watch | None = None
_libraries: list[str] = []  # of Python packages, that ctypes opened


def install() -> None:
    """Have what leads away from torch be seen: numpy, DLPack, later threads, other processes. Once,
    before a candidate is loaded."""
    run, start = threading.Thread.run, _thread.start_new_thread

    def run_watched(thread: threading.Thread) -> None:
        with _InThread():
            run(thread)

    def start_watched(function: Callable[..., object], *arguments: Any) -> int:
        def watched(*args: Any, **kwargs: Any) -> None:
            with _InThread():
                function(*args, **kwargs)

        return start(watched, *arguments)

    sys.addaudithook(_told_by_python)
    for owner, name, seen in (
        (torch.Tensor, "numpy", _noted("numpy", _get_numpy)),
        (torch.Tensor, "__dlpack__", _noted("dlpack", _get_dlpack)),
        (threading.Thread, "run", run_watched),
        (_thread, "start_new_thread", start_watched),
    ):
        setattr(owner, name, seen)


def _noted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        if _watching:
            _watching.note(name)
        return method(*args, **kwargs)

    return noted


def _told_by_python(event: str, arguments: tuple[Any, ...]) -> None:
    if event in PROCESSES and _watching and sys._getframe(1).f_globals is not vars(subprocess):
        _watching.note(event)
    if event == "ctypes.dlopen" and _is_of_a_package(path := str(arguments[0])):
        _libraries.append(path)


def _is_of_a_package(path: str) -> bool:
    """NVIDIA's left out, one of which compiles CUDA C++: what they run on a GPU is seen there."""
    return "-packages/" in path and "-packages/nvidia/" not in path


def dispatched(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What `work` gives, and the torch operators that compute on the way, as torch's profiler sees
    them: it is no dispatch mode, and a kernel that looks for one or turns it off finds none."""
    with _profile(use_kineto=False) as seen:
        made = work()
    return made, sorted({e.name.replace("::", ".") for e in seen.function_events if _computes(e)})


def _computes(event: Any) -> bool:
    """Whether an event is an operator that neither is a view nor consists of others."""
    namespace, _, name = event.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), name, None) if name else None
    if packet is None:
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    known = [one for one in overloads if torch._C._dispatch_has_kernel(one.name())]
    return not any(_is_view(one) or _is_composite(one) for one in known)


def _is_composite(func: Any) -> bool:
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _is_view(func: Any) -> bool:
    """Whether an operator only looks at its argument anew, as its schema says."""
    returns = func._schema.returns
    return bool(returns) and all(
        value.alias_info is not None and not value.alias_info.is_write for value in returns
    )


def _line_in(path: str) -> int | None:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == path:
            return frame.f_lineno
        frame = frame.f_back
    return None


def rehearse() -> None:
    """Watch something small, once: torch imports much at the first time, and what it replaces
    of its own then is no candidate's doing."""
    with Watch(""):
        torch.empty(1).clone()
    torch.get_rng_state()


STATE: dict[str, Callable[[], Any]] = {
    "the default dtype": torch.get_default_dtype,
    "the default device": torch.get_default_device,
    "grad mode": torch.is_grad_enabled,
    "torch's threads": torch.get_num_threads,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "the precision of fp32 products": torch.get_float32_matmul_precision,
    "tf32 in matrix products": lambda: torch.backends.cuda.matmul.allow_tf32,
    "fp16 sums in matrix products": lambda: (
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    ),
    "bf16 sums in matrix products": lambda: (
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    ),
    "tf32 in cuDNN": lambda: torch.backends.cudnn.allow_tf32,
    "cuDNN's benchmark mode": lambda: torch.backends.cudnn.benchmark,
    # As what GCC before 13 links into a shared object does when that is loaded.
    "flushing of subnormals (by -ffast-math or -Ofast?)": lambda: (
        float(torch.tensor(2.0**-140) * 1.0) == 0.0
    ),
    "torch's random generator": lambda: hash(torch.get_rng_state().numpy().tobytes()),
    "Python's random generator": lambda: hash(random.getstate()),
    "which libraries of other packages are open": lambda: tuple(_libraries),
    "the number of Python threads": lambda: (threading.active_count(), _thread._count()),
}
CUDA_STATE: dict[str, Callable[[], Any]] = {
    "the GPU's random generator": lambda: hash(torch.cuda.get_rng_state().cpu().numpy().tobytes()),
    "the current CUDA stream": lambda: torch.cuda.current_stream().cuda_stream,
    "the current CUDA device": torch.cuda.current_device,
}
# Namespaces whose functions a kernel has no business to replace.
NAMESPACES = (
    "torch",
    "torch.Tensor",
    "torch.cuda",
    "torch.cuda.Event",
    "torch.cuda.CUDAGraph",
    "torch.nn.functional",
    "torch.testing",
    "time",
    "os",
    "builtins",
    "triton",
    "triton.testing",
    "pytest_autokernel.audit",
    "pytest_autokernel.audit.Watch",
    "pytest_autokernel.channel",
    "pytest_autokernel.gpu_sampling",
    "pytest_autokernel.sampling",
    "pytest_autokernel.worker",
)


class State:
    """The process's global state at one moment."""

    def __init__(self, device: str) -> None:
        probes = STATE | (CUDA_STATE if device == "cuda" else {})
        self.values = {name: probe() for name, probe in probes.items()}
        self.functions = {name: _functions(name) for name in NAMESPACES}

    def changes(self, later: State) -> list[str]:
        """What `later` differs in, in words."""
        words = []
        for name, value in self.values.items():
            new = later.values[name]
            if new != value:
                shown = f": {value} -> {new}" if len(f"{value}{new}") < 60 else ""
                words.append(name + ("" if "generator" in name else shown))
        for name, before in self.functions.items():
            after = later.functions[name]
            words += [
                f"{name}.{attribute} was replaced"
                for attribute, function in before.items()
                if after.get(attribute) is not function
            ]
        return words


def _functions(namespace: str) -> dict[str, Any]:
    """The callables in a module or class that is loaded."""
    owner: Any = sys.modules.get(namespace)
    if owner is None:
        module, _, attribute = namespace.rpartition(".")
        owner = getattr(sys.modules.get(module), attribute, None)
    if owner is None:
        return {}
    return {name: value for name, value in list(vars(owner).items()) if callable(value)}
