"""Kernels with planted work, by benchmarks/error_rates.py: as right as they were and slower."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pytest_autokernel import candidate
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import Verdict

ROOT = Path(__file__).parents[1]
# The C++ kernels that go row by row, and small inputs of each.
INPUTS = {
    "softmax": [torch.randn(40, 70)],
    "reduce": [torch.randn(40, 70)],
    "rmsnorm": [torch.randn(40, 70), torch.randn(70)],
    "layernorm": [torch.randn(40, 70), torch.randn(70), torch.randn(70)],
    "cross_entropy": [torch.randn(40, 70), torch.arange(40)],
    "rotary_embedding": [torch.randn(2, 4, 5, 70), torch.randn(5, 35), torch.randn(5, 35)],
}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "benchmark_of_error_rates", ROOT / "benchmarks" / "error_rates.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("percent", [0, 10, 150])
def test_a_planted_kernel_computes_the_same(
    program: ModuleType, name: str, percent: int, tmp_path: Path
) -> None:
    path = ROOT / "kernels" / "cpp" / f"{name}.py"
    text = path.read_text()
    changed = tmp_path / path.name
    changed.write_text(program.with_more_rows(text, percent))
    assert changed.read_text().count(f"* {percent} / 100") == 2
    expected, got = (candidate.load(file)(*INPUTS[name]) for file in (path, changed))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["softmax", "cross_entropy", "matmul"])
def test_a_planted_triton_kernel_is_right_too(
    program: ModuleType, name: str, judge: Judge, tmp_path: Path
) -> None:
    text = (ROOT / "kernels" / "triton" / f"{name}.py").read_text()
    kernel = candidate.parse(tmp_path / "k.py", program.with_more_steps(text, 37))
    op = judge.op(name)
    (smallest, *_) = sorted(op.sizes.values(), key=lambda dims: op.cost(dims, 1).bytes)
    with closing(WorkerSubject(judge, kernel)) as subject:
        found = judge.check(subject, op, Case("small", smallest, "fp32"))
    assert found.verdict is Verdict.PASS, found.reason


def test_a_kernel_without_the_loops_is_refused(program: ModuleType) -> None:
    with pytest.raises(Exception, match=r"expected a C\+\+ kernel written like ours"):
        program.with_more_rows("KERNEL_TYPE = 'softmax'", 10)
