"""C++: `#pragma GCC unroll` before plain loops over elements.

A loop of one short statement, such as the widening or narrowing of a row, does little for each
comparison and jump; unrolled it also has several independent conversions in flight. Pays where
such loops are bound by arithmetic, in 16-bit types. Source: GCC's manual, loop-specific pragmas.
"""

from __future__ import annotations

import ast
import re

from .source import Choice, Source
from .syntax import calls

CHOICE = Choice("unroll_loops", 4, [1, 2, 4, 8, 16], "elements for each turn of a plain loop")
LOOP = re.compile(r"\s*for \((?:int64_t|int|size_t) (\w+) = \w+; \1 < [a-z]\w*; \1\+\+\)( .*;)?")
CONTROL = re.compile(r"\s*(for|if|while|switch|#)\b")


def rewrite(source: Source) -> bool:
    """Loops over one plain statement, whose length the compiler does not know, in C++ that gets
    CONFIG as macros."""
    made = [ast.unparse(call) for call in calls(source.tree, "compile_cpp")]
    if not made or not all("CONFIG.items()" in call and ".upper()" in call for call in made):
        return False
    lines = [number for number in source.within("SOURCE") if _is_plain(source, number)]
    included = [n for n in source.within("SOURCE") if source.line(n).startswith("#include")]
    taken = source.has(CHOICE.name) or re.search(r"\b(UNROLL_LOOPS|TURNS)\b", source.text)
    if not lines or not included or taken or min(lines) < max(included):
        return False
    for number in lines:
        line = source.line(number)
        indent = line[: len(line) - len(line.lstrip())]
        source.insert(number, f"{indent}#pragma GCC unroll TURNS")
    # The pragma takes a constant, and does not expand a macro.
    source.insert(max(included) + 1, "constexpr int TURNS = UNROLL_LOOPS;")
    source.open([CHOICE])
    return True


def _is_plain(source: Source, number: int) -> bool:
    """Whether a line is a loop with its statement in it, or in the next line."""
    loop = LOOP.fullmatch(source.line(number))
    if loop is None:
        return False
    below = source.line(number + 1)
    return bool(loop[2]) or (below.endswith(";") and not CONTROL.match(below))
