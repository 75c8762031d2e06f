"""What every kernel's optimiser is told: `program.md`, and the op's reference."""

from __future__ import annotations

from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "program.md"


def program_text() -> str:
    return PROGRAM.read_text(encoding="utf-8")


def reference_text(op: str, root: Path) -> str:
    """The file that defines an op: that of the repository in `root` before the shipped one."""
    from pytest_autokernel.ops import op_files  # a ledger is read without it

    file = op_files(root).get(op)
    return file.read_text(encoding="utf-8") if file else ""
