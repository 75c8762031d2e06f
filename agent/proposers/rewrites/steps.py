"""The statements of a kernel over one block, and what follows from which.

Each is about the row as a whole (`scale = ...`), about each of its elements, or reduces the latter
to the former.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence
from dataclasses import dataclass

from .one_block import REDUCTIONS, OneBlock
from .syntax import calls, dotted, names, option


@dataclass(frozen=True)
class Step:
    """A statement: `target`, if it has one, `by` an operator if that is updated, and what is
    assigned or stored. `reduction` names the function that leads to a value of the whole row;
    `wide` says of others whether they are about each element."""

    value: ast.expr
    target: str | None = None
    by: ast.operator | None = None
    reduction: str | None = None
    wide: bool = False

    @property
    def reads(self) -> set[str]:
        return names(self.value) | ({self.target} if self.by and self.target else set())

    @property
    def line(self) -> str:
        if self.target is None:
            return ast.unparse(self.value)
        name = ast.Name(self.target, ast.Store())
        if self.by:
            return ast.unparse(ast.AugAssign(name, self.by, self.value))
        return f"{self.target} = {ast.unparse(self.value)}"


def steps_of(each: OneBlock) -> list[Step] | None:
    """The statements, with every reduction in one of its own; None where a name is used for both
    kinds of value."""
    steps: list[Step] = []
    wide: set[str] = set()
    whole = {parameter.arg for parameter in each.kernel.args.args}
    for statement in each.body:
        hoist = _Hoist(len(steps))
        value = hoist.visit(copy.deepcopy(statement.value))
        steps += hoist.found
        target, by = _target(statement)
        if target and by is None and isinstance(value, ast.Name) and hoist.found:
            last = steps.pop()  # `m = tl.max(v, 0)`
            steps.append(Step(last.value, target, reduction=last.reduction))
        else:
            of_elements = bool(names(value) & wide) or any(calls(value, "tl.arange"))
            steps.append(Step(value, target, by, wide=of_elements))
        for step in steps[-1 - len(hoist.found) :]:
            if step.target:
                (wide if step.wide else whole).add(step.target)
        if wide & whole:
            return None
    return steps


def _target(statement: ast.stmt) -> tuple[str | None, ast.operator | None]:
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, None
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id, statement.op
    return None, None


class _Hoist(ast.NodeTransformer):
    """Puts a name in the place of each reduction."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.found: list[Step] = []

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if dotted(node.func) not in REDUCTIONS:
            return node
        function = dotted(node.func)
        name = f"{function.removeprefix('tl.')}_{self.first + len(self.found)}"
        self.found.append(Step(node.args[0], name, reduction=function))
        return ast.Name(name, ast.Load())


def length_of(each: OneBlock, steps: Sequence[Step]) -> str | None:
    """The parameter that all elements' numbers are compared with."""
    parameters = {parameter.arg for parameter in each.kernel.args.args}
    lanes = {step.target for step in steps if step.wide and _is_arange(step.value)}
    found = set()
    for step in steps:
        for node in ast.walk(step.value):
            if isinstance(node, ast.Compare) and _is_lane(node.left, lanes):
                below = [isinstance(op, ast.Lt) for op in node.ops] == [True]
                found.add(ast.unparse(node.comparators[0]) if below else "")
    name = found.pop() if len(found) == 1 else ""
    return name if name in parameters else None


def _is_lane(node: ast.expr, lanes: set[str | None]) -> bool:
    return _is_arange(node) or (isinstance(node, ast.Name) and node.id in lanes)


def _is_arange(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func) == "tl.arange"


def in_order(steps: Sequence[Step]) -> bool:
    """Whether what is about the row never changes once an element was computed with it."""
    read: set[str] = set()
    for step in steps:
        if not step.wide and step.target in read:
            return False
        if step.wide or step.reduction:
            read |= step.reads
    return True


def masked(steps: Sequence[Step]) -> bool:
    return all(
        option(call, "mask", 1 if dotted(call.func) == "tl.load" else 2) is not None
        for step in steps
        if step.wide or step.reduction
        for call in calls(step.value, "tl.load", "tl.store")
    )


def needed_of(steps: Sequence[Step], place: int) -> set[int]:
    """The places of the steps about elements from which the one in `place` follows."""
    needed, found = set(steps[place].reads), set()
    for before in range(place - 1, -1, -1):
        step = steps[before]
        if step.wide and step.target in needed:
            found.add(before)
            if step.by is None:
                needed.discard(step.target)
            needed |= step.reads
    return found


def whole(steps: Sequence[Step], place: int, step: Step) -> ast.expr:
    """What a step computes of elements, with no name between."""

    class Inline(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            for before in range(place - 1, -1, -1):
                if steps[before].wide and steps[before].target == node.id:
                    return whole(steps, before, steps[before])
            return node

    value = step.value
    if step.by:
        value = ast.BinOp(ast.Name(step.target or "", ast.Load()), step.by, value)
    inlined: ast.expr = Inline().visit(copy.deepcopy(value))
    return inlined


def exponential_of(steps: Sequence[Step], top: int, total: int) -> ast.expr | None:
    """For a sum in `total` of exponentials of what lies below the maximum in `top`: the
    exponential, with BELOW in the place of the difference; None for anything else."""
    below = ast.BinOp(
        whole(steps, top, steps[top]), ast.Sub(), ast.Name(steps[top].target or "", ast.Load())
    )
    known = ast.dump(below)

    class Cut(ast.NodeTransformer):
        def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
            if ast.dump(node) == known:
                return ast.Name("BELOW", ast.Load())
            self.generic_visit(node)
            return node

    cut: ast.expr = Cut().visit(whole(steps, total, steps[total]))
    text = ast.unparse(cut)
    plain = text in ("tl.exp(BELOW)", "tl.exp2(BELOW)", "tl.exp2(BELOW * LOG2E)")
    return cut if plain else None
