"""What a kernel may do beside computing: the judge's rules about what audit.py saw. Pure.

A kernel computes by itself. It may allocate, look at tensors anew, copy, cast and fill through
torch; what else it calls must be declared legitimate by its op, or be allowed by the user, and
then the report calls it a hybrid.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

# Operators that move or make data and compute nothing; views are not even told.
FREE = frozenset(
    f"aten.{name}"
    for name in (
        *("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"),
        *(
            "new_empty_strided",
            "arange",
            "fill",
            "fill_",
            "full",
            "full_like",
            "new_full",
            "ones",
            "ones_like",
        ),
        *("new_ones", "zero_", "zeros", "zeros_like", "new_zeros", "scalar_tensor"),
        *("cat", "stack", "clone", "copy", "copy_", "_to_copy", "constant_pad_nd", "repeat"),
        *("set_", "resize_", "lift_fresh", "lift_fresh_copy", "_unsafe_view", "_pin_memory"),
        *("_local_scalar_dense", "record_stream", "_reshape_copy", "_foreach_copy_"),
    )
)
# What a kernel file may import without computing by somebody else's kernels.
LIBRARIES = frozenset({"torch", "triton", "pytest_autokernel"}) | sys.stdlib_module_names
# Kernels that torch launches for the operators above, and what the driver itself does.
LAUNCHES = re.compile(
    r"^Mem(cpy|set)\b|^\[memory\]|FillFunctor|direct_copy_kernel|copy_kernel|CatArrayBatchedCopy"
    r"|elementwise_kernel_with_index|arange|spin_kernel"
)


def is_allowed(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def refusal(
    operators: Sequence[tuple[str, Any]], library: Iterable[str], allowed: Iterable[str], file: str
) -> str | None:
    """Why a call's torch operators are not a kernel's, in words; None where they are."""
    patterns = [*library, *allowed]
    for name, line in operators:
        if name not in FREE and not is_allowed(name, patterns):
            place = f" at {file}:{line}" if isinstance(line, int) else ""
            if "." in name and not name.startswith("aten."):
                return (
                    f"calls {name}{place}: what a registered operator does cannot be seen: call "
                    f"its function itself; --autokernel-allow {name} accepts it as a hybrid"
                )
            return (
                f"calls {name}{place}: a kernel computes by itself (allocation, views, copies and "
                f"casts are free); --autokernel-allow {name} accepts it as a hybrid"
            )
    return None


def hybrid(names: Iterable[str], library: Iterable[str]) -> list[str]:
    """The operators that only the user's permission made acceptable."""
    return sorted({n for n in names if n not in FREE and not is_allowed(n, library)})


def foreign_imports(imports: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """The libraries that a kernel file imports and may not."""
    return sorted(n for n in imports if n not in LIBRARIES and not is_allowed(n, allowed))


def foreign_launches(
    launched: Iterable[str], text: str, library: Iterable[str], allowed: Iterable[str]
) -> list[str]:
    """GPU kernels that were launched and that the kernel file's text does not define. An op that
    may call torch operators (`library`) may launch torch's kernels, and those that it names."""
    patterns = [*library, *allowed]
    own = any(name.startswith("aten.") for name in library)
    defined = set(re.findall(r"\bdef\s+(\w+)", text))
    # Without __launch_bounds__(...), __cluster_dims__(...) and the like.
    plain = re.sub(r"__\w+__\s*\([^()]*\)", "", text)
    defined |= set(re.findall(r"__global__[^;{]*?(\w+)\s*\(", plain))
    return sorted(
        {
            name
            for name in launched
            if not LAUNCHES.search(name)
            and identifier(name) not in defined
            and not (own and "at::native" in name)
            and not is_allowed(identifier(name), patterns)
        }
    )


def identifier(name: str) -> str:
    """`void softmax<float, 4>(float*)` -> `softmax`."""
    found = re.search(r"(\w+)\s*(?:<|\(|$)", name.removeprefix("void "))
    return found[1] if found else name
