"""The literals that a kernel file declares (`CONFIG`, `SPACE`), read and rewritten as text.

Reading never runs the file. Rewriting touches the spans of the changed values and nothing
else, so that a diff shows the experiment and no reformatting.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from typing import Any

from ..errors import Refused


def literal(text: str, name: str) -> Any:
    """The value of the top-level literal `name`, or None where the file has none."""
    node = _find(text, name)
    return None if node is None else _value(node, name)


def rewrite(text: str, name: str, changes: Mapping[str, Any]) -> str:
    """`text` with the values of these keys of the top-level dictionary `name` replaced."""
    node = _find(text, name)
    if not isinstance(node, ast.Dict):
        raise Refused(f"expected {name} to be a dictionary literal")
    spans = {
        key.value: _span(text, value)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant)
    }
    source = text.encode()
    for key in sorted(changes, key=lambda key: spans[key], reverse=True):
        start, stop = spans[key]
        source = source[:start] + repr(changes[key]).encode() + source[stop:]
    return source.decode()


@functools.lru_cache(maxsize=16)  # a run that is taken up again asks the same texts many times
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _find(text: str, name: str) -> ast.expr | None:
    try:
        tree = _parsed(text)
    except SyntaxError as error:
        raise Refused(
            f"the kernel file has a syntax error in line {error.lineno}: {error.msg}"
        ) from error
    found = None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            # An Assign or AnnAssign, or there would be no targets.
            found = node.value  # type: ignore[attr-defined]
    return found


def _value(node: ast.expr, name: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise Refused(f"line {node.lineno}: expected {name} to be a literal: {error}") from error


def _span(text: str, node: ast.expr) -> tuple[int, int]:
    """Where a node starts and stops, in bytes of the encoded text (`ast` counts so too)."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts[node.lineno - 1] + node.col_offset, starts[
        node.end_lineno - 1
    ] + node.end_col_offset
