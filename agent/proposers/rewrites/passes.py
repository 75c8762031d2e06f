"""A kernel over one block, written as passes over many blocks.

What is about the row as a whole stays as it is, once. What a reduction needs is computed in a loop
over blocks, anew for each pass: reading is all that it takes.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Sequence

from .one_block import OneBlock
from .steps import Step, exponential_of, in_order, length_of, masked, needed_of, steps_of, whole
from .syntax import dotted

# Of a reduction: what each lane starts with, and how it takes one more value.
LANES = {
    "tl.sum": ("tl.zeros([{block}], tl.float32)", "{lanes} += {value}"),
    "tl.max": (
        'tl.full([{block}], -float("inf"), tl.float32)',
        "{lanes} = tl.maximum({lanes}, {value})",
    ),
    "tl.min": (
        'tl.full([{block}], float("inf"), tl.float32)',
        "{lanes} = tl.minimum({lanes}, {value})",
    ),
}


def passes(each: OneBlock) -> list[str] | None:
    """The lines of a body that does the same in loops; None where that cannot be told."""
    steps = steps_of(each)
    if steps is None or not any(step.reduction for step in steps):
        return None
    length = length_of(each, steps)
    if length is None or not in_order(steps) or not masked(steps):
        return None
    reduced = [(place, step) for place, step in enumerate(steps) if step.reduction]
    if not all(".to(tl.float32)" in ast.unparse(whole(steps, *pair)) for pair in reduced):
        return None  # lanes add up in fp32: whole numbers would not
    used = {name for step in steps for name in (*step.reads, step.target)}
    own = {f"{step.target}_{part}" for _, step in reduced for part in ("lanes", "next", "base")}
    return None if used & {*own, "start"} else _Writer(steps, each.block, length).lines()


class _Writer:
    """Writes passes; reductions wait until one of them is needed, and share a loop."""

    def __init__(self, steps: Sequence[Step], block: str, length: str) -> None:
        self.steps = steps
        self.block = block
        self.length = length
        self.waiting: list[int] = []
        self.online: dict[int, tuple[int, ast.expr]] = {}  # a sum's: its maximum, its exponential
        self.written: list[str] = []

    def lines(self) -> list[str]:
        stores = [place for place, step in enumerate(self.steps) if step.wide and not step.target]
        for place, step in enumerate(self.steps):
            if step.reduction:
                self._take(place)
            elif not step.wide:
                if step.reads & self._awaited():
                    self._flush()
                self.written.append(step.line)
        self._flush()
        if stores:
            self._loop(stores, [self.steps[place].line for place in stores])
        return self.written

    def _awaited(self) -> set[str | None]:
        return {self.steps[place].target for place in self.waiting}

    def _take(self, place: int) -> None:
        needed = {
            name for at in (*needed_of(self.steps, place), place) for name in self.steps[at].reads
        }
        missing = needed & self._awaited()
        if len(missing) == 1 and self.steps[place].reduction == "tl.sum":
            (top,) = [at for at in self.waiting if self.steps[at].target in missing]
            exponential = exponential_of(self.steps, top, place)
            if self.steps[top].reduction == "tl.max" and exponential is not None:
                self.online[place] = (top, exponential)
                missing = set()
        if missing:
            self._flush()
        self.waiting.append(place)

    def _flush(self) -> None:
        """One loop for all reductions that wait."""
        if not self.waiting:
            return
        body, after = [], []
        tops = {top for place, (top, _) in self.online.items() if place in self.waiting}
        for place in self.waiting:
            step = self.steps[place]
            if place in self.online:
                update, end = self._online(place)
                body += update
                after += end
                continue
            start, take = LANES[step.reduction or ""]
            lanes = f"{step.target}_lanes"
            self.written.append(f"{lanes} = {start.format(block=self.block)}")
            if place not in tops:
                value = ast.unparse(step.value)
                body.append(take.format(lanes=lanes, value=value))
            after.append(f"{step.target} = {step.reduction}({lanes}, 0)")
        self._loop([place for place in self.waiting if place not in self.online], body)
        self.written += after
        self.waiting = []

    def _online(self, place: int) -> tuple[list[str], list[str]]:
        """How lanes keep a maximum and the exponentials' sum below it, and how they are joined."""
        top, exponential = self.online[place]
        total, above = self.steps[place].target, self.steps[top].target
        value = ast.unparse(self.steps[top].value)

        def of(below: str) -> str:
            text = ast.unparse(exponential)
            if text == "tl.exp2(BELOW * LOG2E)":
                return f"tl.exp2(({below}) * LOG2E)"
            return text.replace("BELOW", below)

        self.written.append(f"{total}_lanes = {LANES['tl.sum'][0].format(block=self.block)}")
        update = [
            f"{total}_next = tl.maximum({above}_lanes, {value})",
            "# -inf minus -inf would be NaN",
            f'{total}_base = tl.where({total}_next == -float("inf"), 0.0, {total}_next)',
            f"{total}_lanes = {total}_lanes * {of(f'{above}_lanes - {total}_base')}",
            f"{total}_lanes += {of(f'{value} - {total}_base')}",
            f"{above}_lanes = {total}_next",
        ]
        return update, [f"{total} = tl.sum({total}_lanes * {of(f'{above}_lanes - {above}')}, 0)"]

    def _loop(self, places: Iterable[int], body: Sequence[str]) -> None:
        """A pass: what the steps in `places` need, then `body`."""
        needed = sorted({at for place in places for at in needed_of(self.steps, place)})
        computed = [_moved(self.steps[at], self.block).line for at in needed]
        self.written.append(f"for start in range(0, {self.length}, {self.block}):")
        self.written += [f"    {line}" for line in (*computed, *body)]


def _moved(step: Step, block: str) -> Step:
    """A step, in the block that begins at `start`."""

    class Move(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.expr:
            self.generic_visit(node)
            if dotted(node.func) == "tl.arange":
                return ast.BinOp(ast.Name("start", ast.Load()), ast.Add(), node)
            return node

    return Step(Move().visit(copy.deepcopy(step.value)), step.target, step.by, wide=step.wide)
