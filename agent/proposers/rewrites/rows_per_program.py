"""A program takes several short rows at once.

A row of a kilobyte is too little for a program: its start costs as much as its work, and too few
bytes are in flight. The row's elements become the columns of a tile, all else stays as it was.
Pays for rows of up to some 4,096 elements, where rows are many. Source: Helion's tuned RMSNorm
(4 rows of up to 4,096 elements, 16 of up to 384), and quack's threads per row.
"""

from __future__ import annotations

import ast

from .one_block import REDUCTIONS, OneBlock, one_blocks
from .source import Choice, Source
from .syntax import calls, following, follows, option

CHOICE = Choice(
    "tile",
    8192,
    [1, 1024, 2048, 4096, 8192, 16384],
    "elements per program at least, by taking several rows",
)
NEW = ("ROWS", "all_rows", "these_rows", "many")


def rewrite(source: Source) -> bool:
    """Kernels that hold one row in one block, a row for each program of a grid of one axis."""
    found = one_blocks(source)
    if not found or any(map(source.has, ("tile", *NEW))):
        return False
    for each in found:
        _take_several(source, each)
    source.open([CHOICE])
    return True


def _take_several(source: Source, each: OneBlock) -> None:
    kernel, launch = each.kernel, each.launch
    rows = source.programs(launch)
    own = following(kernel, "tl.program_id")
    for call in calls(kernel, "tl.load", "tl.store"):
        if follows(call.args[0], own, ["tl.program_id"]):
            _mask(source, call)
    for call in calls(kernel, "tl.program_id"):
        source.replace(call, "these_rows")
    for call in calls(kernel, "tl.arange"):
        source.append(call, "[None, :]")
    for call in calls(kernel, *REDUCTIONS):
        axis = option(call, "axis", 1)
        if axis is None:
            source.argument(call, "axis=1")
        else:
            source.replace(axis, "1")
        source.argument(call, "keep_dims=True")
    first = each.body[0]
    source.before(
        first,
        ["these_rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]"],
    )
    source.parameter(kernel, "all_rows, ROWS: tl.constexpr")
    source.before(launch.statement, [f'many = max(CONFIG["tile"] // {each.size}, 1)'])
    source.replace(launch.grid, f"(triton.cdiv({rows}, many),)")
    source.argument(launch.call, f"all_rows={rows}, ROWS=many")


def _mask(source: Source, call: ast.Call) -> None:
    """Leave out rows beyond the last."""
    load = source.of(call.func) == "tl.load"
    mask = option(call, "mask", 1 if load else 2)
    if mask is not None:
        plain = isinstance(mask, ast.Name)
        source.put(mask, "" if plain else "(")
        source.append(mask, f"{'' if plain else ')'} & (these_rows < all_rows)")
    else:
        source.argument(call, "mask=these_rows < all_rows")
        if load:
            source.argument(call, "other=0")
