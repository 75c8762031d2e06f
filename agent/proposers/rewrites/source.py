"""A kernel file's text beside its syntax tree, and edits of it by exact spans.

What an edit does not touch stays as it is, comments and formatting included. Rewrites write
source with it; nothing here knows of any of them.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..literals import literal
from .syntax import assigned, dotted, repeatable, targets

WIDTH = 100  # a literal that would grow over this goes on in a line of its own


@dataclass(frozen=True)
class Choice:
    """A key that CONFIG gets, its value to start with, and the values that SPACE offers."""

    name: str
    start: Any
    values: Sequence[Any]
    what: str


@dataclass(frozen=True)
class Launch:
    """`kernel[grid](...)`: a statement of its own in the function `host`."""

    call: ast.Call
    statement: ast.Expr
    host: ast.FunctionDef

    @property
    def grid(self) -> ast.expr:
        assert isinstance(self.call.func, ast.Subscript)
        return self.call.func.slice

    def argument(self, kernel: ast.FunctionDef, name: str) -> ast.expr | None:
        """What is passed for a parameter; None where that cannot be told."""
        named = [word.value for word in self.call.keywords if word.arg == name]
        names = [parameter.arg for parameter in kernel.args.args]
        place = names.index(name)
        before = self.call.args[: place + 1]
        if named or len(before) <= place or any(isinstance(a, ast.Starred) for a in before):
            return next(iter(named), None)
        return before[place]


class Source:
    """Collects edits of one text. `text` is the kernel file; it has to parse."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self._bytes = text.encode()
        self._starts = [0]
        for line in self._bytes.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._edits: list[tuple[int, int, str]] = []

    # Reading

    @property
    def is_tunable(self) -> bool:
        """Whether the file declares a CONFIG and a SPACE, as dictionaries."""
        found = [self._statements(name) for name in ("CONFIG", "SPACE")]
        return all(each and isinstance(each[-1].value, ast.Dict) for each in found)

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = literal(self.text, "CONFIG")
        return config

    @functools.cached_property
    def kernels(self) -> list[ast.FunctionDef]:
        """The functions that Triton compiles."""
        functions = [node for node in self.tree.body if isinstance(node, ast.FunctionDef)]
        return [f for f in functions if any(map(_is_jit, f.decorator_list))]

    def of(self, node: ast.AST) -> str:
        """The text of a node."""
        start, stop = self._span(node)
        return self._bytes[start:stop].decode()

    def has(self, name: str) -> bool:
        """Whether the file has this name, or configures it already."""
        names = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        defined = {f.name for f in ast.walk(self.tree) if isinstance(f, ast.FunctionDef)}
        parameters = {a.arg for a in ast.walk(self.tree) if isinstance(a, ast.arg)}
        return name in names | defined | parameters | set(self.config)

    def line(self, number: int) -> str:
        return self.text.splitlines()[number - 1]

    def within(self, name: str) -> range:
        """The numbers of the lines of a top-level assignment; none where there is none."""
        found = self._statements(name)
        return range(found[-1].lineno, (found[-1].end_lineno or 0) + 1) if found else range(0)

    def launches(self, kernel: ast.FunctionDef) -> list[Launch]:
        """All launches of a kernel; none if the file uses it in any other way."""
        found = []
        hosts = [node for node in self.tree.body if isinstance(node, ast.FunctionDef)]
        for host in (host for host in hosts if host not in self.kernels):
            for node in ast.walk(host):
                if isinstance(node, ast.Expr) and _is_launch(node.value, kernel.name):
                    assert isinstance(node.value, ast.Call)
                    found.append(Launch(node.value, node, host))
        mentions = [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Name) and node.id == kernel.name
        ]
        whole = all(self._alone(launch.statement) for launch in found)
        return found if len(found) == len(mentions) and whole else []

    def programs(self, launch: Launch) -> str | None:
        """The number of programs of a launch along its one axis, as source."""
        grid = launch.grid
        if isinstance(grid, ast.Tuple) and len(grid.elts) == 1:
            return self.of(grid.elts[0]) if repeatable(grid.elts[0]) else None
        if isinstance(grid, ast.Name):
            values = assigned(launch.host, grid.id)
            if len(values) == 1 and isinstance(values[0], ast.Tuple) and len(values[0].elts) == 1:
                return f"{grid.id}[0]"
        return None

    def axes(self, launch: Launch) -> int | None:
        """How many axes a launch's grid has, if that can be told."""
        grid = launch.grid
        values = assigned(launch.host, grid.id) if isinstance(grid, ast.Name) else [grid]
        lengths = [len(value.elts) for value in values if isinstance(value, ast.Tuple)]
        return lengths[0] if len(values) == len(lengths) == 1 else None

    # Editing

    def replace(self, node: ast.AST, text: str) -> None:
        self._edits.append((*self._span(node), text))

    def append(self, node: ast.AST, text: str) -> None:
        """Put `text` directly behind a node."""
        stop = self._span(node)[1]
        self._edits.append((stop, stop, text))

    def put(self, node: ast.AST, text: str) -> None:
        """Put `text` directly in front of a node."""
        start = self._span(node)[0]
        self._edits.append((start, start, text))

    def before(self, statement: ast.stmt, lines: Iterable[str]) -> None:
        """Lines in front of a statement (and its decorators), as far indented."""
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(d.lineno for d in decorators)])
        at, indent = self._starts[first - 1], " " * statement.col_offset
        self._edits.append((at, at, "".join(_line(indent, line) for line in lines)))

    def after(self, statement: ast.stmt, lines: Iterable[str]) -> None:
        at, indent = self._starts[statement.end_lineno or 0], " " * statement.col_offset
        self._edits.append((at, at, "".join(_line(indent, line) for line in lines)))

    def lines(self, statement: ast.stmt) -> list[str]:
        """The whole lines of a statement, what follows it there included, less its indent."""
        lines = self.text.splitlines()[statement.lineno - 1 : statement.end_lineno]
        indent = statement.col_offset
        return [line.strip() if line[:indent].strip() else line[indent:] for line in lines]

    def insert(self, number: int, line: str) -> None:
        """A line in front of the one with this number."""
        at = self._starts[number - 1]
        self._edits.append((at, at, f"{line}\n"))

    def replace_lines(self, statement: ast.stmt, lines: Iterable[str]) -> None:
        start, stop = self._starts[statement.lineno - 1], self._starts[statement.end_lineno or 0]
        indent = " " * statement.col_offset
        self._edits.append((start, stop, "".join(_line(indent, line) for line in lines)))

    def rename(self, function: ast.FunctionDef, name: str) -> None:
        """Give a function another name, where it is defined and nowhere else."""
        start = self._span(function)[0]
        start += self._bytes[start:].index(function.name.encode(), len(b"def"))
        self._edits.append((start, start + len(function.name.encode()), name))

    def parameter(self, kernel: ast.FunctionDef, text: str) -> None:
        """Give a kernel one more parameter. Launches have to pass it by name."""
        self.append(kernel.args.args[-1], f", {text}")

    def argument(self, call: ast.Call, text: str) -> None:
        """Pass one more argument, by name, to a call that has some."""
        stop = max(self._span(node)[1] for node in (*call.args, *call.keywords))
        closed = re.match(rb"(\s*\))*", self._bytes[stop : self._span(call)[1] - 1])
        stop += closed.end() if closed else 0  # an argument may stand in parentheses of its own
        self._edits.append((stop, stop, f", {text}"))

    def define(self, lines: Iterable[str]) -> None:
        """Lines behind CONFIG and SPACE."""
        statements = [self._statement("CONFIG"), self._statement("SPACE")]
        self.after(max(statements, key=lambda statement: statement.lineno), lines)

    def open(self, choices: Sequence[Choice]) -> None:
        """Declare choices, so that a tuner can search them."""
        self.before(self._statement("CONFIG"), [f"# {c.name}: {c.what}." for c in choices])
        self._extend("CONFIG", {c.name: c.start for c in choices})
        self._extend("SPACE", {c.name: list(c.values) for c in choices})

    def result(self) -> str:
        """The text with all edits, which must not overlap."""
        text = self._bytes
        edits = sorted(enumerate(self._edits), key=lambda each: (each[1][:2], each[0]))
        for _, (start, stop, new) in reversed(edits):
            text = text[:start] + new.encode() + text[stop:]
        return text.decode()

    def _extend(self, name: str, values: Mapping[str, Any]) -> None:
        """Keys of a dictionary behind those that it has, in its own layout; rules stay last."""
        node = self._statement(name).value
        assert isinstance(node, ast.Dict)
        added = [f"{key!r}: {value!r}".replace("'", '"') for key, value in values.items()]
        pairs = [
            (key, value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant) and key.value != "rules"
        ]
        if not pairs:
            start = self._span(node)[0] + 1
            self._edits.append((start, start, ", ".join(added) + (", " if node.keys else "")))
            return
        key, last = pairs[-1]
        line = self.line(last.end_lineno or 1)
        alone = line[: key.col_offset].isspace() and key.lineno == last.end_lineno
        fits = not alone and len(line) + len(", ".join(added)) + 2 <= WIDTH
        between = ", " if fits else ",\n" + " " * (key.col_offset if alone else 4)
        self.append(last, "".join(between + each for each in added))

    def _statement(self, name: str) -> ast.Assign | ast.AnnAssign:
        """The top-level assignment of a name, the last if there are several."""
        return self._statements(name)[-1]

    def _statements(self, name: str) -> list[ast.Assign | ast.AnnAssign]:
        return [
            node
            for node in self.tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and any(isinstance(t, ast.Name) and t.id == name for t in targets(node))
        ]

    def _alone(self, statement: ast.stmt) -> bool:
        """Whether a statement begins its line, and no other shares its lines."""
        lines = self.text.splitlines()
        first, last = lines[statement.lineno - 1], lines[(statement.end_lineno or 1) - 1]
        rest = last.encode()[statement.end_col_offset :].decode().strip()
        return not first[: statement.col_offset].strip() and (not rest or rest.startswith("#"))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node starts and stops, in bytes of the encoded text (`ast` counts so too)."""
        where: Any = node
        start = self._starts[where.lineno - 1] + where.col_offset
        return start, self._starts[where.end_lineno - 1] + where.end_col_offset


def _is_jit(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return dotted(called) in ("triton.jit", "jit")


def _is_launch(node: ast.expr, kernel: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == kernel
        and bool(node.args or node.keywords)
        and all(word.arg for word in node.keywords)
    )


def _line(indent: str, line: str) -> str:
    return f"{indent}{line}\n" if line else "\n"
