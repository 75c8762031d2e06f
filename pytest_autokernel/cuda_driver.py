"""Launching CUDA kernels by the driver, and describing tensors to the bulk copy engine.

A launch is one call on torch's current stream, so that graphs, events and the profiler see it as
any other.

Not covered: structs as arguments; launch attributes (clusters are said in the source).
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

Dim3 = int | tuple[int, ...]

# What cuda.h calls CU_FUNC_ATTRIBUTE_*.
ATTRIBUTES = {"shared_bytes": 1, "local_bytes": 3, "registers": 4}
MAX_DYNAMIC_SHARED = 8
PLAIN_SHARED = 48 * 1024  # bytes of shared memory that a block may have unasked, in all
# CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion; a CUtensorMap's bytes.
MAP_TYPES = {"torch.float16": 6, "torch.float32": 7, "torch.bfloat16": 9}
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
L2_256B = 3
MAP_BYTES, MAP_ALIGNMENT = 128, 64


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_: ClassVar = [
        *((f"{of}_{axis}", ctypes.c_uint) for of in ("grid", "block") for axis in "xyz"),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


class CudaKernel:
    """A kernel, called to launch it on torch's current stream."""

    def __init__(self, name: str, kernel: Any) -> None:
        self.name = name
        self.count: int = kernel.num_arguments
        self.handle = int(kernel.handle)
        self._kernel = kernel  # keeps the code loaded
        self._most_shared: dict[int, int] = {}  # by device

    def __call__(self, grid: Dim3, block: Dim3, *arguments: Any, shared: int = 0) -> None:
        """Launch `grid` blocks of `block` threads with `shared` bytes of dynamic shared memory.

        Of the arguments a tensor is its data's address; an int goes to any integer or pointer, a
        float to a `float`, a `tensor_map` to a `const __grid_constant__ CUtensorMap`. Raises
        TypeError for a wrong number of arguments, RuntimeError for what the driver refuses.
        """
        _of_size(self, grid, block, shared)(*arguments)

    def prepared(self, grid: Dim3, block: Dim3, *last: Any, shared: int = 0) -> Launch:
        """The same launch with its `last` arguments set, to be kept and called with the others:
        what is set takes no time of a call. Raises as a call does."""
        return Launch(self, (grid, block, shared), last)

    def allow(self, shared: int, device: int) -> None:
        """Let launches on the device have so much dynamic shared memory. Raises RuntimeError."""
        if device not in self._most_shared:
            self._most_shared[device] = PLAIN_SHARED - self._attribute("shared_bytes", device)
        if shared > self._most_shared[device]:
            _call("cuKernelSetAttribute", MAX_DYNAMIC_SHARED, shared, self.handle, device)
            self._most_shared[device] = shared

    def resources(self, shared: int) -> dict[str, Any]:
        """Its name, registers and bytes of local memory (spills, and arrays that are not in
        registers) per thread, and bytes of shared memory per block, `shared` of them dynamic."""
        import torch

        device = torch.cuda.current_device()
        found = {name: self._attribute(name, device) for name in ATTRIBUTES}
        return {"kernel": self.name, **found, "shared_bytes": found["shared_bytes"] + shared}

    def _attribute(self, name: str, device: int) -> int:
        value = ctypes.c_int()
        of = (ctypes.byref(value), ATTRIBUTES[name], self.handle, device)
        _call("cuKernelGetAttribute", *of)
        return value.value


# Kernels that were launched, and with how much dynamic shared memory the last time.
launched: dict[CudaKernel, int] = {}


class Launch:
    """A kernel's launch of one size, in memory that the driver reads: a call writes there what it
    is called with, and torch's current stream."""

    def __init__(self, kernel: CudaKernel, size: tuple[Dim3, Dim3, int], last: Sequence[Any]):
        import torch

        self._kernel, self._size, self._shared = kernel, size, size[2]
        self._open = kernel.count - len(last)
        if self._open < 0:
            raise self._miscounted(0)
        # As Triton asks for them: the public ways make objects, which takes microseconds.
        own: Any = torch._C
        self._get_device: Callable[[], int] = own._cuda_getDevice
        self._get_stream: Callable[[int], int] = own._cuda_getCurrentRawStream
        self._values = (ctypes.c_uint64 * kernel.count)()
        start = ctypes.addressof(self._values)
        end = start + 8 * kernel.count
        self._pointers = (ctypes.c_void_p * kernel.count)(*range(start, end, 8))
        self._config = LaunchConfig(*_xyz(size[0]), *_xyz(size[1]), self._shared)
        config, pointers = map(ctypes.addressof, (self._config, self._pointers))
        self._arguments = config, kernel.handle, pointers, None
        self._launch = _driver().cuLaunchKernelEx
        self._lock = threading.Lock()  # a launch is not to find another thread's values
        self._kept = last  # a tensor map is read at each launch
        self._write(self._open, last)

    def __call__(self, *arguments: Any) -> None:
        """Launch with these as the first arguments. Raises as CudaKernel's call does."""
        if len(arguments) != self._open:
            raise self._miscounted(len(arguments))
        device = self._get_device()
        with self._lock:
            self._write(0, arguments)
            if self._shared:
                self._kernel.allow(self._shared, device)
            self._config.stream = self._get_stream(device)
            result = self._launch(*self._arguments)
        if result:
            grid, block, shared = self._size
            raise RuntimeError(
                f"launching {self._kernel.name} failed: {_error_name(result)}: "
                f"grid={grid}, block={block}, shared={shared}"
            )
        launched[self._kernel] = self._shared

    def _write(self, i: int, arguments: Iterable[Any]) -> None:
        values = self._values
        for argument in arguments:
            kind = type(argument)
            if kind is int:
                values[i] = argument
            elif kind is float:
                struct.pack_into("f", values, 8 * i, argument)
            elif kind is TensorMap:
                self._pointers[i] = argument.address
            else:
                values[i] = argument.data_ptr()
            i += 1

    def _miscounted(self, given: int) -> TypeError:
        name, count = self._kernel.name, self._kernel.count
        return TypeError(f"{name} takes {count} arguments, got {given + count - self._open}")


@functools.lru_cache(maxsize=1024)
def _of_size(kernel: CudaKernel, grid: Dim3, block: Dim3, shared: int) -> Launch:
    return Launch(kernel, (grid, block, shared), ())


def _xyz(size: Dim3) -> tuple[int, int, int]:
    x, y, z, *_ = (size, 1, 1) if isinstance(size, int) else (*size, 1, 1)
    return x, y, z


class TensorMap:
    """A CUtensorMap, by which the bulk copy engine finds a tensor's tiles (`tensor_map`)."""

    def __init__(self) -> None:
        self._room = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
        self.address = -(-ctypes.addressof(self._room) // MAP_ALIGNMENT) * MAP_ALIGNMENT


def tensor_map(tensor: torch.Tensor, box: tuple[int, ...], swizzle: int = 128) -> TensorMap:
    """A descriptor of `tensor` as it lies, for copies of `box` elements (outermost dim first);
    what is outside reads as zero.

    The tensor is fp16, bf16 or fp32, of 1 to 5 dims, at an address and with strides that are
    multiples of 16 bytes, the last stride 1. `swizzle` is 0, 32, 64 or 128 bytes, which the box's
    rows do not exceed. It does not keep the tensor alive. Raises RuntimeError for what the driver
    refuses. (CUDA driver API, cuTensorMapEncodeTiled)
    """
    maps = tensor_maps(tuple(tensor.shape), tensor.stride(), tensor.dtype, box, swizzle)
    return maps(tensor.data_ptr())


@functools.lru_cache(maxsize=1024)
def tensor_maps(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    box: tuple[int, ...],
    swizzle: int = 128,
) -> Callable[[int], TensorMap]:
    """`tensor_map` of all tensors that lie like this, by their address. A descriptor is a function
    of these alone, so that the last ones are kept."""
    return functools.lru_cache(maxsize=32)(
        functools.partial(_encoded, shape, strides, dtype, box, swizzle)
    )


def _encoded(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    box: tuple[int, ...],
    swizzle: int,
    address: int,
) -> TensorMap:
    made, rank = TensorMap(), len(shape)
    sizes, narrow = ctypes.c_uint64 * rank, ctypes.c_uint32 * rank
    # The innermost stride is no part of it; that of a dim of one element may be anything.
    bytes_apart = [s * dtype.itemsize if n > 1 else 16 for n, s in zip(shape, strides, strict=True)]
    _call(
        *("cuTensorMapEncodeTiled", made.address, MAP_TYPES[str(dtype)], rank, address),
        *(sizes(*reversed(shape)), (ctypes.c_uint64 * (rank - 1))(*reversed(bytes_apart[:-1]))),
        *(narrow(*reversed(box)), narrow(*[1] * rank), 0, SWIZZLES[swizzle], L2_256B, 0),
    )
    return made


@functools.cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    pointer, number, integer = ctypes.c_void_p, ctypes.c_uint, ctypes.c_int
    kinds: dict[str, list[Any]] = {
        "cuLaunchKernelEx": [pointer] * 4,  # addresses: a third faster than objects
        "cuKernelSetAttribute": [integer, integer, pointer, integer],
        "cuKernelGetAttribute": [pointer, integer, pointer, integer],
        "cuTensorMapEncodeTiled": [pointer, integer, number, *[pointer] * 5, *[integer] * 4],
        "cuGetErrorName": [integer, pointer],
    }
    for name, arguments in kinds.items():
        getattr(driver, name).argtypes = arguments
    return driver


def _call(function: str, *arguments: Any) -> None:
    """Raises RuntimeError with the driver's name for what went wrong."""
    if result := getattr(_driver(), function)(*arguments):
        raise RuntimeError(f"{function}{arguments} failed: {_error_name(result)}")


def _error_name(result: int) -> str:
    name = ctypes.c_char_p()
    _driver().cuGetErrorName(result, ctypes.byref(name))
    return (name.value or b"an unknown error").decode()
