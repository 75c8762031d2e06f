"""Messages between the judge's processes: JSON, and tensors as anonymous memory.

A message is a length, a JSON object, and file descriptors of the buffers that it speaks of.
Nothing is ever unpickled: what a candidate's process sends can be wrong, not executed.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MAX_MESSAGE = 64 * 2**20  # bytes of JSON; a flood is refused, not stored
MAX_BUFFERS = 64  # descriptors in one message; the kernel's own limit is 253
HEADER = struct.Struct("!I")


class ChannelError(Exception):
    """The other side is gone, or sent what is no message."""


@dataclass(frozen=True)
class TensorMeta:
    """How a tensor lies in its buffer: sizes in elements, `nbytes` of the whole buffer."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> TensorMeta:
        shape, stride = (tuple(int(n) for n in data[k]) for k in ("shape", "stride"))
        return TensorMeta(
            str(data["dtype"]), shape, stride, int(data["offset"]), int(data["nbytes"])
        )


class Channel:
    """One end of a Unix socket that carries messages."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        body = json.dumps(message).encode()
        self.sock.settimeout(None)
        try:
            socket.send_fds(self.sock, [HEADER.pack(len(body))], fds)
            self.sock.sendall(body)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelError("the process is gone") from error

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The next message and its descriptors, which the caller closes.

        Raises TimeoutError after `timeout_s` without a whole one, ChannelError when none can come.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        self.sock.settimeout(timeout_s)
        try:
            head, fds, _, _ = socket.recv_fds(self.sock, HEADER.size, MAX_BUFFERS)
        except ConnectionResetError as error:
            raise ChannelError(str(error)) from error
        try:
            return self._object(head, end), tuple(fds)
        except (ChannelError, TimeoutError):
            close(fds)
            raise

    def _object(self, head: bytes, end: float | None) -> dict[str, Any]:
        try:
            head += self._exactly(HEADER.size - len(head), end)
            (length,) = HEADER.unpack(head)
            if length > MAX_MESSAGE:
                raise ChannelError(f"a message of {length} bytes, more than {MAX_MESSAGE}")
            message = json.loads(self._exactly(length, end))
        except (ConnectionResetError, ValueError, RecursionError) as error:
            raise ChannelError(str(error)) from error
        if not isinstance(message, dict):
            raise ChannelError("a message that is no object")
        return message

    def _exactly(self, count: int, end: float | None) -> bytes:
        parts = []
        while count:
            if end is not None:
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError
                self.sock.settimeout(left)
            part = self.sock.recv(min(count, 2**20))
            if not part:
                raise ChannelError("the process closed its end")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        self.sock.close()


def close(fds: Iterable[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)


def anonymous_memory(nbytes: int) -> int:
    """A descriptor of `nbytes` zeros that no path names and that dies with its last holder."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("autokernel", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, nbytes)
    return fd


def mapped(fd: int, nbytes: int) -> torch.Tensor:
    """The buffer behind `fd` as uint8 elements, shared with every other holder."""
    import torch

    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(fd, nbytes), dtype=torch.uint8)


def view(raw: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """The tensor that `meta` describes inside the bytes `raw`."""
    import torch

    dtype = getattr(torch, meta.dtype)
    typed = raw.view(dtype)
    return typed.as_strided(meta.shape, meta.stride, typed.storage_offset() + meta.offset)


def pack(tensor: torch.Tensor) -> tuple[TensorMeta, int]:
    """The values of `tensor`, contiguous, in new anonymous memory; its own strides are kept
    in the meta, where a contract check can see them."""
    import torch

    flat = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    nbytes = flat.numel() * flat.element_size()
    fd = anonymous_memory(nbytes)
    if nbytes:
        mapped(fd, nbytes).copy_(flat.view(-1).view(torch.uint8))
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorMeta(dtype, tuple(tensor.shape), tuple(tensor.stride()), 0, nbytes), fd


def snapshot(fd: int, meta: TensorMeta) -> torch.Tensor:
    """A private, contiguous copy of a packed tensor.

    The bytes are read, not mapped: the sender may still hold the memory, and must be able
    neither to change what is compared nor to shrink it under the reader.
    """
    import torch

    dtype = getattr(torch, meta.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ChannelError(f"no dtype called {meta.dtype!r}")
    result = torch.empty(meta.shape, dtype=dtype)
    if result.numel() == 0:
        return result
    # A numpy array is a buffer; its stubs say so from Python 3.12 on alone.
    target = memoryview(result.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(target):
        count = os.preadv(fd, [target[done : done + 2**30]], done)
        if count == 0:
            raise ChannelError(f"a buffer of {done} bytes where {len(target)} were announced")
        done += count
    return result
