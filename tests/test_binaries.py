"""Which Triton kernels are the same where they are timed, found out without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_autokernel import plan
from pytest_autokernel.binaries import binary, target_of
from pytest_autokernel.candidate import parse
from pytest_autokernel.gpu import Device
from pytest_autokernel.judge import Judge
from tests.conftest import ROOT

pytest.importorskip("triton")

SOFTMAX = (ROOT / "kernels/triton/softmax.py").read_text()
H100 = ("cuda", 90, 32)


def of(judge: Judge, text: str) -> str | None:
    op = judge.op("softmax")
    return binary(judge, parse(Path("k.py"), text), op, plan.timed_cases(op, "cuda"), H100)


def changed(old: str, new: str) -> str:
    assert old in SOFTMAX
    return SOFTMAX.replace(old, new, 1)


def test_settings_that_do_not_count_where_it_is_timed_make_no_difference(judge: Judge) -> None:
    first = of(judge, SOFTMAX)
    assert first is not None
    assert of(judge, changed('"lanes_odd": 512', '"lanes_odd": 256')) == first
    assert of(judge, f"# a line more, which moves all others\n{SOFTMAX}") == first
    assert list(judge.compiled(parse(Path("k.py"), SOFTMAX).sha256).rglob("*.cubin"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"per_thread": 16', '"per_thread": 32'),
        ('"tile": 1024', '"tile": 8192'),
        ("y = torch.empty_like(x)", "y = torch.zeros_like(x)"),
    ],
    ids=["other warps", "another grid", "another operator"],
)
def test_whatever_is_done_otherwise_makes_one(judge: Judge, old: str, new: str) -> None:
    other = of(judge, changed(old, new))
    assert other is not None
    assert other != of(judge, SOFTMAX)


@pytest.mark.parametrize(
    "text",
    [
        changed("    x = x.contiguous()\n", "    float(x.sum())\n"),
        changed("    x = x.contiguous()\n", "    return torch.softmax(x, dim)\n"),
        changed("    x = x.contiguous()\n", "    import os; os._exit(0)\n"),
        changed('SUPPORTS = {"dim", "nd"}', 'raise SystemExit("no")'),
        (ROOT / "kernels/cpp/softmax.py").read_text(),
    ],
    ids=["reads a value", "launches nothing", "exits", "does not load", "C++"],
)
def test_what_cannot_be_known_beforehand_is_not(judge: Judge, text: str) -> None:
    assert of(judge, text) is None


def test_it_is_known_of_gpus_that_triton_compiles_for() -> None:
    assert target_of(Device("NVIDIA H200", "9.0", 1, 1, 1)) == H100
    assert target_of(Device("AMD Instinct MI300X", "gfx942", 1, 1, 1)) is None
    assert target_of(None) is None
