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
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

Dim3 = int | tuple[int, ...]

# What cuda.h calls CU_FUNC_ATTRIBUTE_*.
ATTRIBUTES = {"shared_bytes": 1, "local_bytes": 3, "registers": 4}
MAX_DYNAMIC_SHARED = 8
PLAIN_SHARED = 48 * 1024  # bytes of dynamic shared memory that a launch may have unasked
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
        import torch

        self.name = name
        self._torch: Any = torch._C
        self._driver = _driver()
        self._kernel = kernel  # keeps the code loaded
        self._handle = int(kernel.handle)
        count = kernel.num_arguments
        self._values = (ctypes.c_uint64 * count)()
        start = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))
        self._config = LaunchConfig()
        self._size: tuple[Dim3, Dim3, int] | None = None  # what it says: seldom another one
        self._most_shared: dict[int, int] = {}  # by device
        self._lock = threading.Lock()  # a launch is not to find another thread's values

    def __call__(self, grid: Dim3, block: Dim3, *arguments: Any, shared: int = 0) -> None:
        """Launch `grid` blocks of `block` threads with `shared` bytes of dynamic shared memory.

        Of the arguments a tensor is its data's address; an int goes to any integer or pointer, a
        float to a `float`, a `tensor_map` to a `const __grid_constant__ CUtensorMap`. Raises
        TypeError for a wrong number of arguments, RuntimeError for what the driver refuses.
        """
        values, config = self._values, self._config
        if len(arguments) != len(values):
            raise TypeError(f"{self.name} takes {len(values)} arguments, got {len(arguments)}")
        # As Triton's launcher asks for it: the public way makes objects, which takes microseconds.
        device = self._torch._cuda_getDevice()
        with self._lock:
            for i, argument in enumerate(arguments):
                kind = type(argument)
                if kind is int:
                    values[i] = argument
                elif kind is float:
                    struct.pack_into("f", values, 8 * i, argument)
                elif kind is TensorMap:
                    self._pointers[i] = argument.address
                else:
                    values[i] = argument.data_ptr()
            if (grid, block, shared) != self._size:
                self._resize(grid, block, shared)
            if shared > self._most_shared.get(device, PLAIN_SHARED):
                _call("cuKernelSetAttribute", MAX_DYNAMIC_SHARED, shared, self._handle, device)
                self._most_shared[device] = shared
            config.stream = self._torch._cuda_getCurrentRawStream(device)
            if result := self._driver.cuLaunchKernelEx(config, self._handle, self._pointers, None):
                raise RuntimeError(
                    f"launching {self.name} failed: {_error_name(result)}: "
                    f"grid={grid}, block={block}, shared={shared}"
                )
        launched[self] = shared

    def _resize(self, grid: Dim3, block: Dim3, shared: int) -> None:
        for of, size in (("grid", grid), ("block", block)):
            x, y, z, *_ = (size, 1, 1) if isinstance(size, int) else (*size, 1, 1)
            for axis, length in zip("xyz", (x, y, z), strict=True):
                setattr(self._config, f"{of}_{axis}", length)
        self._config.shared = shared
        self._size = grid, block, shared

    def resources(self, shared: int) -> dict[str, Any]:
        """Its name, registers and bytes of local memory (spills, and arrays that are not in
        registers) per thread, and bytes of shared memory per block, `shared` of them dynamic."""
        import torch

        found: dict[str, Any] = {"kernel": self.name}
        value, device = ctypes.c_int(), torch.cuda.current_device()
        for name, attribute in ATTRIBUTES.items():
            _call("cuKernelGetAttribute", ctypes.byref(value), attribute, self._handle, device)
            found[name] = value.value
        return {**found, "shared_bytes": found["shared_bytes"] + shared}


# Kernels that were launched, and with how much dynamic shared memory the last time.
launched: dict[CudaKernel, int] = {}


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
    return _tensor_map(
        tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, box, swizzle
    )


@functools.lru_cache(maxsize=1024)
def _tensor_map(
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    box: tuple[int, ...],
    swizzle: int,
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
        "cuLaunchKernelEx": [ctypes.POINTER(LaunchConfig), pointer, pointer, pointer],
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
