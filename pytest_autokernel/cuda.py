"""Compiling the CUDA C++ of a kernel file: a string of source becomes kernels to launch.

NVIDIA's cuda-core compiles through NVRTC, for the current device's own architecture: a fraction of
a second, and nothing at all when the same text was compiled before.

Not covered: host code in the source, linking of several sources; launching (cuda_driver.py).
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_autokernel.compile import MESSAGE_LINES, CompileError, built, cache_folder, origin
from pytest_autokernel.cuda_driver import CudaKernel, Launch, TensorMap, tensor_map, tensor_maps

__all__ = [
    "CudaKernel",
    "CudaLibrary",
    "Launch",
    "TensorMap",
    "compile_cuda",
    "tensor_map",
    "tensor_maps",
]


def compile_cuda(
    source: str, *, defines: Mapping[str, int | str] | None = None, **options: Any
) -> CudaLibrary:
    """Compile CUDA C++17 `source` (kernels declared `extern "C" __global__`) for the current
    device; the library's attributes are its kernels.

    `defines` become `-D` macros; `options` are further fields of cuda-core's ProgramOptions
    (`use_fast_math=True`, `max_register_count=168`). The toolkit's headers are found where there
    are some. What was compiled is kept in `$AUTOKERNEL_CACHE_DIR` (default `~/.cache/autokernel`)
    under a hash of all that decides it. Errors name lines of the kernel file whose text holds
    `source`. Raises CompileError.
    """
    architecture = own_architecture()
    macros = {name: str(value) for name, value in (defines or {}).items()}
    key = "\0".join([source, architecture, repr(macros), repr(options), _version()])
    target = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.cubin"
    if not target.exists():
        place = origin(source, sys._getframe(1))
        code, _ = build(source, architecture, macros, *place, **options)
        # Under a name of its own, then renamed: processes may race.
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
            partial.write(code)
        Path(partial.name).replace(target)
    built.append((source, target))
    return CudaLibrary(target.read_bytes())


def own_architecture() -> str:
    """The current device's: `sm_90a`, say, with what later chips lack. Raises CompileError."""
    import torch

    if not torch.cuda.is_available():
        raise CompileError("expected a CUDA device to compile CUDA C++ for: torch finds none")
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def build(
    source: str,
    architecture: str,
    macros: Mapping[str, str],
    file: str = "<source>",
    first_line: int = 1,
    **options: Any,
) -> tuple[bytes, str]:
    """The cubin for `architecture`, and what the assembler says of its registers and spills. Needs
    no device. `file` and `first_line` are where the source is written. Raises CompileError."""
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise CompileError(
            f"expected NVIDIA's cuda-core to compile CUDA C++ ({error}): "
            "pip install 'pytest-autokernel[cuda]'"
        ) from error
    said = io.StringIO()
    settings = {
        "name": file,
        "std": "c++17",
        "arch": architecture,
        "define_macro": list(macros.items()) or None,
        "include_path": list(_header_folders()) or None,
        "ptxas_options": ["-v"],
        "lineinfo": True,  # by which a sanitizer or a profiler names the kernel file's lines
        **options,
    }
    try:
        program = Program(
            f'#line {first_line} "{file}"\n{source}', "c++", ProgramOptions(**settings)
        )
        code = program.compile("cubin", logs=said).code
    except Exception as error:
        raise _error(str(error), file) from error
    return bytes(code), said.getvalue()


def _header_folders() -> Iterator[str]:
    """Where the toolkit's headers are, in a wheel or installed, and CCCL's among them."""
    from cuda.pathfinder import find_nvidia_header_directory

    if found := find_nvidia_header_directory("cudart"):
        yield from (str(folder) for folder in (Path(found), Path(found, "cccl")) if folder.is_dir())


def _error(said: str, file: str) -> CompileError:
    """The compiler's words from its first error on; warnings before it are left out."""
    lines = said.strip().splitlines()
    first = re.compile(rf"{re.escape(file)}\((\d+)\): (?:catastrophic )?error")
    found = [(i, int(match[1])) for i, text in enumerate(lines) if (match := first.match(text))]
    start, line = found[0] if found else (0, None)
    words = "\n".join(lines[start : start + MESSAGE_LINES])
    return CompileError(f"NVRTC refused the source:\n{words}", file, line)


@functools.cache
def _version() -> str:
    """NVRTC's, or that there is none: then what was compiled elsewhere still runs."""
    try:
        from cuda.bindings import nvrtc

        return str(nvrtc.nvrtcVersion())
    except (ImportError, RuntimeError) as error:
        return repr(error)


class CudaLibrary:
    """Loaded code: its kernels are its attributes, as the functions of a ctypes library are."""

    def __init__(self, code: bytes) -> None:
        from cuda.core import ObjectCode

        self._code = ObjectCode.from_cubin(code)

    def __getattr__(self, name: str) -> CudaKernel:
        kernel = CudaKernel(name, self._code.get_kernel(name))
        setattr(self, name, kernel)  # this method is not asked again
        return kernel
