"""`tl.exp(x)` becomes `tl.exp2(x * log2(e))`.

On NVIDIA GPUs both end in the instruction `ex2.approx`. But `tl.exp` asks for subnormal results
too, for which the assembler adds a comparison and two multiplications to each; `tl.exp2` flushes
them to zero. Pays where exponentials are many for each byte: attention, cross-entropy, softmax of
16-bit numbers. The argument is scaled after a difference is taken, so that nothing is lost for
large numbers. Source: the PTX of Triton 3.7 for sm_90; FlashAttention-2, arXiv:2307.08691, 3.1.
"""

from __future__ import annotations

import ast

from .source import Source
from .syntax import calls

LOG2E = "1.4426950408889634"


def rewrite(source: Source) -> bool:
    """Wherever a kernel calls `tl.exp` with one argument."""
    found = [
        call
        for kernel in source.kernels
        for call in calls(kernel, "tl.exp")
        if len(call.args) == 1 and not call.keywords
    ]
    if not found or source.has("LOG2E"):
        return False
    for call in found:
        (x,) = call.args
        source.replace(call.func, "tl.exp2")
        simple = isinstance(x, ast.Name | ast.Call)
        source.append(x, " * LOG2E" if simple else ") * LOG2E")
        if not simple:
            source.put(x, "(")
    source.define([f"LOG2E = tl.constexpr({LOG2E})"])
    return True
