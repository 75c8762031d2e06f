"""Kernels that hold a row in one block: what two rewrites have to know of them.

Such a kernel is a list of plain statements over one `tl.arange(0, BLOCK)`, in which every value is
either the program's own number or a value for each element of its row, and `tl.sum`, `tl.max` and
`tl.min` lead from these to those.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from .source import Launch, Source
from .syntax import calls, dotted, option, targets

REDUCTIONS = ("tl.sum", "tl.max", "tl.min")
# What acts on each element alone.
ELEMENTWISE = (
    *("tl.load", "tl.store", "tl.program_id", "tl.arange", "tl.where", "tl.maximum", "tl.minimum"),
    *("tl.exp", "tl.exp2", "tl.log", "tl.log2", "tl.sqrt", "tl.rsqrt", "tl.abs", "tl.sigmoid"),
    *("tl.erf", "tl.fma", "tl.sin", "tl.cos", "tl.cast", "float"),
)
PLAIN = (
    *(ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword),
    *(ast.Attribute, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)


@dataclass(frozen=True)
class OneBlock:
    """A kernel, its only launch, the statements after its docstring, the parameter that is its
    block's size, and the expression that is passed for it."""

    kernel: ast.FunctionDef
    launch: Launch
    body: list[ast.Assign | ast.AugAssign | ast.Expr]
    block: str
    size: str


def one_blocks(source: Source) -> list[OneBlock]:
    return [found for kernel in source.kernels if (found := _one_block(source, kernel))]


def _one_block(source: Source, kernel: ast.FunctionDef) -> OneBlock | None:
    launches, body = source.launches(kernel), _statements(kernel)
    if len(launches) != 1 or body is None or source.programs(launches[0]) is None:
        return None
    sizes = {_block(call) for call in calls(kernel, "tl.arange")}
    axes = {ast.unparse(call) for call in calls(kernel, "tl.program_id")}
    block = sizes.pop() if len(sizes) == 1 else None
    parameters = [parameter.arg for parameter in kernel.args.args]
    if block not in parameters or axes != {"tl.program_id(0)"} or kernel.args.defaults:
        return None
    size = launches[0].argument(kernel, block)
    if size is None or not all(map(_reduces_a_row, calls(kernel, *REDUCTIONS))):
        return None
    plain = isinstance(size, ast.Name | ast.Call)
    text = source.of(size) if plain else f"({source.of(size)})"
    return OneBlock(kernel, launches[0], body, block, text)


def _statements(
    kernel: ast.FunctionDef,
) -> list[ast.Assign | ast.AugAssign | ast.Expr] | None:
    """The statements of a body that has no loops, branches, blocks or functions that are not
    plain; None if it has any."""
    body: list[ast.Assign | ast.AugAssign | ast.Expr] = []
    for number, statement in enumerate(kernel.body):
        if not isinstance(statement, ast.Assign | ast.AugAssign | ast.Expr):
            return None
        if number == 0 and isinstance(statement, ast.Expr) and _is_text(statement.value):
            continue
        if not _is_simple(statement) or not all(map(_is_plain, ast.walk(statement.value))):
            return None
        body.append(statement)
    return body


def _is_simple(statement: ast.Assign | ast.AugAssign | ast.Expr) -> bool:
    """Whether it stores, or assigns to one name."""
    if isinstance(statement, ast.Expr):
        return any(calls(statement, "tl.store"))
    into = targets(statement)
    return len(into) == 1 and isinstance(into[0], ast.Name)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        cast = isinstance(node.func, ast.Attribute) and node.func.attr == "to"
        return cast or dotted(node.func) in (*ELEMENTWISE, *REDUCTIONS)
    return isinstance(node, PLAIN)


def _block(arange: ast.Call) -> str | None:
    start, stop = (*arange.args, None, None)[:2]
    whole = isinstance(start, ast.Constant) and start.value == 0 and len(arange.args) == 2
    return stop.id if whole and isinstance(stop, ast.Name) else None


def _reduces_a_row(call: ast.Call) -> bool:
    axis = option(call, "axis", 1)
    first = axis is None or (isinstance(axis, ast.Constant) and axis.value == 0)
    return first and bool(call.args) and len(call.args) + len(call.keywords) <= 2
