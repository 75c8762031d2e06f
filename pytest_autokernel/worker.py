"""The candidate's own process: it loads one kernel file, runs it when asked, and hands back
raw data. Nothing that it says is a verdict.

Started as `python -I -m pytest_autokernel.worker FD` with an almost empty environment. The
parent sets the time limit and kills; this side sets the limits that a process sets itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_autokernel.channel import Channel, ChannelError, TensorMeta, mapped, pack, view

PR_SET_PDEATHSIG = 1


Reply = tuple[dict[str, Any], tuple[int, ...]]


class Worker:
    """What runs a kernel: the callable, and the bench of its timed calls."""

    def __init__(self, kernel_fn: Callable[..., Any] | None = None, device: str = "cpu") -> None:
        self.kernel_fn = kernel_fn or _nothing_loaded
        self.kernel_path = ""
        self.device = device
        self.bench: Any = None

    def serve(self, channel: Channel) -> None:
        """Answer requests until the parent is gone."""
        while True:
            try:
                message, fds = channel.receive()
            except ChannelError:
                return
            try:
                reply, out = self.handle(message, fds)
            except BaseException as error:  # noqa: BLE001 - a candidate may raise anything at all, SystemExit too
                reply, out = {"error": describe(error, self.kernel_path)}, ()
            for fd in fds:
                os.close(fd)
            channel.send(reply, out)
            for fd in out:
                os.close(fd)

    def handle(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        handlers = {
            "load": self.load,
            "run": self.run,
            "prepare": self.prepare,
            "burst": self.burst,
        }
        return handlers[message["do"]](message, fds)

    def load(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Set the limits, import torch, and only then run the kernel file."""
        _limit_memory(message["memory_bytes"])
        os.sched_setaffinity(0, message["cpus"])
        import torch

        from pytest_autokernel import sampling  # noqa: F401 - takes its clocks before the kernel file runs

        torch.set_num_threads(len(message["cpus"]))
        self.device = message["device"]
        if self.device == "cuda":
            torch.cuda.init()
        self.kernel_path = message["path"]
        if message["baseline"]:
            from pytest_autokernel.ops import load_op

            op = load_op(message["op"], {message["op"]: Path(message["path"])})
            self.kernel_fn = op.baselines[message["baseline"]]
        else:
            from pytest_autokernel.candidate import load

            self.kernel_fn = load(Path(message["path"]))
        return {"ok": True}, ()

    def run(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """One call on fresh inputs. Their buffers go back as the call left them."""
        metas, raws = _buffers(message, fds)
        # On the CPU the kernel works in the shared buffers themselves; a GPU has its own.
        local = [raw.to(self.device) for raw in raws]
        inputs = [view(raw, meta) for raw, meta in zip(local, metas, strict=True)]
        reply = returned(self.kernel_fn(*inputs, **message["options"]), inputs)
        if self.device != "cpu":
            for raw, back in zip(raws, local, strict=True):
                raw.copy_(back)
        return reply

    def prepare(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """A fresh layout of buffers for the timed calls; see sampling.py."""
        from pytest_autokernel import sampling

        metas, raws = _buffers(message, fds)
        self.bench = None
        maker = sampling.CudaBench if self.device == "cuda" else sampling.CpuBench
        self.bench = maker(self.kernel_fn, raws, metas, message)
        return self.bench.facts(), ()

    def burst(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Some samples in microseconds; with `result`, also what the last timed call left."""
        samples = self.bench.samples(message["count"])
        if not message.get("result"):
            return {"samples_us": samples}, ()
        reply, out = returned(self.bench.output, self.bench.inputs)
        return {"samples_us": samples, **reply}, out


def returned(result: Any, inputs: Sequence[Any]) -> Reply:
    """A call's result as data, with what can be seen of it here alone."""
    import torch

    if type(result) is not torch.Tensor:
        raise TypeError(f"kernel_fn returned a {type(result).__name__}, expected a torch.Tensor")
    if result.device.type == "cuda":
        torch.cuda.synchronize()
    starts = {t.untyped_storage().data_ptr() for t in inputs if t.numel()}
    aliases = result.numel() > 0 and result.untyped_storage().data_ptr() in starts
    meta, fd = pack(result)
    return {"result": meta.to_json(), "device": result.device.type, "aliases": aliases}, (fd,)


def _buffers(message: dict[str, Any], fds: Sequence[int]) -> tuple[list[TensorMeta], list[Any]]:
    metas = [TensorMeta.from_json(m) for m in message["inputs"]]
    return metas, [mapped(fd, meta.nbytes) for fd, meta in zip(fds, metas, strict=True)]


def describe(error: BaseException, kernel_path: str) -> dict[str, Any]:
    """An exception as data: its type, its words, and its innermost line in the kernel file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == kernel_path
    ]
    return {
        "type": type(error).__name__,
        "message": str(error)[:2000],
        "line": lines[-1] if lines else None,
    }


def _nothing_loaded(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no kernel is loaded")


def _limit_memory(nbytes: int) -> None:
    """Bound what the process may allocate, and make it the first that the system would kill.

    RLIMIT_DATA counts writable private memory alone, so that the address space which CUDA
    reserves does not count."""
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Worker().serve(Channel(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
