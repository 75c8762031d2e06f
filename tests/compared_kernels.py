"""A program: every shipped kernel on small cases of its op, compared by the oracle.

Prints a JSON object, `path-variant-dtype` -> why the result is wrong, or null. Triton kernels run
in its interpreter, which has to be chosen before triton is imported: hence a process.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


def compared(path: Path) -> Iterator[tuple[str, str | None]]:
    from pytest_autokernel import candidate, operands, oracle
    from tests.test_ops import OPS, small

    kernel = candidate.read(path)
    kernel_fn, op = candidate.load(path), OPS[kernel.op]
    for dtype in op.dtypes:
        for name, variant in op.claimed(kernel.supports).items():
            case = small(op, dtype, name)
            inputs, _ = operands.make_inputs(op, case, "cpu")
            got = kernel_fn(*inputs, **variant.options)
            units = int(kernel.backend == "triton" and dtype == "bf16")
            judged = oracle.compare(got, op, case, inputs, units)
            yield f"{kernel.backend}/{op.name}-{name}-{dtype}", judged.reason


def main() -> None:
    warnings.simplefilter("ignore")
    found = dict(pair for path in sys.argv[1:] for pair in compared(Path(path)))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    main()
