"""compute-sanitizer itself, on a CUDA GPU: what each tool finds that results do not show."""

from __future__ import annotations

import json

import pytest

from pytest_autokernel import sanitizer
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(sanitizer.find() is None, reason="no compute-sanitizer on this machine"),
]

THOROUGH = (
    *("--autokernel", "--autokernel-device=cuda", "--autokernel-effort=thorough"),
    *("-p", "no:randomly", "--autokernel-json=o", "--autokernel-allow=*"),
)
# All three are right, to the last bit of every result.
ROWS = '''
"""Rows held whole."""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"


@triton.jit
def rows(x, y, scratch, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < n
    v = tl.load(x + tl.program_id(0) * n + at, mask=MASK, other=0.0).to(tl.float32)
    LOOK
    v = tl.where(inside, v, float("-inf"))
    e = tl.exp(v - tl.max(v))
    tl.store(y + tl.program_id(0) * n + at, e / tl.sum(e), mask=inside)


def kernel_fn(x, dim=-1):
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        n = x.shape[-1]
        block = triton.next_power_of_2(n)
        scratch = torch.empty(block, device=x.device)
        rows[(x.numel() // n,)](x, y, scratch, n, BLOCK=block)
    return y
'''
LOOK = "v = tl.where(tl.load(scratch + at) == 12345.678, v + 1, v)"
RACES = '''
"""A launch beside the result whose threads read what others may not have written yet."""

import ctypes
import os
import subprocess
import tempfile

import torch

KERNEL_TYPE = "softmax"
SOURCE = """
__global__ void racy(float *y) {
    __shared__ float s[256];
    s[threadIdx.x] = threadIdx.x;
    float other = s[255 - threadIdx.x];
    if (other == 12345.678f) y[0] = other;
}
extern "C" void run(float *y) { racy<<<1, 256>>>(y); }
"""
folder = tempfile.mkdtemp()
with open(f"{folder}/racy.cu", "w") as file:
    file.write(SOURCE)
nvcc = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
subprocess.run([nvcc, "-arch=native", "-shared", "-Xcompiler", "-fPIC", "-o", f"{folder}/racy.so",
                f"{folder}/racy.cu"], check=True)
racy = ctypes.CDLL(f"{folder}/racy.so")


def kernel_fn(x, dim=-1):
    y = torch.softmax(x.float(), dim)
    if y.numel():
        racy.run(ctypes.c_void_p(y.data_ptr()))
    return y.to(x.dtype)
'''
FAULTY = {
    "reads_beyond": (
        ROWS.replace("MASK", "at < BLOCK").replace("LOOK", "pass"),
        "memcheck",
        "Invalid __global__ read of size",
    ),
    "reads_unwritten": (
        ROWS.replace("MASK", "inside").replace("LOOK", LOOK),
        "initcheck",
        "Uninitialized __global__ memory read of size",
    ),
    "races": (RACES, "racecheck", "Race reported between Write access at racy"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_each_tool_finds_what_no_result_shows_and_the_others_pass(
    foreign: pytest.Pytester, name: str
) -> None:
    text, tool, words = FAULTY[name]
    (foreign.path / "kernels" / f"{name}.py").write_text(text)
    result = foreign.runpytest_subprocess(*THOROUGH, "-k", "smoke or sanitizer")
    (kernel,) = json.loads((foreign.path / "o").read_text())["kernels"]
    found = {item["id"].partition("::")[2]: item for item in kernel["items"]}
    failed = found.pop(f"sanitizer[{tool}]")
    assert failed["verdict"] == "FAIL", result.stdout.str()
    assert words in failed["reason"]
    if name == "reads_beyond":  # what lies there nobody has written either
        found.pop("sanitizer[initcheck]")
    assert {item["verdict"] for item in found.values()} == {"PASS"}, result.stdout.str()


@pytest.mark.parametrize("op", ["softmax", "matmul", "flash_attention"])
def test_a_starter_passes_all_tools(pytester: pytest.Pytester, op: str) -> None:
    starter = str(ROOT / "kernels" / "triton" / f"{op}.py")
    result = pytester.runpytest_subprocess(*THOROUGH, f"--rootdir={ROOT}", "-k", "sanit", starter)
    result.assert_outcomes(passed=3)
