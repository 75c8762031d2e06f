"""A fixed number of programs, each in a loop over what were programs before.

The kernel's body becomes a function of a program's number; the kernel calls it in a loop in steps
of `tl.num_programs`. Pays where programs are short and many, and where the last of several waves
leaves multiprocessors idle; costs where the hardware's own scheduler balances better. The loop of
a product over its tiles may be flattened with the one over K: the next tile's first loads are then
under way while a tile leaves (matmul of 4096^3 on an H200: 180 instead of 183 us). Source: Triton's
tutorial 09, persistent matmul; for rows Helion's persistent softmax.
"""

from __future__ import annotations

import ast
import textwrap

from .source import Choice, Launch, Source
from .syntax import calls

ROWS = Choice("per_sm", 8, [1, 2, 4, 8, 16, 32], "programs per multiprocessor, each in a loop")
TILES = Choice("per_sm", 1, [1, 2, 3, 4, 6, 8], "programs per multiprocessor, each in a loop")
FLATTEN = Choice("flatten", 1, [0, 1], "the loop over tiles is one with the loop over K")
HELPER = '''\
def resident_programs(programs: int, device: torch.device) -> int:
    """How many programs share the work of so many; where there is no GPU to ask, a few do."""
    cuda = device.type == "cuda"
    sms = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 2
    return min(programs, CONFIG["per_sm"] * sms)'''


def rewrite(source: Source) -> bool:
    """Kernels that know their program by `tl.program_id(0)` alone, in a grid of one axis."""
    found = [(kernel, launch) for kernel in source.kernels if (launch := _launch(source, kernel))]
    taken = ("per_sm", "programs", "program", "resident_programs", "flatten", "FLATTEN")
    if not found or any(map(source.has, taken)):
        return False
    dots = any(any(calls(kernel, "tl.dot")) for kernel, _ in found)
    for kernel, launch in found:
        _loop(source, kernel, launch, ", flatten=FLATTEN" if dots else "")
    source.before(found[0][1].host, [*HELPER.splitlines(), "", ""])
    source.open([TILES, FLATTEN] if dots else [ROWS])
    if dots:
        source.define(['FLATTEN = tl.constexpr(bool(CONFIG["flatten"]))'])
    return True


def _launch(source: Source, kernel: ast.FunctionDef) -> Launch | None:
    """A kernel's only launch, if its programs can be told apart by a loop's number."""
    launches = source.launches(kernel)
    if len(launches) != 1 or source.programs(launches[0]) is None:
        return None
    called = [
        other for other in source.kernels if any(calls(kernel, other.name)) or other is kernel
    ]
    asked = {
        ast.unparse(call)
        for function in called
        for call in calls(function, "tl.program_id", "tl.num_programs")
    }
    own = {ast.unparse(call) for call in calls(kernel, "tl.program_id")}
    elsewhere = any(calls(f, "tl.program_id") for f in called if f is not kernel)
    returns = any(isinstance(node, ast.Return) for node in ast.walk(kernel))
    tensor = launches[0].call.args[:1]
    plain = not (kernel.args.defaults or kernel.args.kwonlyargs or kernel.args.vararg)
    known = own == asked == {"tl.program_id(0)"} and not elsewhere
    return launches[0] if known and plain and not returns and _is_name(tensor) else None


def _is_name(values: list[ast.expr]) -> bool:
    return bool(values) and isinstance(values[0], ast.Name)


def _loop(source: Source, kernel: ast.FunctionDef, launch: Launch, option: str) -> None:
    names = [parameter.arg for parameter in kernel.args.args]
    one = f"{kernel.name}_one"
    decorators = [f"@{source.of(decorator)}" for decorator in kernel.decorator_list]
    for decorator in kernel.decorator_list:
        source.replace(decorator, "triton.jit")
    source.rename(kernel, one)
    source.put(kernel.args.args[0], "program, ")
    for call in calls(kernel, "tl.program_id"):
        source.replace(call, "program")
    parameters = _lines(", ".join([ast.unparse(kernel.args), "programs,"]))
    passed = _lines(", ".join(["tl.cast(program, tl.int32)", *names]))
    source.after(
        kernel,
        [
            *("", "", *decorators),
            *(f"def {kernel.name}(", *(f"    {line}" for line in parameters), "):"),
            f"    for program in tl.range(tl.program_id(0), programs, tl.num_programs(0){option}):",
            *(f"        {one}(", *(f"            {line}" for line in passed), "        )"),
        ],
    )
    programs, tensor = source.programs(launch), source.of(launch.call.args[0])
    source.replace(launch.grid, f"(resident_programs({programs}, {tensor}.device),)")
    source.argument(launch.call, f"programs={programs}")


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, 80, break_long_words=False)
