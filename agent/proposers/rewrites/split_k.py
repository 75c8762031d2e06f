"""The depth of a product is split among programs, and their sums joined in order afterwards.

Where a product has fewer tiles than the GPU has multiprocessors, most of them idle. Splits write
sums in fp32 to memory of their own, and a second launch adds them, always in the same order:
atomics would be a launch less, and not deterministic. As many splits as fill the device, one where
its tiles do that alone. Pays for few rows and columns and a deep K. Source: CUTLASS, Efficient
GEMM, parallelised reductions (split-K).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from .source import Choice, Launch, Source
from .syntax import assigned, calls, dotted, names

CHOICE = Choice("fill", 264, [1, 132, 264, 528], "programs at least, by splitting K among several")
NEW = ("split", "parts", "tiles", "split_size", "SPLIT", "join_parts")
JOIN = '''\
@triton.jit
def join_parts(parts, y, size, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of what all splits found, in their order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(SPLIT):
        total += tl.load(parts + at, mask=at < size, other=0.0)
        parts += size
    tl.store(y + at, total, mask=at < size)'''


@dataclass(frozen=True)
class Product:
    """A kernel that sums dots along K in `loop` and stores them by its parameter `pointer`, for
    which the host passes the contiguous tensor `result`."""

    kernel: ast.FunctionDef
    launch: Launch
    loop: ast.Call
    pointer: str
    result: str
    axes: int


def rewrite(source: Source) -> bool:
    """Kernels with one loop of dots from 0, whose sum is stored once and used nowhere else."""
    found = [product for kernel in source.kernels if (product := _product(source, kernel))]
    if len(found) != 1 or any(map(source.has, (CHOICE.name, *NEW))):
        return False
    (p,) = found
    step = source.of(p.loop.args[2])
    place = f"tl.program_id({p.axes})"
    source.replace(p.loop.args[0], f"{place} * {step}")
    source.replace(p.loop.args[2], f"{step} * SPLIT")
    first = p.kernel.body[1 if ast.get_docstring(p.kernel) is not None else 0]
    source.before(first, [f"{p.pointer} += {place}.to(tl.int64) * split_size"])
    source.parameter(p.kernel, "split_size, SPLIT: tl.constexpr")
    source.before(p.kernel, [*JOIN.splitlines(), "", ""])
    _split_launch(source, p)
    source.open([CHOICE])
    return True


def _split_launch(source: Source, p: Product) -> None:
    grid = source.of(p.launch.grid)
    source.before(
        p.launch.statement,
        [
            f"tiles = torch.Size({grid}).numel()",
            'split = min(triton.next_power_of_2(CONFIG["fill"] // tiles + 1) // 2 or 1, 16)',
            f"parts = {p.result}",
            "if split > 1:",
            f"    parts = {p.result}.new_empty((split, *{p.result}.shape), dtype=torch.float32)",
        ],
    )
    result = p.launch.argument(p.kernel, p.pointer)
    assert result is not None
    source.replace(result, "parts")
    source.replace(p.launch.grid, f"(*{grid}, split)")
    source.argument(p.launch.call, f"split_size={p.result}.numel(), SPLIT=split")
    size = f"{p.result}.numel()"
    source.after(
        p.launch.statement,
        [
            "if split > 1:",
            f"    join_parts[(triton.cdiv({size}, 1024),)](parts, {p.result}, {size}, split, 1024)",
        ],
    )


def _product(source: Source, kernel: ast.FunctionDef) -> Product | None:
    launches = source.launches(kernel)
    loops = [s for s in kernel.body if isinstance(s, ast.For) and any(calls(s, "tl.dot"))]
    stores = list(calls(kernel, "tl.store"))
    axes = source.axes(launches[0]) if len(launches) == 1 else None
    if axes not in (1, 2) or len(loops) != 1 or len(stores) != 1 or kernel.args.defaults:
        return None
    loop, store = loops[0], stores[0]
    over, total = loop.iter, _total(loop)
    plain = (
        isinstance(over, ast.Call)
        and dotted(over.func) in ("range", "tl.range")
        and len(over.args) == 3
        and ast.unparse(over.args[0]) == "0"
    )
    after = kernel.body[kernel.body.index(loop) + 1 :]
    others = [s for s in after if not (isinstance(s, ast.Expr) and s.value is store)]
    if not plain or total is None or not _is_sum(store.args[1], total) or len(store.args) > 3:
        return None
    if len(others) != len(after) - 1 or any(total in names(s) for s in others):
        return None
    found = _result(kernel, launches[0], store)
    if found is None or not isinstance(over, ast.Call):
        return None
    return Product(kernel, launches[0], over, *found, axes)


def _total(loop: ast.For) -> str | None:
    """The name that the dots are added to: the loop's last statement does it, and no other."""
    last = loop.body[-1]
    if not isinstance(last, ast.Assign | ast.AugAssign) or len(list(calls(loop, "tl.dot"))) != 1:
        return None
    target = last.target if isinstance(last, ast.AugAssign) else last.targets[0]
    dot = last.value
    if not isinstance(target, ast.Name) or not any(dot is call for call in calls(loop, "tl.dot")):
        return None
    assert isinstance(dot, ast.Call)
    adds = (
        isinstance(last.op, ast.Add)
        if isinstance(last, ast.AugAssign)
        else len(dot.args) == 3 and ast.unparse(dot.args[2]) == target.id
    )
    return target.id if adds and not any(target.id in names(s) for s in loop.body[:-1]) else None


def _is_sum(value: ast.expr, total: str) -> bool:
    cast = isinstance(value, ast.Call) and ast.unparse(value).startswith(f"{total}.to(")
    return cast or (isinstance(value, ast.Name) and value.id == total)


def _result(kernel: ast.FunctionDef, launch: Launch, store: ast.Call) -> tuple[str, str] | None:
    """The parameter that is stored by, and the host's tensor for it: new, so contiguous."""
    found = []
    for parameter in sorted(names(store.args[0]) & {a.arg for a in kernel.args.args}):
        passed = launch.argument(kernel, parameter)
        if isinstance(passed, ast.Name):
            made = [ast.unparse(value) for value in assigned(launch.host, passed.id)]
            if len(made) == 1 and (".new_empty(" in made[0] or made[0].startswith("torch.empty(")):
                found.append((parameter, passed.id))
    return found[0] if len(found) == 1 else None
