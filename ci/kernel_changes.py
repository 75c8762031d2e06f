"""Which kernels a change touches: those whose files differ between two revisions, and those whose
op's reference does."""

from __future__ import annotations

import ast
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import git

from pytest_autokernel.candidate import KernelFileError, parse
from pytest_autokernel.compile import CompileError, find_compiler


@dataclass(frozen=True)
class Change:
    """One kernel file of HEAD, or of BASE where HEAD has none any more, and what became of it."""

    path: str
    what: str  # added, changed, deleted, renamed, or: reference changed
    base_path: str | None = None

    def __str__(self) -> str:
        renamed = self.base_path is not None and self.base_path != self.path
        return f"{self.what} from {self.base_path}" if renamed else self.what


def is_kernel_file(path: str) -> bool:
    """Whether pytest --autokernel judges the file as a kernel, by its place alone."""
    parts = PurePosixPath(path)
    special = parts.name in {"conftest.py", "__init__.py"} or parts.name.startswith("_")
    return parts.suffix == ".py" and "kernels" in parts.parts[:-1] and not special


def changes(base: git.Commit, head: git.Commit) -> list[Change]:
    """The kernels to be judged: those whose files differ, and those whose op's reference does."""
    found: dict[str, Change] = {}
    ops: set[str] = set()
    for diff in base.diff(head, M=True):
        old, new = diff.a_path or "", diff.b_path or ""
        for path in (old, new):
            if PurePosixPath(path).parent == PurePosixPath("reference"):
                ops.add(PurePosixPath(path).stem)
        was, there = is_kernel_file(old), is_kernel_file(new)
        if there and (not was or diff.new_file):
            found[new] = Change(new, "added")
        elif was and (not there or diff.deleted_file):
            found[old] = Change(old, "deleted")
        elif was and there:
            found[new] = Change(new, "renamed" if diff.renamed_file else "changed", old)
    for blob in head.tree.traverse():
        path = str(getattr(blob, "path", ""))
        if ops and is_kernel_file(path) and path not in found and _op(path, head) in ops:
            found[path] = Change(path, "reference changed")
    return sorted(found.values(), key=lambda change: change.path)


def _op(path: str, commit: git.Commit) -> str | None:
    try:
        return parse(Path(path), text(commit, path)).op
    except KernelFileError:
        return None


def text(commit: git.Commit, path: str) -> str:
    content: bytes = (commit.tree / path).data_stream.read()
    return content.decode("utf-8", errors="replace")


@contextmanager
def checked_out(repo: git.Repo, commit: git.Commit) -> Iterator[tuple[Path, Path]]:
    """A work tree at a commit and an empty folder beside it; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="autokernel-gate-") as folder:
        worktree, scratch = Path(folder, "head"), Path(folder, "scratch")
        scratch.mkdir()
        without_hooks = ("git", "-c", "core.hooksPath=/dev/null")
        add = ("worktree", "add", "--detach", str(worktree), commit.hexsha)
        repo.git.execute([*without_hooks, *add])
        try:
            yield worktree, scratch
        finally:
            repo.git.worktree("remove", "--force", str(worktree))


def same_code(one: str, other: str) -> bool:
    """Whether two texts differ in comments and blanks alone, those of C++ in strings too: where
    nothing can be compiled, this can be told all the same."""
    try:
        dumps = [ast.dump(_Bare().visit(ast.parse(text))) for text in (one, other)]
    except (SyntaxError, ValueError, RecursionError):
        return False
    return dumps[0] == dumps[1]


class _Bare(ast.NodeTransformer):
    """Takes the comments out of C++ source."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if not isinstance(node.value, str) or "#include" not in node.value:
            return node
        return ast.Constant(_bare(node.value))


def same_python(one: str, other: str) -> bool:
    """Whether two texts differ in nothing that Python itself runs: in the bodies of Triton kernels,
    or in sources that are strings, alone. Then the change has no code of its own in the process
    that tells what the kernel compiles to, and none that could lie."""
    try:
        dumps = [ast.dump(_Wrapper().visit(ast.parse(text))) for text in (one, other)]
    except (SyntaxError, ValueError, RecursionError):
        return False
    return dumps[0] == dumps[1]


class _Wrapper(ast.NodeTransformer):
    """Takes out what is compiled."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        named = all(isinstance(target, ast.Name) for target in node.targets)
        if named and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Assign(node.targets, ast.Constant(""))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        makers = [by.func if isinstance(by, ast.Call) else by for by in node.decorator_list]
        if any(ast.unparse(maker) == "triton.jit" for maker in makers):
            node.body = []
        return node


def _bare(source: str) -> str:
    """C++ as its compiler sees it, nothing expanded and nothing included. Without a compiler, or
    where that refuses it, as it is."""
    try:
        strip = [*find_compiler(), "-x", "c++", "-fpreprocessed", "-dD", "-E", "-P", "-"]
    except CompileError:
        return source
    done = subprocess.run(strip, input=source, capture_output=True, text=True, check=False)
    lines = (" ".join(line.split()) for line in done.stdout.splitlines())
    return source if done.returncode else "\n".join(line for line in lines if line)
