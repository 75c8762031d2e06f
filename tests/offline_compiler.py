"""Compiles the Triton kernels that a file launches, for sm_90 and without a GPU.

`python -m tests.offline_compiler FILE...` calls each `kernel_fn` with inputs that have no memory,
and prints for each file which kernels would have been launched, with how many bytes of shared
memory. A program of its own: Triton is changed so that a launch compiles and does nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pytest_autokernel import candidate

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}


def like(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


ARGUMENTS: dict[str, list[tuple[torch.Tensor, ...]]] = {
    "softmax": [(like(4096, 4096),), (like(64, 32000),)],
    "rmsnorm": [(like(4096, 4096), like(4096)), (like(64, 32768), like(32768))],
    "cross_entropy": [(like(4096, 32000), like(4096, dtype=torch.int64))],
    "reduce": [(like(4096, 1024),), (like(64, 32768),)],
    "matmul": [(like(2048, 2048), like(2048, 2048)), (like(128, 8192), like(8192, 256))],
}
compiled: list[tuple[str, int]] = []


def launch(
    kernel: Any,
    *args: Any,
    grid: Any,
    warmup: bool,
    num_warps: int,
    num_stages: int = 3,
    **named: Any,
) -> None:
    """In the place of a launch; specialised as Triton would."""
    names = [parameter.name for parameter in kernel.params]
    values = {**dict(zip(names, args, strict=False)), **named}
    assert set(values) == set(names)
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    signature, attributes = dict.fromkeys(constants, "constexpr"), {}
    for place, name in enumerate(names):
        value = values[name]
        if name in constants:
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            constants[name], signature[name] = 1, "constexpr"
        else:
            signature[name] = "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    ordered = {name: signature[name] for name in names}
    source = ASTSource(kernel, ordered, constants, attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    result = triton.compile(source, target=HOPPER, options=options)
    compiled.append((kernel.__name__, result.metadata.shared))


def main(files: list[str]) -> None:
    triton.JITFunction.run = lambda kernel, *args, num_warps=4, **named: launch(
        kernel, *args, num_warps=num_warps, **named
    )
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(
        multi_processor_count=132, shared_memory_per_block_optin=232448
    )
    found = {}
    for file in files:
        kernel_fn, op = candidate.load(Path(file)), candidate.read(Path(file)).op
        for arguments in ARGUMENTS[op]:
            kernel_fn(*arguments)
        found[Path(file).stem] = compiled.copy()
        compiled.clear()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
