"""Finding ops: one file each in a `reference/` folder, loaded by path and never by name.

The shipped folder comes first, the user's own second; for the same file name the user's wins.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from pytest_autokernel.op import Op

_PACKAGE = Path(__file__).resolve().parent
# Installed, the data lies in our package; in a source tree it lies beside it.
SHIPPED = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent


class OpError(Exception):
    """An op that is unknown, or a reference file that defines none."""


def op_files(rootdir: Path) -> dict[str, Path]:
    """Op name -> its reference file, the user's own before the shipped."""
    folders = (SHIPPED / "reference", rootdir / "reference")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("[!_]*.py"))}


def overridden(rootdir: Path) -> list[str]:
    """The shipped ops that the user's repository replaces by another text."""
    return [
        name
        for name, file in op_files(rootdir).items()
        if (ours := SHIPPED / "reference" / file.name).exists()
        and file != ours
        and file.read_bytes() != ours.read_bytes()
    ]


def load_op(name: str, files: dict[str, Path]) -> Op:
    """The op called `name`. Raises OpError."""
    if name not in files:
        known: Sequence[str] = sorted(files)
        raise OpError(
            f"no op called {name!r}: expected one of {', '.join(known)}; "
            f"add reference/{name}.py, or correct KERNEL_TYPE"
        )
    spec = importlib.util.spec_from_file_location(f"autokernel_reference_{name}", files[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's: it may raise whatever it likes
        raise OpError(f"{files[name]}: raised {type(error).__name__}: {error}") from error
    op = getattr(module, "OP", None)
    if not isinstance(op, Op) or op.name != name:
        raise OpError(f"{files[name]}: expected OP = Op(name={name!r}, ...), found OP={op!r:.80}")
    return op
