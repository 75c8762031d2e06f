"""The candidate's own process: it loads one kernel file, runs it when asked, and hands back
raw data. Nothing that it says is a verdict.

A fork of the nursery (nursery.py), with an almost empty environment. The parent sets the time
limit and kills; this side confines itself, and sets the limits that a process sets itself.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_autokernel.channel import Channel, ChannelError, pack

if TYPE_CHECKING:
    import torch

    from pytest_autokernel.handover import Received, Receiver

Reply = tuple[dict[str, Any], tuple[int, ...]]

PAUSE_CYCLES = 2_000_000  # of the GPU before a call: about a millisecond
HELD_BYTES = 2 * 2**30  # of earlier results, at most


class Worker:
    """What runs a kernel: the callable, its inputs, and the bench of its timed calls.

    A callable that is given is the user's own, in the user's process: it is not audited."""

    def __init__(self, kernel_fn: Callable[..., Any] | None = None, device: str = "cpu") -> None:
        self.kernel_fn = kernel_fn or _nothing_loaded
        self.kernel_path = ""
        self.device = device
        self.audited = self.exact = False
        self.bench: Any = None
        self.receiver: Receiver | None = None
        self.received: Received | None = None
        self.held: list[torch.Tensor] = []

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
            "confine": self.confine,
            "load": self.load,
            "run": self.run,
            "held": self.first_held,
            "release": self.release,
            "prepare": self.prepare,
            "burst": self.burst,
            "span": self.span,
            "launched": self.launched,
            "compiled": self.compiled,
        }
        return handlers[message["do"]](message, fds)

    def confine(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Give up what a candidate must not reach; before anything else. `fds` is the leash."""
        from pytest_autokernel import nursery, sandbox, strays

        system = sandbox.Confinement(**message["system"])
        readable, writable = ([Path(p) for p in message[k]] for k in ("readable", "writable"))
        sandbox.confine(
            system,
            Path(message["folder"]),
            readable=readable,
            writable=writable,
            gpu=message["gpu"],
        )
        warded = system.landlock >= sandbox.SIGNALS_FROM_ABI
        if warded:
            strays.leave_warden(system, socket.socket(fileno=os.dup(fds[0])))
        nursery.die_with_parent()  # new credentials end that
        return {"warded": warded}, ()

    def load(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Set the limits, and only then run the kernel file; `changed` is the global state that
        it changed. With `exact` nobody looks but the tool that this process is run under: the
        audit's guard bands would hide from it what lies outside of a tensor."""
        _limit_memory(message["memory_bytes"])
        os.sched_setaffinity(0, message["cpus"])
        import torch

        from pytest_autokernel import audit

        torch.set_num_threads(len(message["cpus"]))
        self.device = message["device"]
        if self.device == "cuda":
            torch.zeros(1, device="cuda")
        self.kernel_path = message["path"]
        if message["baseline"]:
            from pytest_autokernel.ops import load_op

            op = load_op(message["op"], {message["op"]: Path(message["path"])})
            self.kernel_fn = op.baselines[message["baseline"]]
            return {"changed": []}, ()
        from pytest_autokernel.candidate import load

        if message["exact"]:
            self.exact = True
            self.kernel_fn = load(Path(message["path"]))
            return {"changed": []}, ()
        self.audited = True
        # By default cuBLAS may round partial sums to fp16 or bf16: a hybrid that leaves a product
        # to it would be wrong for some shapes (bf16, 1023 x 1023 x 1023) and not for others.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        audit.install()
        before = audit.State(self.device)
        self.kernel_fn = load(Path(message["path"]))
        return {"changed": before.changes(audit.State(self.device))}, ()

    def run(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """One call. `again` has it find other contents in the very tensors of the last call;
        `hold` keeps its result, so that the next ones have to lie elsewhere; `noise` has the GPU
        do other work at the same time."""
        if not message.get("again"):
            self._receive(message, fds)
        received = self.received
        assert received is not None
        if self.device == "cpu":
            return self._call(received, message)
        if message.get("noise"):
            _make_noise()
        _move_into_place(received)
        answer = self._call(received, message)
        if received.room is None:  # through host memory
            for source, place in zip(received.sources, received.places, strict=True):
                source.copy_(place)
        return answer

    def _call(self, received: Received, message: dict[str, Any]) -> Reply:
        if not self.audited:
            result = self.kernel_fn(*received.inputs, **message["options"])
            return self._returned(result, received, message)
        from pytest_autokernel.audit import State, Watch

        before = State(self.device)
        with Watch(self.kernel_path) as watch:
            result = self.kernel_fn(*received.inputs, **message["options"])
        reply, out = self._returned(result, received, message)
        reply["operators"] = list(watch.operators.items())
        reply["outside"] = watch.outside()
        reply["changed"] = before.changes(State(self.device))
        return reply, out

    def _returned(self, result: Any, received: Received, message: dict[str, Any]) -> Reply:
        aliases = shared_with(result, received.inputs, self.held)
        if message.get("hold"):
            kept = sum(t.numel() * t.element_size() for t in self.held)
            if kept < HELD_BYTES:
                self.held.append(result)
        return handed_back(result, aliases, received.room)

    def first_held(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """The first held result once more, as it is by now."""
        assert self.received is not None
        return handed_back(self.held[0], None, self.received.room)

    def release(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Let go of inputs and results."""
        self.held, self.received = [], None
        if self.receiver is not None:
            self.receiver.release()
        return {"ok": True}, ()

    def _receive(self, message: dict[str, Any], fds: Sequence[int]) -> Received:
        from pytest_autokernel.handover import Receiver

        self.release(message, fds)
        self.receiver = self.receiver or Receiver(self.exact)
        self.received = self.receiver.receive(message, fds, self.device)
        return self.received

    def prepare(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """A fresh layout of buffers for the timed calls."""
        from pytest_autokernel.gpu_sampling import CudaBench, HostBench
        from pytest_autokernel.sampling import CpuBench

        self.bench = None
        received = self._receive(message, fds)
        on_gpu = HostBench if message["host"] else CudaBench
        maker = on_gpu if self.device == "cuda" else CpuBench
        self.bench = maker(self.kernel_fn, received.sources, message)
        return self.bench.facts(), ()

    def burst(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Some samples in microseconds; `refill` puts other contents into the inputs first, and
        with `which` the last result on that set of inputs is handed back too."""
        assert self.received is not None
        if message.get("refill"):
            self.bench.refill(self.received.sources)
        samples = self.bench.samples(message["count"], message["seed"])
        if "which" not in message:
            return {"samples_us": samples}, ()
        reply, out = self._timed_result(message["which"])
        return {"samples_us": samples, **reply}, out

    def span(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Timed samples for the parent's clock."""
        self.bench.span(message["count"], message["empty"])
        return {"ok": True}, ()

    def launched(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """The GPU kernels that a call launches, what those in CUDA C++ take, and its result. On the
        CPU the torch operators that compute in it, and a result beside the one before."""
        from pytest_autokernel import cuda_driver

        earlier = [] if self.device == "cuda" else [self.bench.result(0)[0]]
        cuda_driver.launched.clear()
        names = self.bench.launched()
        resources = [kernel.resources(shared) for kernel, shared in cuda_driver.launched.items()]
        reply, out = self._timed_result(0, earlier)
        return {"launched": names, "resources": resources, **reply}, out

    def compiled(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """What the kernel would do, on a GPU that this process does not see."""
        from pytest_autokernel import offline

        return offline.compiled(self.kernel_fn, message), ()

    def _timed_result(self, which: int, earlier: Sequence[torch.Tensor] = ()) -> Reply:
        assert self.received is not None
        output, inputs = self.bench.result(which)
        return handed_back(output, shared_with(output, inputs, earlier), self.received.room)


def shared_with(result: Any, inputs: Sequence[Any], earlier: Sequence[Any]) -> str | None:
    """Whose memory a result lies in, where that is not its own."""
    import torch

    if type(result) is not torch.Tensor:
        raise TypeError(f"kernel_fn returned a {type(result).__name__}, expected a torch.Tensor")
    if result.__dict__:
        raise TypeError(f"kernel_fn returned a tensor with attributes: {list(result.__dict__)}")
    if not result.numel():
        return None
    at = result.untyped_storage().data_ptr()
    for others, whose in ((inputs, "an input"), (earlier, "an earlier result")):
        if any(t.numel() and t.untyped_storage().data_ptr() == at for t in others):
            return whose
    return None


def handed_back(result: torch.Tensor, aliases: str | None, room: torch.Tensor | None) -> Reply:
    """A result as data. It is copied where it is now, on the default stream and with nothing
    waited for: work that is not done by then is missing in the copy."""
    import torch

    if room is None or result.device.type != "cuda":
        meta, fd = pack(result)
        out: tuple[int, ...] = (fd,)
    else:
        out, meta = (), _copied(result.detach(), room)
        torch.cuda.synchronize()
    return {"result": meta.to_json(), "device": result.device.type, "aliases": aliases}, out


def _copied(result: torch.Tensor, room: torch.Tensor) -> Any:
    import torch

    from pytest_autokernel.channel import TensorMeta

    nbytes = result.numel() * result.element_size()
    if 0 < nbytes <= room.numel():
        target = room[:nbytes].view(result.dtype).view(result.shape)
        with torch.cuda.stream(torch.cuda.default_stream()):
            target.copy_(result)
    dtype = str(result.dtype).removeprefix("torch.")
    return TensorMeta(dtype, tuple(result.shape), tuple(result.stride()), 0, nbytes)


def _move_into_place(received: Received) -> None:
    """Bring the inputs' contents to where the kernel finds them, by the GPU itself and late: a
    kernel on another stream, which waits for nothing, reads poison."""
    import torch

    from pytest_autokernel.handover import POISON

    for place in received.places:
        place.fill_(POISON)
    torch.cuda._sleep(PAUSE_CYCLES)
    for source, place in zip(received.sources, received.places, strict=True):
        place.copy_(source, non_blocking=True)


def _make_noise() -> None:
    """Keep a part of the GPU busy for some hundred microseconds, on a stream of its own."""
    import torch

    with torch.cuda.stream(torch.cuda.Stream()):
        side = torch.ones(2048, 2048, device="cuda", dtype=torch.bfloat16)
        for _ in range(8):
            side = side @ side


def describe(error: BaseException, kernel_path: str) -> dict[str, Any]:
    """An exception as data: its type, its words, and its innermost line in the kernel file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == kernel_path
    ]
    named = getattr(error, "line", None)  # a CompileError knows the line of the C++
    if isinstance(named, int) and getattr(error, "file", None) == kernel_path:
        lines.append(named)
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
