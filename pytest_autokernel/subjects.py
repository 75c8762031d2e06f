"""What is judged: a kernel file in its worker, or a trusted callable in this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pytest_autokernel import policy
from pytest_autokernel.candidate import KernelFile
from pytest_autokernel.channel import TensorMeta, close
from pytest_autokernel.machine import lack
from pytest_autokernel.op import Op
from pytest_autokernel.plan import TargetName
from pytest_autokernel.process import Cell, Died, Process, TimedOut
from pytest_autokernel.verdict import CandidateError, JudgeError, Verdict
from pytest_autokernel.worker import Worker

if TYPE_CHECKING:
    from pytest_autokernel.judge import Judge

# What torch and Triton say to those who ask for a GPU where there is none.
NO_GPU = ("not compiled with CUDA", "no NVIDIA driver", "0 active drivers", "No CUDA GPUs")
MOST_OF_OTHERS = 0.5  # of a GPU's memory, in the way of a kernel that runs out of it
START_S = 30.0  # a worker's start, torch's import included, on a busy machine

Place = Literal["cuda", "cpu"]


class Subject(Protocol):
    """Something that computes an op: a kernel file in its worker, or a trusted callable here."""

    device: Place
    interpreted: bool
    exact: bool  # whether each input is an allocation of its own, of just its size
    target: TargetName
    integers: frozenset[int]
    supports: frozenset[str]

    @property
    def file(self) -> KernelFile | None:
        """The kernel file, where there is one."""

    def ask(
        self, message: dict[str, Any], fds: tuple[int, ...] = ()
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        """A request to whatever runs the kernel (worker.py has them). Raises CandidateError."""

    def fresh(self) -> Subject:
        """The same kernel in a process that has run nothing yet."""

    def start(self) -> None: ...

    def load(self) -> None: ...

    def release(self) -> None:
        """Let go of a case's inputs, whose memory is about to be another's."""

    def close(self) -> None: ...


class WorkerSubject:
    """A kernel file, or one of an op's baselines, in its worker. The worker is started at the
    first request, and afresh after it died or was killed."""

    exact = False

    def __init__(
        self,
        judge: Judge,
        kernel: KernelFile,
        device: Place | None = None,
        baseline: str | None = None,
    ) -> None:
        self.judge = judge
        self.kernel = kernel
        self.baseline = baseline
        self.supports = kernel.supports
        self.integers = kernel.integers
        on_gpu = judge.hardware.gpu is not None and kernel.backend != "cpp"
        self.device: Place = device or ("cuda" if on_gpu else "cpu")
        self.interpreted = kernel.backend == "triton" and self.device == "cpu"
        self.unable = lack(kernel.backend, self.device)
        self.target: TargetName = "interpreter" if self.interpreted else self.device
        self._process: Process | None = None
        self._comparison: Process | None = None  # whose memory the process maps

    @property
    def file(self) -> KernelFile:
        return self.kernel

    def fresh(self) -> WorkerSubject:
        return WorkerSubject(self.judge, self.kernel, self.device, self.baseline)

    def ask(
        self, message: dict[str, Any], fds: tuple[int, ...] = ()
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        served = self.judge.comparison is self._comparison
        if self._process is None or not self._process.alive or not served:
            self.start()
            try:
                self.load()
            except BaseException:  # the next to ask is to hear the same reason
                self.close()
                raise
        return self._ask(message, fds, self.timeout_s)

    @property
    def timeout_s(self) -> float:
        """For one request, in seconds."""
        return self.judge.settings.timeout_s

    def start(self) -> None:
        """Start the process; `load` must follow. Not from a thread that ends before the process
        is to end: Linux kills the children of a thread (PR_SET_PDEATHSIG in worker.py)."""
        self.close()
        folder = Path(tempfile.mkdtemp(prefix="worker-", dir=self.judge.folder))
        copy = folder / self.kernel.path.name
        copy.write_text(self.kernel.text, encoding="utf-8")
        cache = self.judge.compiled(self.kernel.sha256)
        self._folder, self._copy = folder, copy
        self._cell = self.judge.cell(folder, cache, gpu=self.device == "cuda")
        environment = worker_environment(folder, cache)
        if self.baseline:
            environment |= baseline_environment(cache)
        self._comparison = self.judge.comparison
        self._process = self._begun(environment, folder, self._cell)

    def _begun(self, env: dict[str, str], folder: Path, cell: Cell | None) -> Process:
        return self.judge.nursery(self.interpreted).fork(env, folder, cell)

    def load(self) -> None:
        """Have the process run the kernel file."""
        settings = self.judge.settings
        imports = () if self.baseline else self.kernel.imports
        if foreign := policy.foreign_imports(imports, settings.allow):
            raise CandidateError(
                Verdict.FAIL,
                f"imports {', '.join(foreign)}: a kernel computes by itself, with torch and triton "
                f"alone; --autokernel-allow {foreign[0]} accepts it as a hybrid",
            )
        message = {
            "do": "load",
            "path": str(self._copy),
            "op": self.kernel.op,
            "baseline": self.baseline,
            "device": self.device,
            "exact": self.exact,
            "memory_bytes": settings.memory_bytes,
            "cpus": list(settings.cpus),
        }
        reply, _ = self._ask(message, (), self.timeout_s + START_S)
        if changed := reply.get("changed"):
            self.close()
            raise CandidateError(
                Verdict.FAIL, f"global state: loading the file changed {words_of(changed)}"
            )

    def release(self) -> None:
        if self._process is not None and self._process.alive:
            with contextlib.suppress(CandidateError):  # it died after its last answer
                self._ask({"do": "release"}, (), self.timeout_s)

    def _ask(
        self, message: dict[str, Any], fds: tuple[int, ...], timeout_s: float
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        assert self._process is not None
        try:
            reply, out = self._process.ask(message, fds, timeout_s)
        except TimedOut as error:
            raise CandidateError(Verdict.TIMEOUT, f"the kernel's process {error}") from None
        except Died as error:
            raise CandidateError(Verdict.CRASH, f"the kernel's process {error}") from None
        if "error" in reply:
            if self.device == "cuda":
                self.close()  # an error may have ruined the CUDA context for all that follows
            close(out)
            words = self._words(reply["error"])
            self._excuse(words)
            raise CandidateError(Verdict.FAIL, words)
        return reply, out

    def _excuse(self, words: str) -> None:
        """No verdict on a kernel that found no GPU memory where others hold much of it. (A baseline
        that finds none is left out.)"""
        if self.device == "cuda" and not self.baseline and "out of memory" in words:
            others = self.judge.others_memory
            if others > MOST_OF_OTHERS:
                held = f"other processes hold {others:.0%} of the GPU's memory"
                raise JudgeError(f"{held}; judge where it is free. The kernel {words}")

    def _words(self, error: Any) -> str:
        if not isinstance(error, dict):
            return "raised an error that it cannot tell"
        place = f" ({self.kernel.path.name}:{error['line']})" if error.get("line") else ""
        message = str(error.get("message")).replace(str(self._copy), str(self.kernel.path))
        if self.interpreted and any(words in message for words in NO_GPU):
            place += ": Triton is interpreted here, on CPU tensors; ask for a GPU where x.is_cuda"
        return f"raised {error.get('type')}: {message}{place}"

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()
            shutil.rmtree(self._folder, ignore_errors=True)


class LocalSubject:
    """A callable from a user's own test: trusted, and run in this process. From `start` to `close`
    this process is as a worker is, for what is timed beside one."""

    interpreted = exact = False
    integers: frozenset[int] = frozenset()
    file = None

    def __init__(self, judge: Judge, fn: Callable[..., Any], supports: frozenset[str]) -> None:
        self.device: Place = "cuda" if judge.hardware.gpu else "cpu"
        self.target: TargetName = self.device
        self.supports = supports
        self._worker = Worker(fn, self.device)
        self._cpus, self._conditions = judge.settings.cpus, contextlib.ExitStack()

    def fresh(self) -> LocalSubject:
        return self

    def release(self) -> None:
        self._worker.release({}, ())

    def ask(
        self, message: dict[str, Any], fds: tuple[int, ...] = ()
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        return self._worker.handle(message, fds)

    def start(self) -> None:
        from pytest_autokernel.conditions import of_a_worker

        self.close()
        self._conditions.enter_context(of_a_worker(self._cpus))

    def load(self) -> None:
        """Nothing to load."""

    def close(self) -> None:
        self._conditions.close()


def nursery_environment(interpreted: bool) -> dict[str, str]:
    """The whole environment of a nursery, and so of its workers: no secret of the user's can be
    in it."""
    kept = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "CXX")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {
        "LANG": "C.UTF-8",
        # A contender's idle threads sleep; spinning ones would slow the one whose turn it is.
        "OMP_WAIT_POLICY": "passive",
        # Freed memory stays with the process, as on a GPU; else each timed call on the CPU
        # pays for fresh pages (19 ms for 64 MB where the copy itself takes 4).
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**36),
    }
    return env | ({"TRITON_INTERPRET": "1"} if interpreted else {})


def worker_environment(folder: Path, cache: Path) -> dict[str, str]:
    """What a worker has beside that: places to write, all of them its own."""
    return {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "AUTOKERNEL_CACHE_DIR": str(cache / "compiled"),
    }


def baseline_environment(cache: Path) -> dict[str, str]:
    """What a library's or torch.compile's process has beside that."""
    import torch

    # Else FlagGems runs a program of each vendor's to find out.
    vendor = {"GEMS_VENDOR": "nvidia"} if torch.version.cuda else {}
    return {
        **vendor,
        # Inductor compiles in this very process, whose limits and sandbox are then all there is.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # What they found out by trying, for the next fresh process of theirs.
        "FLAGGEMS_CACHE_DIR": str(cache / "flag_gems"),
        "QUACK_HOME": str(cache / "quack"),
    }


@dataclass(frozen=True)
class Answer:
    """A worker's reply to a call, with the parts that are passed on in the form that they must
    have; all of it is the worker's own word but for the values."""

    result: dict[str, Any]
    device: str
    aliases: str | None
    operators: list[tuple[str, Any]]
    outside: str | None
    changed: list[str]
    fds: tuple[int, ...]

    @staticmethod
    def of(reply: dict[str, Any], out: tuple[int, ...]) -> Answer:
        """Raises CandidateError for a reply that is none."""
        try:
            meta = TensorMeta.from_json(reply["result"])
            if len(out) > 1:
                raise ValueError(f"{len(out)} buffers")
            return Answer(
                meta.to_json(),
                str(reply["device"]),
                _text(reply["aliases"]),
                [(str(name)[:200], line) for name, line in reply.get("operators", ())],
                _text(reply.get("outside")),
                [str(change)[:200] for change in reply.get("changed", ())],
                out,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            close(out)
            reason = f"returned no well-formed result: {error!r}"
            raise CandidateError(Verdict.FAIL, reason) from None

    def message(self) -> dict[str, Any]:
        """What the comparison is told of it."""
        return {"result": self.result, "device": self.device, "aliases": self.aliases}

    def fault(self, op: Op, kernel: KernelFile | None, allowed: Sequence[str]) -> str | None:
        """What the call did that no kernel may, whatever its values."""
        if self.outside:
            return f"write outside: {self.outside}"
        if self.changed:
            return f"global state: the call changed {words_of(self.changed)}"
        name = kernel.path.name if kernel else ""
        return policy.refusal(self.operators, op.library, allowed, name)


def words_of(changes: Sequence[object]) -> str:
    return "; ".join(str(change)[:200] for change in changes[:3])


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:200]
