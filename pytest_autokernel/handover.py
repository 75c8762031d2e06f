"""A call's inputs on their way from the comparison to the worker: memory that the comparison
owns and the worker maps.

On the CPU the kernel works in that memory itself. On a GPU there are three buffers to it: a
source, the place where the kernel finds its inputs, and one for the result; the contents are
moved into place by the GPU just before the call (worker.py says why). Where a driver does not
share GPU memory, all of it goes through host memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pytest_autokernel import device_memory
from pytest_autokernel.channel import (
    ChannelError,
    TensorMeta,
    anonymous_memory,
    mapped,
    snapshot,
    view,
)
from pytest_autokernel.op import Tensors

POISON = 0xFF  # NaN in every floating-point format: in guard bands, and where nothing is yet
Message = tuple[dict[str, Any], tuple[int, ...]]


class Host:
    """Inputs in anonymous host memory, which the other side may write."""

    def __init__(self, metas: Sequence[TensorMeta]) -> None:
        self.metas = metas
        self.fds = tuple(anonymous_memory(meta.nbytes) for meta in metas)
        self.places = [mapped(fd, meta.nbytes) for fd, meta in zip(self.fds, metas, strict=True)]

    def message(self) -> Message:
        """What the worker is told, and the descriptors that go with it, which are given away."""
        return {}, self.fds

    def fill(self, contents: Sequence[torch.Tensor]) -> None:
        for place, content in zip(self.places, contents, strict=True):
            place.copy_(content)

    def result(self, meta: TensorMeta, fds: Sequence[int]) -> torch.Tensor:
        """A private copy of what the call returned; the same again until `spoil`."""
        if not fds:
            raise ChannelError("no buffer")
        return snapshot(fds[0], meta)

    def spoil(self) -> None:
        """Nothing to do: each result comes in memory of its own."""

    def close(self) -> None:
        """Nothing to do: the memory goes with its last holder."""


class OnGpu:
    """Inputs and room for `result_bytes` of result in GPU memory that two processes share."""

    def __init__(
        self, pool: device_memory.Pool, metas: Sequence[TensorMeta], result_bytes: int
    ) -> None:
        self.metas, self._pool, self._room_bytes = metas, pool, result_bytes
        sizes = [meta.nbytes for meta in metas]
        sizes += [*sizes, result_bytes]
        self._buffers: list[device_memory.Buffer] = []
        try:
            for nbytes in sizes:
                self._buffers.append(pool.take(nbytes))
        except device_memory.DeviceMemoryError:
            self._give_back()
            raise
        raws = [buffer.raw(n) for buffer, n in zip(self._buffers, sizes, strict=True)]
        self._sources, self.places = raws[: len(metas)], raws[len(metas) : -1]
        self._room = raws[-1].fill_(POISON)
        for place in self.places:
            place.fill_(POISON)

    def message(self) -> Message:
        handles = [buffer.handle for buffer in self._buffers]
        torch.cuda.synchronize()
        return {"shared": handles, "room_bytes": self._room_bytes}, ()

    def fill(self, contents: Sequence[torch.Tensor]) -> None:
        for source, content in zip(self._sources, contents, strict=True):
            source.copy_(content)
        torch.cuda.synchronize()

    def result(self, meta: TensorMeta, fds: Sequence[int]) -> torch.Tensor:
        dtype = getattr(torch, meta.dtype)
        nbytes = math.prod(meta.shape) * dtype.itemsize
        return self._room[:nbytes].view(dtype).reshape(meta.shape).clone()

    def spoil(self) -> None:
        """Have the next result find nothing of this one."""
        self._room.fill_(POISON)
        torch.cuda.synchronize()

    def close(self) -> None:
        torch.cuda.synchronize()
        self._sources, self.places, self._room = [], [], torch.empty(0)
        self._give_back()

    def _give_back(self) -> None:
        for buffer in self._buffers:
            self._pool.give(buffer)
        self._buffers = []


@dataclass
class Received:
    """A call's inputs on the worker's side: `inputs` are what the kernel gets. They lie in
    `places`, which `sources` are moved to; `room`, on a shared GPU, takes the result."""

    inputs: Tensors
    sources: list[torch.Tensor]
    places: list[torch.Tensor]
    room: torch.Tensor | None = None


class Receiver:
    """The worker's side. It keeps the buffers of the comparison's pool mapped. With `exact` an
    input's place on a GPU has the size of its elements, and no guard bands around them."""

    def __init__(self, exact: bool = False) -> None:
        self._exact = exact
        self._kept: dict[str, device_memory.Buffer] = {}
        self._passing: list[device_memory.Buffer] = []

    def receive(self, message: dict[str, Any], fds: Sequence[int], device: str) -> Received:
        """Map what the judge handed over."""
        metas = [TensorMeta.from_json(m) for m in message["inputs"]]
        room = None
        if handles := message.get("shared"):
            sizes = [meta.nbytes for meta in metas] * 2 + [message["room_bytes"]]
            raws = [self._mapped(h, n).raw(n) for h, n in zip(handles, sizes, strict=True)]
            sources, places, room = raws[: len(metas)], raws[len(metas) : -1], raws[-1]
        else:
            sources = [mapped(fd, meta.nbytes) for fd, meta in zip(fds, metas, strict=True)]
            if self._exact and device != "cpu":
                bare = [_bare(source, meta) for source, meta in zip(sources, metas, strict=True)]
                sources, metas = [source for source, _ in bare], [meta for _, meta in bare]
            places = sources
            if device != "cpu":
                places = [torch.full_like(source, POISON, device=device) for source in sources]
        # By `data` the inputs do not count, as torch's version, how often the judge wrote to them:
        # other kernels write to a tensor, and do not tell either.
        inputs = tuple(view(place.data, meta) for place, meta in zip(places, metas, strict=True))
        return Received(inputs, sources, places, room)

    def release(self) -> None:
        """Let go of the buffers that are given back; a kernel that kept a pointer to one has no
        more claim to it."""
        if self._passing:
            torch.cuda.synchronize()
        for buffer in self._passing:
            buffer.close()
        self._passing = []

    def _mapped(self, handle: str, nbytes: int) -> device_memory.Buffer:
        if handle in self._kept:
            return self._kept[handle]
        buffer = device_memory.opened(handle)
        if nbytes <= device_memory.KEPT:
            self._kept[handle] = buffer
        else:
            self._passing.append(buffer)
        return buffer


def _bare(source: torch.Tensor, meta: TensorMeta) -> tuple[torch.Tensor, TensorMeta]:
    """The part of a buffer from the first to the last element, and the tensor in it."""
    itemsize: int = getattr(torch, meta.dtype).itemsize
    span = 1 + sum((n - 1) * step for n, step in zip(meta.shape, meta.stride, strict=True))
    nbytes = span * itemsize if math.prod(meta.shape) else 0
    start = meta.offset * itemsize
    return source[start : start + nbytes], replace(meta, offset=0, nbytes=nbytes)
