"""Which kernels are the same where they are timed, and what they take, found out without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_autokernel import plan
from pytest_autokernel.binaries import Binary, binary, target_of, wrapper
from pytest_autokernel.candidate import parse
from pytest_autokernel.gpu import Device
from pytest_autokernel.judge import Judge
from tests.conftest import ROOT
from tests.test_cuda import compiles

pytest.importorskip("triton")

SOFTMAX = (ROOT / "kernels/triton/softmax.py").read_text()
CPP = (ROOT / "kernels/cpp/softmax.py").read_text()
CUDA = (ROOT / "kernels/cuda/softmax.py").read_text()
H100 = {"capability": 90, "sms": 132, "shared_bytes": 232_448}


def compiled(judge: Judge, text: str, shared_bytes: int | None = 232_448) -> Binary:
    kernel = parse(Path("k.py"), text)
    op, target = judge.op("softmax"), "cpu" if kernel.backend == "cpp" else "cuda"
    cases = plan.timed_cases(op, target)  # type: ignore[arg-type]
    return binary(judge, kernel, op, cases, {**H100, "shared_bytes": shared_bytes})


def of(judge: Judge, text: str) -> str | None:
    return compiled(judge, text).digest


def changed(old: str, new: str, text: str = SOFTMAX) -> str:
    assert old in text
    return text.replace(old, new)


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


CPP_CALL = "        compiled(x.dtype)(rows.data_ptr(), y.data_ptr(), rows.numel() // cols, cols)\n"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("total", "denominator", True),
        ("// To nearest", "// A comment longer by\n// a line. To nearest", True),
        ("1.44269504f", "1.44269f", False),
        ("softmax_row", "row_of_softmax", False),
        ('"block": 1}', '"block": 4}', False),
        (CPP_CALL, CPP_CALL * 2, False),
        ("y = torch.empty_like(rows)", "y = torch.zeros_like(rows)", False),
        ("SOURCE, defines=", "SOURCE, flags=['-O1'], defines=", False),
    ],
    ids=lambda value: " ".join(str(value).split())[:20],
)
def test_of_cpp_the_loaded_bytes_and_the_python_around_it_make_the_difference(
    judge: Judge, old: str, new: str, same: bool
) -> None:
    first = of(judge, CPP)
    assert first is not None
    other = of(judge, changed(old, new, CPP))
    assert other is not None
    assert (other == first) is same


SOURCES = """
KERNEL_TYPE = "softmax"
SOURCE = "int f;"
library = compile_cpp(SOURCE)
"""


def test_a_source_that_python_reads_is_a_part_of_the_python() -> None:
    def differ(text: str, compiled: set[str]) -> bool:
        other = text.replace("int f;", "int g;")
        return wrapper(text, compiled) != wrapper(other, {"int g;" if compiled else ""})

    assert not differ(SOURCES, {"int f;"})
    assert differ(SOURCES, set())  # it was not compiled in any timed case
    assert differ(SOURCES + "tile = len(SOURCE)\n", {"int f;"})
    assert differ(SOURCES.replace("(SOURCE)", "(SOURCE + other)"), {"int f;"})


def test_a_kernel_that_reads_what_its_cpp_says_is_not_known(judge: Judge) -> None:
    assert of(judge, changed("function.restype = None", "pass", CPP)) is None
    line = "    cols = rows.shape[-1]\n"
    assert (
        of(judge, changed(f"    {line}", f"    {line}        rows.data_ptr() % 64\n", CPP)) is None
    )


def test_a_kernel_says_what_it_takes_and_one_that_takes_too_much_is_refused(judge: Judge) -> None:
    found = compiled(judge, SOFTMAX)
    assert found.unfit is None
    assert found.resources
    most = max(one["shared_bytes"] for one in found.resources)
    assert all(one["registers"] > 0 and one["local_bytes"] == 0 for one in found.resources)
    small = compiled(judge, SOFTMAX, shared_bytes=most - 1)
    assert small.digest is None
    assert small.unfit is not None
    assert (small.unfit.verdict, small.unfit.case.dtype) == ("FAIL", "bf16")
    assert f"OutOfResources: out of resource: shared memory, Required: {most}" in str(
        small.unfit.reason
    )


def test_what_is_compiled_is_what_runs_on_a_gpu(judge: Judge) -> None:
    """Where there is none these kernels widen to fp32, which takes no tensor core."""
    text = (ROOT / "kernels/triton/matmul.py").read_text()
    kernel, op = parse(Path("k.py"), text), judge.op("matmul")
    found = binary(judge, kernel, op, plan.timed_cases(op, "cuda"), H100)
    assert found.digest is not None
    code = [file.read_text() for file in judge.compiled(kernel.sha256).rglob("*.ptx")]
    assert code
    assert all("wgmma.mma_async" in ptx for ptx in code)


def test_a_kernel_that_has_an_answer_to_too_little_shared_memory_is_not_refused(
    judge: Judge,
) -> None:
    text = SOFTMAX.replace("def kernel_fn(", "def first(") + HANDLES
    assert compiled(judge, text, shared_bytes=0).unfit is None


HANDLES = """

def kernel_fn(x, dim=-1):
    try:
        return first(x, dim)
    except triton.runtime.errors.OutOfResources:
        return torch.empty_like(x)
"""


@compiles
def test_of_cuda_cpp_the_same_is_known(judge: Judge) -> None:
    first = compiled(judge, CUDA)
    assert first.digest is not None
    assert first.resources
    assert {one["local_bytes"] for one in first.resources} == {0}
    assert of(judge, changed("scale", "factor", CUDA)) == first.digest
    assert of(judge, changed("// e^(x - top), 0 where", "// Zero\n// where", CUDA)) == first.digest
    for old, new in (("1.44269504f", "1.44f"), ("    return y\n", "    return y.zero_()\n")):
        assert of(judge, changed(old, new, CUDA)) not in (None, first.digest)
    most = max(one["shared_bytes"] for one in first.resources)
    unfit = compiled(judge, CUDA, shared_bytes=most - 1).unfit
    assert unfit is not None
    assert f"needs {most:,} bytes of shared memory" in str(unfit.reason)


@pytest.mark.parametrize(
    "text",
    [
        changed("    x = x.contiguous()\n", "    float(x.sum())\n"),
        changed("    x = x.contiguous()\n", "    return torch.softmax(x, dim)\n"),
        changed("    x = x.contiguous()\n", "    import os; os._exit(0)\n"),
        changed("    x = x.contiguous()\n", "    assert x.device.type == 'meta'\n"),
        changed('SUPPORTS = {"dim", "nd"}', 'raise SystemExit("no")'),
    ],
    ids=["reads a value", "launches nothing", "exits", "asks where", "does not load"],
)
def test_what_cannot_be_known_beforehand_is_not(judge: Judge, text: str) -> None:
    assert of(judge, text) is None


def test_it_is_known_of_gpus_that_triton_compiles_for() -> None:
    assert target_of(Device("NVIDIA H200", "9.0", 1, 132, 1, shared_bytes=232_448)) == H100
    assert target_of(Device("AMD Instinct MI300X", "gfx942", 1, 1, 1)) is None
    assert target_of(None) is None
