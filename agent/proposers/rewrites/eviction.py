"""Loads say which lines the caches may drop first, and which they had better keep.

What a kernel reads for the last time is marked `evict_first`, what it reads again (in a later
pass over its row), or what all programs read (a weight, a table), `evict_last`. Pays in kernels
that are bound by memory and read something twice: softmax and normalisation of long rows in two
passes, weights, cos and sin tables. Source: PTX ISA, cache eviction priority hints; the tuned
softmax and RMSNorm kernels of Helion and quack use both.
"""

from __future__ import annotations

import ast

from .source import Choice, Source
from .syntax import calls, following, follows, option

ONCE = Choice("evict_once", "evict_first", ["", "evict_first"], "hint for what is read no more")
AGAIN = Choice("evict_again", "evict_last", ["", "evict_last"], "hint for what is read again")


def rewrite(source: Source) -> bool:
    """Loads of blocks in kernels without a dot, whose operands several programs share."""
    kernels = [
        kernel
        for kernel in source.kernels
        if any(calls(kernel, "tl.program_id")) and not any(calls(kernel, "tl.dot"))
    ]
    hints = [pair for kernel in kernels for pair in _hints(kernel)]
    if not hints or any(source.has(name) for name in ("evict_once", "evict_again")):
        return False
    choices = [choice for choice in (ONCE, AGAIN) if choice in [hint for _, hint in hints]]
    for load, hint in hints:
        source.argument(load, f"eviction_policy={hint.name.upper()}")
    source.open(choices)
    source.define([f'{c.name.upper()} = tl.constexpr(CONFIG["{c.name}"])' for c in choices])
    return True


def _hints(kernel: ast.FunctionDef) -> list[tuple[ast.Call, Choice]]:
    lanes = following(kernel, "tl.arange")
    own = following(kernel, "tl.program_id")
    loads = [
        call
        for call in calls(kernel, "tl.load")
        if call.args and follows(call.args[0], lanes, ["tl.arange"])
    ]
    loads.sort(key=lambda call: (call.lineno, call.col_offset))
    pointers = [ast.unparse(load.args[0]) for load in loads]
    hints = []
    for place, load in enumerate(loads):
        shared = not follows(load.args[0], own, ["tl.program_id"])
        again = shared or pointers[place] in pointers[place + 1 :]
        if option(load, "eviction_policy", 5) is None:
            hints.append((load, AGAIN if again else ONCE))
    return hints
