"""Questions to syntax trees that several rewrites ask. Pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence


def calls(node: ast.AST, *names: str) -> Iterator[ast.Call]:
    """The calls of functions with these (dotted) names within a node, outer ones first."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and dotted(inner.func) in names:
            yield inner


def dotted(node: ast.AST) -> str:
    """`tl.load` for that node, and nothing for what is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def option(call: ast.Call, name: str, place: int) -> ast.expr | None:
    """An argument that may be passed by name or by place."""
    named = [word.value for word in call.keywords if word.arg == name]
    return named[0] if named else call.args[place] if len(call.args) > place else None


def names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def assigned(function: ast.FunctionDef, name: str) -> list[ast.expr]:
    """All values that a function assigns to a name."""
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign | ast.AugAssign)
        and any(isinstance(t, ast.Name) and t.id == name for t in targets(node))
    ]


def following(function: ast.FunctionDef, *functions: str) -> set[str]:
    """The names whose values follow from calls of these functions, whatever the order."""
    found: set[str] = set()
    while True:
        more = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign | ast.AugAssign)
            and follows(node.value, found, functions)
            for each in targets(node)
            for target in ast.walk(each)
            if isinstance(target, ast.Name)
        }
        if more <= found:
            return found
        found |= more


def follows(node: ast.AST, found: set[str], functions: Sequence[str]) -> bool:
    return bool(names(node) & found) or any(calls(node, *functions))


def repeatable(node: ast.expr) -> bool:
    """Whether evaluating an expression twice gives the same and changes nothing."""
    allowed = (ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.BinOp, ast.operator,
               ast.UnaryOp, ast.unaryop, ast.Load, ast.Tuple)  # fmt: skip
    known = ("triton.cdiv", "triton.next_power_of_2", "min", "max", "len")
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            method = isinstance(inner.func, ast.Attribute) and inner.func.attr in ("numel", "size")
            if inner.keywords or not (dotted(inner.func) in known or method):
                return False
        elif not isinstance(inner, allowed):
            return False
    return True


def targets(node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]
