"""The gate's program itself, on real commits: what blocks, what passes, what it refuses to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import git
import pytest

from tests.conftest import ROOT, Commit

TRIES = 3
# Each addition waits for the one before it, whatever else the core and its caches have to do: so
# that 4.2 of them for each element, and not 4, take 5 % longer.
SUM = '''"""Row sums, one element after the other, in double precision."""

import ctypes
import functools

import torch

from pytest_autokernel.compile import compile_cpp

KERNEL_TYPE = "reduce"
SOURCE = r"""
extern "C" void sum_rows(const float* x, float* y, long rows, long cols, double nothing) {
    for (long r = 0; r < rows; r++) {
        double total = 0;
        for (long i = 0; i < cols; i++) total += x[r * cols + i];
        for (long i = 0; i < 3 * cols; i++) total += nothing;
        y[r] = total;
    }
}
"""


@functools.cache
def compiled():
    function = compile_cpp(SOURCE).sum_rows
    function.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 2 + [ctypes.c_double]
    function.restype = None
    return function


def kernel_fn(x, dim=-1):
    rows = x.float().contiguous()
    y = torch.empty(len(rows))
    compiled()(rows.data_ptr(), y.data_ptr(), *rows.shape, -0.0)
    return y.to(x.dtype)
'''
STEPS, MORE_STEPS = "i < 3 * cols;", "i < 3 * cols + cols / 5;"


def run_gate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program itself. Of the stages smoke alone is asked for, beside the timing."""
    command = [sys.executable, str(ROOT / "ci" / "gate.py"), "--json", "gate.json"]
    command += ["--markdown", "gate.md", *arguments, "--", "-k", "smoke or roofline"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_slower_kernel_blocks_and_one_that_compiles_to_the_same_is_not_timed(
    commit: Commit, tmp_path: Path
) -> None:
    half = SUM.replace(STEPS, "i < cols;")
    base = commit({"kernels/sum.py": half})
    same = commit({"kernels/sum.py": half.replace("total", "all_of_them")})
    slow = commit({"kernels/sum.py": SUM})
    done = run_gate(tmp_path, base.hexsha, same.hexsha)
    assert done.returncode == 0, done.stdout
    assert "gate: passed" in done.stdout
    (kernel,) = json.loads((tmp_path / "gate.json").read_text())["kernels"]
    assert (kernel["outcome"], kernel["timings"]) == ("RIGHT", [])
    assert kernel["reason"] == "the same binary in every timed case as in the base"
    done = run_gate(tmp_path, same.hexsha, slow.hexsha)
    assert done.returncode == 1, done.stdout
    assert "FAILED kernels/sum.py::roofline[large-fp32]" in done.stdout
    assert re.search(r"^FAIL: SLOWER: 0\.\d+ times the baseline's speed", done.stdout, re.MULTILINE)
    found = json.loads((tmp_path / "gate.json").read_text())
    assert (found["base"], found["head"], found["exit_code"]) == (same.hexsha, slow.hexsha, 1)
    (kernel,) = found["kernels"]
    assert kernel["outcome"] == "SLOWER"
    assert kernel["timings"][0]["comparisons"]["baseline"]["high"] < 0.9
    assert (tmp_path / "gate.md").read_text().count("### Kernels") == 2
    worktrees = git.Repo(tmp_path).git.worktree("list").splitlines()
    assert len(worktrees) == 1


@pytest.fixture
def decided(commit: Commit, tmp_path: Path) -> Callable[[str, str], tuple[int, Any, str]]:
    """The gate's exit code where a piece of SUM is replaced by another, what it says of the kernel,
    and what it prints; by a machine that is quiet enough to tell."""

    def decided(old: str, new: str) -> tuple[int, Any, str]:
        assert old in SUM
        base = commit({"kernels/sum.py": SUM}).hexsha
        head = commit({"kernels/sum.py": SUM.replace(old, new)}).hexsha
        for _ in range(TRIES):
            done = run_gate(tmp_path, base, head)
            (kernel,) = json.loads((tmp_path / "gate.json").read_text())["kernels"]
            if (kernel["outcome"], done.returncode) != ("UNDECIDED", 0):
                return done.returncode, kernel, done.stdout
        pytest.skip(f"other processes keep this machine's cores busy: UNDECIDED {TRIES} times")

    return decided


@pytest.mark.alone
def test_a_slowdown_of_5_percent_blocks(
    decided: Callable[[str, str], tuple[int, Any, str]],
) -> None:
    code, kernel, said = decided(STEPS, MORE_STEPS)
    assert (code, kernel["outcome"]) == (1, "SLOWER"), said
    assert "FAILED kernels/sum.py::roofline[large-fp32]" in said
    (timing,) = kernel["timings"]
    assert timing["comparisons"]["baseline"]["ratio"] == pytest.approx(1 / 1.05, abs=0.012)


@pytest.mark.alone
def test_a_refactoring_passes(decided: Callable[[str, str], tuple[int, Any, str]]) -> None:
    code, kernel, said = decided("sum_rows", "sums_of_rows")
    assert (code, kernel["outcome"]) == (0, "SAME"), said
    assert kernel["timings"]


@pytest.mark.parametrize(
    ("revisions", "words"),
    [
        (("HEAD", "nowhere"), "expected a git revision, got 'nowhere'"),
        (("0" * 40, "HEAD"), "expected a git revision"),
    ],
)
def test_a_revision_that_is_not_there_is_named(
    commit: Commit, tmp_path: Path, revisions: tuple[str, str], words: str
) -> None:
    commit({"kernels/sum.py": SUM})
    done = run_gate(tmp_path, *revisions)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_judged(
    commit: Commit, tmp_path: Path
) -> None:
    commit({"kernels/sum.py": SUM})
    done = run_gate(tmp_path, "HEAD", "HEAD", "--markdown", str(tmp_path / "none" / "a.md"))
    assert done.returncode == 2
    assert "cannot be written: expected a folder" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_without_a_compiler_the_gate_stays_shut(
    commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    base = commit({"kernels/sum.py": SUM})
    changed = commit({"kernels/sum.py": SUM.replace(STEPS, MORE_STEPS)})
    renamed = commit({"kernels/sum.py": SUM.replace(STEPS, MORE_STEPS) + "# more\n"})
    for before, after in ((base, changed), (changed, renamed)):
        done = run_gate(tmp_path, before.hexsha, after.hexsha)
        assert done.returncode == 2, done.stdout
        (kernel,) = json.loads((tmp_path / "gate.json").read_text())["kernels"]
        assert kernel["outcome"] == "NOT MEASURED"
        assert "expected a C++ compiler" in kernel["reason"]
        (row,) = re.findall(r"^kernels/sum\.py +(?:changed|added) .*", done.stdout, re.MULTILINE)
        assert len(row) > 80  # no terminal: nothing is to be narrowed to one


def test_outside_of_a_repository_it_says_so(tmp_path: Path) -> None:
    done = run_gate(tmp_path, "HEAD", "HEAD")
    assert done.returncode == 2
    assert "expected a git repository" in " ".join(done.stderr.split())


def test_a_change_that_touches_no_kernel_passes(commit: Commit, tmp_path: Path) -> None:
    base, head = commit({"a.txt": "1"}), commit({"a.txt": "2"})
    done = run_gate(tmp_path, base.hexsha, head.hexsha)
    assert done.returncode == 0
    assert json.loads((tmp_path / "gate.json").read_text())["kernels"] == []
