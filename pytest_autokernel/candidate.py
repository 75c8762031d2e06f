"""A kernel file: what its text says of it, and, in the worker alone, something callable.

Reading never executes: the judge learns op, backend, claims and configuration from the
syntax tree. `load` runs the file, and is called only in the candidate's own process.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import operator
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The import that marks a backend, most specific first.
BACKENDS = {
    "triton": ("triton",),
    "cuda": ("pytest_autokernel.cuda",),
    "cpp": ("pytest_autokernel.compile",),
}

MOST_INTEGER = 2**20
# As C++ writes them (4096u, 4'096L, 0x1000), and in arithmetic of two, in brackets or not.
CPP_INTEGER = re.compile(
    r"(?<![\w.'])(0[xX][0-9a-fA-F']{1,7}|[0-9][0-9']{0,8})[uUlL]{0,3}(?![\w.'])"
)
CPP_ARITHMETIC = re.compile(r"(?<![\w.])(\d+) *(<<|[-+*/]) *(\d+)(?![\w.])")
CPP_BRACKETS = re.compile(r"(?<!\w)\( *(\d+) *\)")
ARITHMETIC: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.Pow: operator.pow,
}


class KernelFileError(Exception):
    """A kernel file that cannot be judged: its message says what was expected and what came."""


@dataclass(frozen=True)
class KernelFile:
    """What the text of a kernel file says, unexecuted. `backend` is `torch` where no import
    names another. `integers` are the literals in the source, which become test points; `imports`
    the top-level packages that it names."""

    path: Path
    text: str
    op: str
    backend: str
    supports: frozenset[str] = frozenset()
    config: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    integers: frozenset[int] = frozenset()
    imports: frozenset[str] = frozenset()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read(path: Path) -> KernelFile:
    """Read a kernel file without running it. Raises KernelFileError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise KernelFileError(f"{path}: cannot be read: {error}") from error
    return parse(path, text)


def parse(path: Path, text: str) -> KernelFile:
    """What `text`, which may be another revision's, says. Raises KernelFileError."""
    try:
        tree = ast.parse(text, filename=str(path))
    except SyntaxError as error:
        raise KernelFileError(f"{path}:{error.lineno}: syntax error: {error.msg}") from error
    except (ValueError, MemoryError, RecursionError) as error:  # NUL bytes; nested too deeply
        raise KernelFileError(f"{path}: cannot be parsed: {error!r}") from error
    literals = _literals(path, tree)
    op = literals.get("KERNEL_TYPE")
    if not isinstance(op, str):
        came = "nothing" if op is None else repr(op)
        raise KernelFileError(f'{path}: expected KERNEL_TYPE = "<op>", found {came}')
    if not any(_defines(node, "kernel_fn") for node in _unindented(tree.body)):
        raise KernelFileError(f"{path}: expected a function kernel_fn at the top level, found none")
    return KernelFile(
        path=path,
        text=text,
        op=op,
        backend=_backend(tree),
        supports=_names(path, literals.get("SUPPORTS", ())),
        config=_settings(path, "CONFIG", literals),
        space=_settings(path, "SPACE", literals),
        integers=_integers(tree),
        imports=_imports(tree),
    )


def load(path: Path) -> Callable[..., Any]:
    """Run the kernel file and return its `kernel_fn`. Only in the candidate's process."""
    spec = importlib.util.spec_from_file_location("candidate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    kernel_fn: Callable[..., Any] = module.kernel_fn
    return kernel_fn


def _literals(path: Path, tree: ast.Module) -> dict[str, Any]:
    names = {"KERNEL_TYPE", "SUPPORTS", "CONFIG", "SPACE"}
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for name in (name for name in names if _defines(node, name)):
            try:
                found[name] = ast.literal_eval(node.value)
            except (ValueError, TypeError, MemoryError, RecursionError) as error:
                raise KernelFileError(
                    f"{path}:{node.lineno}: {name} must be a literal: what is written there, "
                    "not what is computed or called (1024, not 2**10)"
                ) from error
    return found


def _integers(tree: ast.Module) -> frozenset[int]:
    """The integers that can decide what the kernel does: literals, what is computed of literals
    alone, and those in strings of C++; but not those of a SPACE that nothing reads."""
    read = any(
        isinstance(node, ast.Name) and node.id == "SPACE" and isinstance(node.ctx, ast.Load)
        for node in ast.walk(tree)
    )
    statements = [n for n in tree.body if read or not _defines(n, "SPACE")]
    found: set[int] = set()
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if ";" in node.value:  # as code has it, and a docstring seldom
                found |= _cpp_integers(node.value)
        elif isinstance(node, ast.Constant | ast.BinOp):
            found |= {value} if (value := _folded(node)) is not None else set()
    return frozenset(value for value in found if 2 <= value <= MOST_INTEGER)


def _cpp_integers(text: str) -> set[int]:
    """The integers in C++, and what it computes of them alone."""

    def plain(found: re.Match[str]) -> str:
        digits = found[1].replace("'", "")
        return str(int(digits, 16 if "x" in digits.lower() else 10))

    text = CPP_INTEGER.sub(plain, text)
    values = {int(found[1]) for found in CPP_INTEGER.finditer(text)}
    while True:
        text = CPP_BRACKETS.sub(r"\1", text)
        text, changed = CPP_ARITHMETIC.subn(_computed, text)
        if not changed:
            return values
        values |= {int(found[1]) for found in CPP_INTEGER.finditer(text)}


def _computed(found: re.Match[str]) -> str:
    """The value of C++ arithmetic of two literals; what is none of a size's keeps its first."""
    tree = ast.parse(f"{int(found[1])} {found[2].replace('/', '//')} {int(found[3])}", mode="eval")
    value = _folded(tree.body)
    return found[1] if value is None or value < 0 else str(value)


def _folded(node: ast.AST) -> int | None:
    """The value of a node that is an integer literal, or arithmetic of some."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, float) and node.value.is_integer():
            return int(node.value)
        return node.value if type(node.value) is int else None
    if not isinstance(node, ast.BinOp) or type(node.op) not in ARITHMETIC:
        return None
    left, right = _folded(node.left), _folded(node.right)
    if left is None or right is None or max(abs(left), abs(right)) > MOST_INTEGER:
        return None
    if isinstance(node.op, ast.LShift | ast.Pow) and not 0 <= right <= 20:
        return None
    if isinstance(node.op, ast.FloorDiv) and not right:
        return None
    return int(ARITHMETIC[type(node.op)](left, right))


def _imports(tree: ast.Module) -> frozenset[str]:
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named.add(node.module.partition(".")[0])
    return frozenset(named)


def _names(path: Path, value: object) -> frozenset[str]:
    names = value if isinstance(value, set | list | tuple) else [None]
    if not all(isinstance(name, str) for name in names):
        raise KernelFileError(f"{path}: expected SUPPORTS = {{names}}, found {value!r:.80}")
    return frozenset(names)


def _settings(path: Path, name: str, literals: dict[str, Any]) -> dict[str, Any]:
    value = literals.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise KernelFileError(f"{path}: expected {name} = {{name: value}}, found {value!r:.80}")
    return value


def _defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name == name
    if isinstance(node, ast.Assign):
        return any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name) and node.target.id == name
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any((alias.asname or alias.name) == name for alias in node.names)
    return False


def _unindented(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module's own scope: those within its branches and `try`s too."""
    for node in body:
        yield node
        for part in ("body", "handlers", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                yield from _unindented(getattr(node, part, ()))


def _backend(tree: ast.Module) -> str:
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    for backend, marks in BACKENDS.items():
        if any(name == mark or name.startswith(mark + ".") for name in imported for mark in marks):
            return backend
    return "torch"
