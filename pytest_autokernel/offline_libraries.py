"""What C++ and CUDA C++ a kernel has compiled for some inputs; none of it is run.

The compilers run as ever, and what they make is hashed; a library's functions and kernels are stood
in for by objects that do nothing. What a call does besides is in the kernel file's Python, which
binaries.py compares: so nothing may hang on what is not known here, and where it does there is no
answer (a function's result, where a tensor lies but for 16 bytes).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pytest_autokernel import compile as compiler
from pytest_autokernel import elf
from pytest_autokernel.offline import Unfit, without_data

ALIGNMENT = 16  # bytes, that the buffers of timed calls have at least


class TooMuchShared(RuntimeError):
    """In place of the driver's error, which is a RuntimeError too."""


class Address:
    """Of a tensor without memory."""

    def __mod__(self, number: int) -> int:
        if ALIGNMENT % number:
            raise ValueError(f"an address modulo {number} is not known without running it")
        return 0


class Function:
    """One of a C++ library's."""

    argtypes: Any = None
    restype: Any = ctypes.c_int  # as ctypes has it

    def __call__(self, *arguments: object) -> None:
        if self.restype is not None:
            raise ValueError("a C++ function's result is not known without running it")


class Library:
    """In place of ctypes.CDLL."""

    def __init__(self, path: str) -> None:
        self._functions: dict[str, Function] = {}

    def __getitem__(self, name: str) -> Function:
        return self._functions.setdefault(name, Function())

    def __getattr__(self, name: str) -> Function:
        return self[name]


class Libraries:
    """C++ on the CPU; where there is a `gpu`, CUDA C++ too."""

    def __init__(self, gpu: Mapping[str, Any] | None) -> None:
        self.resources: list[elf.Resources] = []
        _stand_in(compiler, CDLL=Library)
        _stand_in(torch.Tensor, data_ptr=lambda tensor: Address())
        if gpu is not None:
            self._on(gpu)

    def follow(self, kernel_fn: Callable[..., Any], call: Mapping[str, Any]) -> None:
        try:
            kernel_fn(*map(without_data, call["inputs"]), **call["options"])
        except TooMuchShared as error:
            raise Unfit(f"raised RuntimeError: {error}") from error

    def found(self) -> Mapping[str, Any]:
        if not compiler.built:
            raise ValueError("the calls have nothing compiled")
        code = ((source, file.read_bytes(), file.suffix) for source, file in compiler.built)
        return {"built": [(source, elf.digest(b, kind == ".cubin")) for source, b, kind in code]}

    def _on(self, gpu: Mapping[str, Any]) -> None:
        from pytest_autokernel import cuda, cuda_driver

        def library(code: bytes) -> CudaLibrary:
            return CudaLibrary(elf.resources(code, gpu["capability"]), self.resources, most)

        most = gpu["shared_bytes"]
        _stand_in(cuda, CudaLibrary=library)
        _stand_in(cuda_driver, _encoded=lambda *_: cuda_driver.TensorMap())


def _stand_in(where: object, **objects: object) -> None:
    for name, value in objects.items():
        setattr(where, name, value)


class CudaLibrary:
    """In place of cuda.CudaLibrary. What launches of its kernels take goes to `taken`."""

    def __init__(
        self, own: Mapping[str, elf.Resources], taken: list[elf.Resources], most: int | None
    ) -> None:
        self._own, self._taken, self._most = own, taken, most

    def __getattr__(self, name: str) -> CudaKernel:
        if name not in self._own:
            raise AttributeError(name)
        return CudaKernel(name, self._own[name], self._taken, self._most)


class CudaKernel:
    """In place of cuda_driver.CudaKernel."""

    def __init__(
        self, name: str, own: elf.Resources, taken: list[elf.Resources], most: int | None
    ) -> None:
        self._name, self._own, self._taken, self._most = name, own, taken, most

    def __call__(self, grid: object, block: object, *arguments: object, shared: int = 0) -> None:
        total = self._own["shared_bytes"] + shared
        self._taken.append({**self._own, "shared_bytes": total})
        if self._most is not None and total > self._most:
            raise TooMuchShared(
                f"{self._name} needs {total:,} bytes of shared memory, "
                f"a block has {self._most:,} on this GPU"
            )

    def prepared(
        self, grid: object, block: object, *last: object, shared: int = 0
    ) -> Callable[..., None]:
        return functools.partial(self, grid, block, shared=shared)
