"""Compiling a kernel file's C++: what is built, cached, and said when it cannot be."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pytest_autokernel import compile as compiling
from pytest_autokernel.compile import CompileError, compile_cpp

SCALE = 'extern "C" int scaled(int n) { return FACTOR * n; }'

BROKEN = """
#include <cstdint>

extern "C" int64_t f(int64_t n) {
    return n + missing;
}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUTOKERNEL_CACHE_DIR", str(folder))
    return folder


def line_of(text: str) -> int:
    """The line of this file that starts with `text`."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.startswith(text))


def test_a_define_reaches_the_source() -> None:
    assert compile_cpp(SCALE, defines={"FACTOR": 3}).scaled(14) == 42


def test_flags_come_after_the_default_ones() -> None:
    source = 'extern "C" int standard() { return __cplusplus / 100; }'
    assert compile_cpp(source).standard() == 2017
    assert compile_cpp(source, flags=["-std=c++14"]).standard() == 2014


def test_the_same_text_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_cpp(SCALE, defines={"FACTOR": 3})
    monkeypatch.setattr(compiling, "_build", None)
    assert compile_cpp(SCALE, defines={"FACTOR": 3}).scaled(1) == 3
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"source": SCALE + "//"},
        {"defines": {"FACTOR": 4}},
        {"flags": ["-g"]},
    ],
)
def test_whatever_decides_the_code_decides_the_file(cache: Path, change: dict[str, Any]) -> None:
    first: dict[str, Any] = {"source": SCALE, "defines": {"FACTOR": 3}}
    compile_cpp(**first)
    compile_cpp(**{**first, **change})
    assert len(list(cache.iterdir())) == 2


def test_another_compiler_version_compiles_afresh(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_cpp(SCALE, defines={"FACTOR": 3})
    monkeypatch.setattr(compiling, "_version", lambda compiler: "another")
    compile_cpp(SCALE, defines={"FACTOR": 3})
    assert len(list(cache.iterdir())) == 2


def test_an_error_names_the_line_of_the_kernel_file() -> None:
    with pytest.raises(CompileError, match="missing") as caught:
        compile_cpp(BROKEN)
    expected = line_of("    return n + missing;")
    assert (caught.value.file, caught.value.line) == (__file__, expected)
    assert f"{__file__}:{expected}:" in str(caught.value)


def test_an_error_in_text_that_was_put_together_counts_its_own_lines() -> None:
    with pytest.raises(CompileError) as caught:
        compile_cpp(BROKEN.replace("missing", "absent"))
    assert (caught.value.file, caught.value.line) == ("<source>", 5)


def test_what_does_not_compile_leaves_nothing_behind(cache: Path) -> None:
    with pytest.raises(CompileError):
        compile_cpp(BROKEN)
    assert list(cache.iterdir()) == []


def test_no_compiler_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match=r"found none on PATH=.*install one"):
        compile_cpp(SCALE)


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(CompileError, match="CXX='no-such-compiler -v'"):
        compile_cpp(SCALE)


def test_the_environment_chooses_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -DFACTOR=5")
    assert compile_cpp(SCALE).scaled(1) == 5


def test_processes_may_race(cache: Path) -> None:
    program = textwrap.dedent(f"""
        from pytest_autokernel.compile import compile_cpp
        print(compile_cpp({SCALE!r}, defines={{"FACTOR": 7}}).scaled(6))
    """)
    racers = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [racer.communicate()[0] for racer in racers] == ["42\n"] * 4
    assert len(list(cache.iterdir())) == 1


def test_importing_it_does_not_import_torch() -> None:
    program = "import sys, pytest_autokernel.compile; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


def test_a_library_is_a_plain_ctypes_one() -> None:
    assert isinstance(compile_cpp(SCALE, defines={"FACTOR": 1}), ctypes.CDLL)
