"""What every shipped kernel file must hold, before any judge looks at it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_autokernel import candidate
from tests.test_ops import OPS

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "kernels").glob("*/*.py"))
RUN = [path for path in FILES if path.parent.name != "cuda"]  # what runs without a GPU
KERNELS = {f"{path.parent.name}/{path.stem}": candidate.read(path) for path in FILES}


@pytest.fixture(scope="module")
def reasons() -> dict[str, str | None]:
    program = [sys.executable, "-m", "tests.compared_kernels", *map(str, RUN)]
    found: dict[str, str | None] = json.loads(subprocess.check_output(program, cwd=ROOT))
    return found


@pytest.mark.parametrize(
    "case",
    [
        f"{name}-{variant}-{dtype}"
        for name, kernel in KERNELS.items()
        if kernel.backend != "cuda"
        for dtype in OPS[kernel.op].dtypes
        for variant in OPS[kernel.op].claimed(kernel.supports)
    ],
)
def test_kernels_are_right(case: str, reasons: dict[str, str | None]) -> None:
    assert reasons[case] is None


def test_kernels_are_right_by_tma_too() -> None:
    program = [sys.executable, "-m", "tests.tma_kernels"]
    found = json.loads(subprocess.check_output(program, cwd=ROOT))
    assert set(found) == {"matmul", "flash_attention", "fused_mlp"}
    assert all(reasons for reasons in found.values())
    assert {case: why for reasons in found.values() for case, why in reasons.items() if why} == {}


@pytest.mark.parametrize("backend", ["triton", "cuda", "cpp"])
def test_every_op_has_its_kernel(backend: str) -> None:
    assert {name for name in KERNELS if name.startswith(f"{backend}/")} == {
        f"{backend}/{op}" for op in OPS
    }


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_file_is_what_its_place_says(name: str) -> None:
    kernel = KERNELS[name]
    assert f"{kernel.backend}/{kernel.op}" == name
    assert kernel.supports == set(OPS[kernel.op].extensions)


@pytest.mark.parametrize("name", KERNELS)
def test_the_configuration_lies_in_its_space(name: str) -> None:
    config, space = KERNELS[name].config, dict(KERNELS[name].space)
    rules = space.pop("rules", [])
    assert set(config) == set(space)
    assert all(config[axis] in values for axis, values in space.items())
    assert all(eval(rule, {"__builtins__": {}}, config) for rule in rules)
