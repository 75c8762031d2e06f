"""GPU memory that two processes share: allocated by one, mapped by the other (CUDA's legacy
inter-process handles), both through the driver's own interface.

Not torch's allocator: a handle opens the whole block that an address lies in, and a block of
torch's may hold an expected value beside an input. Here each buffer has blocks of its own.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The driver hands out memory in blocks of 2 MiB, and a handle opens a whole one:
# https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html, cuIpcGetMemHandle.
BLOCK = 2 * 2**20
KEPT = 64 * 2**20
HANDLE_BYTES = 64
LAZY_ENABLE_PEER_ACCESS = 1
OUT_OF_MEMORY = 2


class DeviceMemoryError(Exception):
    """The driver refused to allocate, to share or to map memory."""


class OutOfDeviceMemory(DeviceMemoryError):
    """The GPU has not so much memory to give, or not now."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class Buffer:
    """GPU memory: this process's own, or another's that is mapped here. To be closed by `close`;
    torch's views of it must be gone by then."""

    def __init__(self, address: int, mapped: bool) -> None:
        self.address, self.mapped = address, mapped

    @functools.cached_property
    def handle(self) -> str:
        """What another process maps this one's memory by."""
        handle = _Handle()
        _call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(self.address))
        return ctypes.string_at(ctypes.byref(handle), HANDLE_BYTES).hex()

    def raw(self, nbytes: int) -> torch.Tensor:
        """The first bytes of the memory as uint8 elements."""
        import torch

        interface = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }
        holder = type("Holder", (), {"__cuda_array_interface__": interface})()
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8, device="cuda")
        return torch.as_tensor(holder, device="cuda")

    def close(self) -> None:
        if self.address:
            free = "cuIpcCloseMemHandle" if self.mapped else "cuMemFree_v2"
            _call(free, ctypes.c_uint64(self.address))
            self.address = 0


def allocate(nbytes: int) -> Buffer:
    """New memory, in blocks of its own. torch must have initialised CUDA."""
    address = ctypes.c_uint64()
    size = -(-max(nbytes, 1) // BLOCK) * BLOCK
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
    return Buffer(address.value, mapped=False)


def opened(handle: str) -> Buffer:
    """Another process's buffer, mapped here."""
    data = _Handle.from_buffer_copy(bytes.fromhex(handle))
    address = ctypes.c_uint64()
    # The handle goes by value, as the driver's interface has it.
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), data, LAZY_ENABLE_PEER_ACCESS)
    return Buffer(address.value, mapped=True)


class Pool:
    """Buffers that are used again and never given back while both processes live, so that
    neither has to allocate or map for each call. For those of up to `KEPT` bytes."""

    def __init__(self) -> None:
        self._free: dict[int, list[Buffer]] = {}
        self._size: dict[Buffer, int] = {}

    def take(self, nbytes: int) -> Buffer:
        size = BLOCK << max(0, math.ceil(nbytes / BLOCK) - 1).bit_length()
        if size > KEPT:
            return allocate(nbytes)
        free = self._free.setdefault(size, [])
        buffer = free.pop() if free else allocate(size)
        self._size[buffer] = size
        return buffer

    @property
    def nbytes(self) -> int:
        """What it holds and has handed out, of those that it keeps."""
        free = sum(size * len(buffers) for size, buffers in self._free.items())
        return free + sum(self._size.values())

    def give(self, buffer: Buffer) -> None:
        size = self._size.pop(buffer, None)
        if size is None:
            buffer.close()
        else:
            self._free[size].append(buffer)


def can_share() -> bool:
    """Whether this machine's driver lets processes share GPU memory this way."""
    import torch

    if sys.platform != "linux" or torch.version.hip or not torch.cuda.is_available():
        return False
    torch.cuda.init()
    torch.zeros(1, device="cuda")  # makes the context current on this thread
    try:
        buffer = allocate(BLOCK)
        shared = bool(buffer.handle)
        buffer.close()
    except (DeviceMemoryError, OSError):
        return False
    return shared


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    code = _driver()[name](*arguments)
    if code:
        words = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(words))
        said = words.value.decode() if words.value else "unknown error"
        kind = OutOfDeviceMemory if code == OUT_OF_MEMORY else DeviceMemoryError
        raise kind(f"{name} failed with code {code}: {said}")
