"""Loads of a loop's next steps are started before they are needed: `num_stages` on `tl.range`.

A launch's `num_stages` does that for loops with a `tl.dot` alone. In any other loop that loads, a
step waits for its memory unless the loop itself says how many steps are in flight. Pays for long
rows read in a loop by few warps, whose rows are aligned to 16 bytes; costs shared memory.
Source: Triton's `tl.range`; for sm_90 it then emits `cp.async`.
"""

from __future__ import annotations

import ast

from .source import Choice, Source
from .syntax import calls, dotted

CHOICE = Choice("loop_stages", 3, [1, 2, 3, 4], "steps of a loop over memory in flight at once")


def rewrite(source: Source) -> bool:
    """Innermost loops over a range that load, have no dot and do not say a number of stages."""
    found = [
        loop.iter
        for kernel in source.kernels
        for loop in ast.walk(kernel)
        if isinstance(loop, ast.For) and isinstance(loop.iter, ast.Call) and _waits(loop, loop.iter)
    ]
    if not found or source.has(CHOICE.name) or source.has("LOOP_STAGES"):
        return False
    for call in found:
        source.replace(call.func, "tl.range")
        source.argument(call, "num_stages=LOOP_STAGES")
    source.open([CHOICE])
    source.define(['LOOP_STAGES = tl.constexpr(CONFIG["loop_stages"])'])
    return True


def _waits(loop: ast.For, over: ast.Call) -> bool:
    inner = [node for statement in loop.body for node in ast.walk(statement)]
    return (
        dotted(over.func) in ("range", "tl.range")
        and bool(over.args)
        and all(word.arg != "num_stages" for word in over.keywords)
        and any(calls(loop, "tl.load"))
        and not any(calls(loop, "tl.dot", "tl.dot_scaled"))
        and not any(isinstance(node, ast.For | ast.While) for node in inner)
    )
