"""Rules of a `SPACE`: boolean expressions over its axes, evaluated without `eval`.

Allowed are names, constants, tuples, arithmetic, comparisons, `and`, `or`, `not`, `x if c
else y`, and calls of `abs`, `min`, `max`. Powers are not: a kernel file must not be able to
keep the agent busy for ever.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import Refused

Rule = Callable[[Mapping[str, Any]], Any]


def _arithmetic(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`apply` for numbers alone: `"x" * 10000000000` would fill the memory."""

    def checked(left: Any, right: Any) -> Any:
        for value in (left, right):
            if not isinstance(value, int | float):
                raise TypeError(f"arithmetic needs numbers, got {value!r}")
        return apply(left, right)

    return checked


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: _arithmetic(operator.truediv),
    ast.FloorDiv: _arithmetic(operator.floordiv),
    ast.Mod: _arithmetic(operator.mod),
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, group: item in group,
    ast.NotIn: lambda item, group: item not in group,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "min": min, "max": max}


def compile_rule(text: str, names: frozenset[str]) -> Callable[[Mapping[str, Any]], bool]:
    """The rule as a function of a configuration. Raises Refused for anything not allowed."""
    try:
        rule = _Compiler(text, names).compile(ast.parse(text, mode="eval").body)
    except SyntaxError as error:
        raise Refused(f"SPACE rule {text!r}: syntax error: {error.msg}") from error

    def holds(config: Mapping[str, Any]) -> bool:
        try:
            return bool(rule(config))
        except (TypeError, ArithmeticError) as error:
            raise Refused(f"SPACE rule {text!r} fails for {dict(config)}: {error}") from error

    return holds


class _Compiler:
    def __init__(self, text: str, names: frozenset[str]) -> None:
        self.text = text
        self.names = names

    def compile(self, node: ast.expr) -> Rule:
        compiler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if compiler is None:
            raise self._refuse(f"{type(node).__name__} is not allowed")
        rule: Rule = compiler(node)
        return rule

    def _refuse(self, why: str) -> Refused:
        return Refused(
            f"SPACE rule {self.text!r}: {why}; the axes are {', '.join(sorted(self.names))}"
        )

    def _operator(self, node: ast.AST) -> Callable[..., Any]:
        if type(node) not in OPERATORS:
            raise self._refuse(f"{type(node).__name__} is not allowed")
        return OPERATORS[type(node)]

    def _constant(self, node: ast.Constant) -> Rule:
        return lambda config: node.value

    def _name(self, node: ast.Name) -> Rule:
        if node.id not in self.names:
            raise self._refuse(f"unknown name {node.id!r}")
        return lambda config: config[node.id]

    def _tuple(self, node: ast.Tuple | ast.List) -> Rule:
        items = [self.compile(item) for item in node.elts]
        return lambda config: tuple(item(config) for item in items)

    _list = _tuple

    def _unaryop(self, node: ast.UnaryOp) -> Rule:
        apply, operand = self._operator(node.op), self.compile(node.operand)
        return lambda config: apply(operand(config))

    def _binop(self, node: ast.BinOp) -> Rule:
        apply, left, right = (
            self._operator(node.op),
            self.compile(node.left),
            self.compile(node.right),
        )
        return lambda config: apply(left(config), right(config))

    def _boolop(self, node: ast.BoolOp) -> Rule:
        values = [self.compile(value) for value in node.values]
        join = all if isinstance(node.op, ast.And) else any
        return lambda config: join(value(config) for value in values)

    def _compare(self, node: ast.Compare) -> Rule:
        operands = [self.compile(operand) for operand in (node.left, *node.comparators)]
        links = list(zip(map(self._operator, node.ops), operands, operands[1:], strict=False))
        return lambda config: all(link(left(config), right(config)) for link, left, right in links)

    def _ifexp(self, node: ast.IfExp) -> Rule:
        test, yes, no = self.compile(node.test), self.compile(node.body), self.compile(node.orelse)
        return lambda config: yes(config) if test(config) else no(config)

    def _call(self, node: ast.Call) -> Rule:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
            raise self._refuse(f"only {', '.join(FUNCTIONS)} may be called")
        apply, values = FUNCTIONS[node.func.id], [self.compile(value) for value in node.args]
        return lambda config: apply(*(value(config) for value in values))
