"""Rows longer than registers hold are read in a loop over blocks.

A row of more than some 16,384 elements in one block spills: it goes through memory several times.
In a loop each lane keeps a maximum or a sum of its own, which are joined once, after the loop; a
maximum and the sum of exponentials below it are found in one pass. What follows from a reduction
is computed in a later pass, from the row read anew. Short rows keep their one block. Pays for
softmax and cross-entropy over vocabularies, and for sums of long rows. Source: Milakov and
Gimelshein, Online normalizer calculation for softmax, arXiv:1805.02867.
"""

from __future__ import annotations

import ast

from .one_block import OneBlock, one_blocks
from .passes import passes
from .source import Choice, Launch, Source

RESIDENT = Choice(
    "resident", 8192, [2048, 4096, 8192, 16384, 32768], "longest row that is held in one block"
)
STEP = Choice("step", 4096, [1024, 2048, 4096, 8192, 16384], "elements per step of a longer row")


def rewrite(source: Source) -> bool:
    """Kernels that hold one row in one block, mask it by its length, and reduce it."""
    found = [(each, lines) for each in one_blocks(source) if (lines := passes(each))]
    taken = [RESIDENT.name, STEP.name, *(f"{each.kernel.name}_long" for each, _ in found)]
    if not found or any(map(source.has, taken)):
        return False
    for each, lines in found:
        _add_loop(source, each, lines)
    source.open([RESIDENT, STEP])
    return True


def _add_loop(source: Source, each: OneBlock, lines: list[str]) -> None:
    kernel, launch = each.kernel, each.launch
    decorators = [f"@{source.of(decorator)}" for decorator in kernel.decorator_list]
    source.after(
        kernel,
        [
            *("", "", *decorators),
            f"def {kernel.name}_long({ast.unparse(kernel.args)}):",
            f'    """As {kernel.name}, in a loop over the row\'s blocks."""',
            *(f"    {line}" for line in lines),
        ],
    )
    source.replace_lines(
        launch.statement,
        [
            f'if {each.size} > CONFIG["resident"]:',
            *(f"    {line}" for line in _long_launch(source, each)),
            "else:",
            *(f"    {line}" for line in source.lines(launch.statement)),
        ],
    )


def _long_launch(source: Source, each: OneBlock) -> list[str]:
    """The launch's own lines, for the other kernel and with another block."""
    copied = Source("\n".join(source.lines(each.launch.statement)) + "\n")
    (statement,) = copied.tree.body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    assert isinstance(statement.value.func, ast.Subscript)
    launch = Launch(statement.value, statement, each.launch.host)
    size = launch.argument(each.kernel, each.block)
    assert size is not None
    copied.replace(statement.value.func.value, f"{each.kernel.name}_long")
    copied.replace(size, 'CONFIG["step"]')
    return copied.result().splitlines()
