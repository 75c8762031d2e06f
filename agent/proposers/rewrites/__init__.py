"""The playbook: changes of a kernel's source, each a small file.

A rewrite says whether it applies by the kernel's structure alone, and then leaves in the `Source`
the edits that it takes. What it opens a choice of becomes an axis of the file's own SPACE, for a
tuner to search afterwards. None of them decides whether its result is right, or faster: the judge
does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import (
    compiler_flags,
    eviction,
    exp2,
    grouped_order,
    long_row,
    loop_stages,
    persistent,
    rows_per_program,
    split_k,
    unroll_pragma,
)
from .source import Source

# In the order in which they are tried: what is expected to gain most comes first.
REWRITES: Mapping[str, Callable[[Source], bool]] = {
    "loop a long row": long_row.rewrite,
    "rows per program": rows_per_program.rewrite,
    "grouped tile order": grouped_order.rewrite,
    "exp2": exp2.rewrite,
    "num_stages on loops": loop_stages.rewrite,
    "eviction hints": eviction.rewrite,
    "split-K": split_k.rewrite,
    "persistent grid": persistent.rewrite,
    "compiler flags": compiler_flags.rewrite,
    "unroll pragma": unroll_pragma.rewrite,
}


def rewritten(name: str, text: str) -> str | None:
    """A kernel file after a rewrite; None where that does not apply."""
    source = Source(text)
    applies = source.is_tunable and REWRITES[name](source)
    return source.result() if applies else None
