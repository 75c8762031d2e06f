"""Tiles of a product are worked on in groups of rows of tiles, instead of row after row.

Programs that run at the same time then share operands that still lie in the L2 cache. Pays for
products whose operands are larger than the L2 holds beside one another. Source: Triton's tutorial
03, L2 cache optimisations; `tl.swizzle2d`.
"""

from __future__ import annotations

import ast

from .source import Choice, Source
from .syntax import calls

CHOICE = Choice("group", 8, [1, 2, 4, 8, 16], "rows of tiles worked on together, for the L2's sake")


def rewrite(source: Source) -> bool:
    """Kernels with a dot that name their place in a grid of two axes, in two assignments side by
    side, and nowhere else."""
    found = [pair for kernel in source.kernels if (pair := _places(source, kernel))]
    if not found or source.has("group") or source.has("GROUP"):
        return False
    for slow, fast, last in found:
        source.after(
            last,
            [
                f"{slow}, {fast} = tl.swizzle2d(",
                f"    {slow}, {fast}, tl.num_programs(1), tl.num_programs(0), GROUP",
                ")",
            ],
        )
    source.open([CHOICE])
    source.define(['GROUP = tl.constexpr(CONFIG["group"])'])
    return True


def _places(source: Source, kernel: ast.FunctionDef) -> tuple[str, str, ast.stmt] | None:
    """The names of the slow and of the fast running place (the hardware counts along axis 0
    first), and the statement that gives the second of them."""
    named: dict[str, tuple[str, ast.stmt]] = {}
    for statement in kernel.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            axis = ast.unparse(statement.value).removeprefix("tl.program_id(")
            if axis in ("0)", "1)"):
                named[axis[0]] = (statement.targets[0].id, statement)
    asked = list(calls(kernel, "tl.program_id", "tl.num_programs"))
    if len(named) != 2 or len(asked) != 2 or not any(calls(kernel, "tl.dot")):
        return None
    (fast, one), (slow, other) = named["0"], named["1"]
    places = sorted([kernel.body.index(one), kernel.body.index(other)])
    launches = source.launches(kernel)
    # A third axis would be no part of either: then there is nothing to order by two.
    flat = bool(launches) and all(source.axes(launch) == 2 for launch in launches)
    if places[1] != places[0] + 1 or not flat:
        return None
    return slow, fast, kernel.body[places[1]]
