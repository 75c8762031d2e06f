"""What is read from a kernel file's text, without running it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from pytest_autokernel import candidate
from pytest_autokernel.candidate import KernelFile, KernelFileError
from tests.conftest import ROOT

FUNCTION = "def kernel_fn(x):\n    return x\n"


def parsed(*lines: str) -> KernelFile:
    return candidate.parse(Path("k.py"), "\n".join(['KERNEL_TYPE = "softmax"', FUNCTION, *lines]))


def refusal(text: str) -> str:
    with pytest.raises(KernelFileError) as caught:
        candidate.parse(Path("k.py"), text)
    return str(caught.value)


def test_reading_runs_nothing(tmp_path: Path) -> None:
    mark, file = tmp_path / "executed", tmp_path / "k.py"
    opened = f"open({str(mark)!r}, 'w')"
    file.write_text(
        f'KERNEL_TYPE = "softmax"\n{opened}\n\n@{opened}.write\ndef kernel_fn(x={opened}): ...\n'
    )
    assert candidate.read(file).op == "softmax"
    assert not mark.exists()


def test_the_literals_are_read_wherever_they_are_assigned() -> None:
    kernel = parsed(
        'SUPPORTS: set[str] = {"nd", "dim"}', 'CONFIG = {"tile": 64}', 'SPACE = {"tile": [64, 128]}'
    )
    assert kernel.op == "softmax"
    assert kernel.supports == {"nd", "dim"}
    assert (kernel.config, kernel.space) == ({"tile": 64}, {"tile": [64, 128]})


def test_what_is_not_said_is_empty() -> None:
    kernel = parsed()
    assert kernel.supports == set()
    assert (kernel.config, kernel.space) == ({}, {})


def test_the_last_assignment_counts_as_it_does_in_python() -> None:
    assert parsed('KERNEL_TYPE = "reduce"').op == "reduce"


def test_a_literal_may_have_several_names() -> None:
    text = 'OP = KERNEL_TYPE = "softmax"\nSUPPORTS: set\n' + FUNCTION
    assert candidate.parse(Path("k.py"), text).op == "softmax"


def test_only_the_modules_own_assignments_count() -> None:
    assert parsed('def other():\n    KERNEL_TYPE = "reduce"', "SUPPORTS = set()").op == "softmax"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'k.py: expected KERNEL_TYPE = "<op>", found nothing'),
        (FUNCTION, 'k.py: expected KERNEL_TYPE = "<op>", found nothing'),
        (f"KERNEL_TYPE = 3\n{FUNCTION}", 'k.py: expected KERNEL_TYPE = "<op>", found 3'),
        (f"KERNEL_TYPE = name\n{FUNCTION}", "k.py:1: KERNEL_TYPE must be a literal"),
        (f"KERNEL_TYPE = 'a'\nCONFIG = f()\n{FUNCTION}", "k.py:2: CONFIG must be a literal"),
        (f"KERNEL_TYPE = 'a'\nCONFIG = {{'n': 2**10}}\n{FUNCTION}", "not what is computed"),
        ("KERNEL_TYPE = 'a'", "expected a function kernel_fn at the top level, found none"),
        ("KERNEL_TYPE = 'a'\ndef outer():\n    def kernel_fn(x): ...", "kernel_fn at the top"),
        ("KERNEL_TYPE = 'a'\ndef kernel_fn(x)\n", "k.py:2: syntax error: expected ':'"),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_came(text: str, words: str) -> None:
    assert words in refusal(text)


@pytest.mark.parametrize(
    "line",
    [
        "class kernel_fn: ...",
        "kernel_fn = other",
        "kernel_fn: object = other",
        "from x import kernel_fn",
        "import y as kernel_fn",
        "if other:\n    kernel_fn = other\nelse:\n    def kernel_fn(x): ...",
        "try:\n    import y\nexcept ImportError:\n    def kernel_fn(x): ...",
        "with y:\n    def kernel_fn(x): ...",
    ],
)
def test_kernel_fn_may_be_anything_that_can_be_called(line: str) -> None:
    assert candidate.parse(Path("k.py"), f"KERNEL_TYPE = 'a'\n{line}").op == "a"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "bytes.py", tmp_path / "missing.py", tmp_path):
        with pytest.raises(KernelFileError, match="cannot be read"):
            candidate.read(path)


@pytest.mark.parametrize(
    ("line", "backend"),
    [
        ("import torch", "torch"),
        ("import triton", "triton"),
        ("import triton.language as tl", "triton"),
        ("from triton import language", "triton"),
        ("def helper():\n    import triton", "triton"),
        ("import tritonclient", "torch"),
        ("from pytest_autokernel.compile import compile_cpp", "cpp"),
        ("from pytest_autokernel.compile import compile_cpp as cc", "cpp"),
        ("from pytest_autokernel import compile", "cpp"),
        ("import pytest_autokernel.compile as cc", "cpp"),
        ("from pytest_autokernel.cuda import compile_cuda", "cuda"),
        ("import pytest_autokernel.cuda as cuda", "cuda"),
        ("# import triton", "torch"),
    ],
)
def test_the_imports_tell_the_backend(line: str, backend: str) -> None:
    assert parsed(line).backend == backend


def test_the_sources_integers_are_points_to_test_at() -> None:
    kernel = parsed("A = 777", "B = [2, 1, 0, 2**20, -96, 1048576, 1048577, True, 5.0, '64']")
    assert kernel.integers == {2, 5, 20, 96, 777, 1048576}


@pytest.mark.parametrize("written", ["0x309", "777L", "777u", "7'77", "(3 << 8) + 9", "37*21"])
def test_an_integer_of_cpp_is_found_however_it_is_written(written: str) -> None:
    assert 777 in parsed(f'SOURCE = "if (cols == {written}) y[0] = 0;"').integers


def test_a_kernel_is_known_by_its_text() -> None:
    text = f'KERNEL_TYPE = "softmax"\n{FUNCTION}'
    kernel = candidate.parse(Path("k.py"), text)
    assert kernel.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert kernel.sha256 != candidate.parse(Path("k.py"), text + "\n").sha256


KERNELS = sorted(ROOT.glob("kernels/*/*.py"))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_reading_agrees_with_running(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "candidate", None)  # restored afterwards
    kernel, names = candidate.read(path), candidate.load(path).__globals__
    assert kernel.op == names["KERNEL_TYPE"]
    assert kernel.supports == names.get("SUPPORTS", set())
    assert kernel.config == names.get("CONFIG", {})
    assert kernel.space == names.get("SPACE", {})


@pytest.mark.parametrize(
    "line",
    [
        "SUPPORTS = 5",
        "SUPPORTS = 'dim'",
        "SUPPORTS = {1}",
        "SUPPORTS = [[]]",
        "CONFIG = 3",
        "CONFIG = {[]: 1}",
        "CONFIG = {1: 2}",
        "SPACE = [1]",
        "x = '\0'",
        "x = " + "-" * 100_000 + "1",
        "x = " + "+".join(["1"] * 20_000),
    ],
    ids=lambda line: line[:16],
)
def test_what_cannot_be_meant_is_refused_and_breaks_nothing_else(line: str) -> None:
    refusal(f'KERNEL_TYPE = "softmax"\n{FUNCTION}{line}')


def test_a_byte_order_mark_is_no_syntax_error(tmp_path: Path) -> None:
    file = tmp_path / "k.py"
    file.write_text(f'KERNEL_TYPE = "softmax"\n{FUNCTION}', encoding="utf-8-sig")
    assert candidate.read(file).op == "softmax"


def test_the_integers_of_a_source_are_those_that_can_decide_something() -> None:
    text = '''
"""A docstring that says 555."""
KERNEL_TYPE = "a"
SPACE = {"block": [4321]}
SOURCE = "for (long i = cols == 777; i < 99999999; i++) y[i] = 0.125f * x[16 * i];"
def kernel_fn(x):
    return x if x.shape[0] >= 1 << 13 else x[: 3 * 50 - 1] ** 2.0 ** (10**40)
'''
    found = candidate.parse(Path("k.py"), text).integers
    assert {777, 16, 13, 8192, 3, 50, 150, 149, 2, 10, 40} == found
    assert 4321 in candidate.parse(Path("k.py"), text + "kernel_fn.space = SPACE\n").integers
