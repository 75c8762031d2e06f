"""A program: the Triton kernels' way by TMA descriptors, which they do not take on a CPU, forced
on small cases of their op, compared by the oracle.

Prints a JSON object, `op-tiling-variant` -> why the result is wrong, or null. Triton's interpreter
has to be chosen before triton is imported: hence a process.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KERNELS = Path(__file__).parent.parent / "kernels" / "triton"
# Of which even a small case has several, the last ones not whole; in loops, and C in two halves.
SMALL = {
    "matmul": (16, 64, 32, 2, 4, 2, True, 1),
    "flash_attention": (32, 16, 4, 2),
    "fused_mlp": (16, 64, 32, 2, 4, 2, 1),
}
DIMS = {
    "matmul": {"M": 24, "N": 72, "K": 40},
    "flash_attention": {"batch": 2, "heads": 2, "seq_len": 70, "head_dim": 16},
    "fused_mlp": {"batch": 24, "dim": 72, "hidden": 136},
}


def compared(name: str) -> Iterator[tuple[str, str | None]]:
    import torch

    from pytest_autokernel import candidate, operands, oracle
    from pytest_autokernel.op import Case
    from tests.test_ops import OPS

    kernel, op = candidate.read(KERNELS / f"{name}.py"), OPS[name]
    kernel_fn = candidate.load(kernel.path)
    module = kernel_fn.__globals__
    made: list[Any] = []

    def descriptor(*parts: Any, new: Any = module["TensorDescriptor"]) -> Any:
        made.append(new(*parts))
        return made[-1]

    module |= {"TensorDescriptor": descriptor, "has_tma": lambda x: True}
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=2)
    for tilings in (kernel.config, dict.fromkeys(kernel.config, SMALL[name])):
        module["CONFIG"] = tilings
        for variant, claimed in op.claimed(kernel.supports).items():
            made.clear()
            case = Case("small", DIMS[name], "fp16", variant, seed=1)
            inputs, _ = operands.make_inputs(op, case, "cpu")
            got = kernel_fn(*inputs, **claimed.options)
            reason = oracle.compare(got, op, case, inputs).reason
            # A batch of products is by pointers, which test_kernels.py looks at.
            by_tma = bool(made) or variant == "batched"
            tiling = "shipped" if tilings is kernel.config else "small"
            yield f"{name}-{tiling}-{variant}", reason if by_tma else "no descriptor was made"


def main() -> None:
    warnings.simplefilter("ignore")
    sys.stdout.write(json.dumps({name: dict(compared(name)) for name in SMALL}))


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    main()
