"""C++: flags for the compiler that give it more freedom, and change no result.

No kernel reads `errno` or the floating-point traps; without them GCC may vectorise roots and
comparisons. `-funroll-loops` unrolls loops whose length it does not know. Pays in loops over plain
scalars that the compiler vectorises itself. Source: GCC's manual, optimize options.
"""

from __future__ import annotations

from .source import Choice, Source
from .syntax import calls

FREE = "-fno-math-errno -fno-trapping-math"
CHOICE = Choice(
    "flags",
    FREE,
    ["", FREE, "-funroll-loops", f"{FREE} -funroll-loops"],
    "the compiler's, in addition",
)


def rewrite(source: Source) -> bool:
    """Kernels that compile C++ without flags of their own."""
    found = [call for call in calls(source.tree, "compile_cpp") if call.args]
    flagged = any(word.arg == "flags" for call in found for word in call.keywords)
    # CONFIG's keys become macros: none may be a word of the source.
    if not found or flagged or source.has("flags") or "FLAGS" in source.text:
        return False
    for call in found:
        source.argument(call, 'flags=CONFIG["flags"].split()')
    source.open([CHOICE])
    return True
