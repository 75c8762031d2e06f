"""The judge on a CUDA GPU: skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pytest_autokernel import oracle
from pytest_autokernel.candidate import parse
from pytest_autokernel.channel import Channel
from pytest_autokernel.comparison import Comparison
from pytest_autokernel.handover import OnGpu
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import JudgeError, Verdict
from tests.conftest import ROOT
from tests.test_ops import FILES

pytestmark = pytest.mark.gpu

ON_GPU = ("--autokernel", "--autokernel-device=cuda", "--autokernel-effort=quick")
POKES = '''
"""Right, but that it also writes two terabytes beyond its result where `when` says so."""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"


@triton.jit
def poke(y):
    tl.store(y + tl.program_id(0).to(tl.int64) + 2**40, 1.0)


def kernel_fn(x, dim=-1):
    y = torch.softmax(x.float(), dim).to(x.dtype)
    if WHEN:
        poke[(1,)](y)
    return y
'''


def judged(pytester: pytest.Pytester, *arguments: str) -> dict[str, dict[str, str]]:
    """Kernel -> item -> its verdict, from the run's report; verdict and words of a failure."""
    pytester.runpytest_subprocess(
        *ON_GPU, "-p", "no:randomly", "--autokernel-json=o", "--autokernel-allow=*", *arguments
    )
    report = json.loads((pytester.path / "o").read_text())
    return {
        Path(kernel["path"]).stem: {
            item["id"].partition("::")[2]: f"{item['verdict']}: {item['reason']}"
            for item in kernel["items"]
        }
        for kernel in report["kernels"]
    }


def kernel(pytester: pytest.Pytester, name: str, when: str) -> None:
    (pytester.path / "kernels" / f"{name}.py").write_text(POKES.replace("WHEN", when))


@pytest.mark.parametrize("l2", ["cold", "warm"])
def test_the_triton_starter_passes_and_its_speed_is_a_share_of_two_roofs(
    pytester: pytest.Pytester, l2: str
) -> None:
    starter = str(ROOT / "kernels" / "triton" / "softmax.py")
    options = (f"--rootdir={ROOT}", "--autokernel-json=out.json", f"--autokernel-l2={l2}")
    result = pytester.runpytest_subprocess(*ON_GPU, *options, starter)
    assert result.ret == 0
    (found,) = json.loads((pytester.path / "out.json").read_text())["kernels"]
    assert (found["verdict"], found["device"]) == ("PASS", "cuda")
    (timing,) = found["timings"]
    assert 0 < timing["pct_roof"] < 130
    assert (timing["captured"], timing["l2"], timing["throttled"]) == (True, l2, 0)
    assert 0 < timing["floor_us"] < timing["time_us"]
    assert timing["calls"] * timing["time_us"] > 90  # microseconds in a sample
    assert timing["sm_mhz"] > 500
    assert 0.5 < timing["comparisons"]["eager"]["ratio"] < 20


def test_a_kernel_that_ruins_the_gpus_context_fails_and_the_next_is_judged(
    foreign: pytest.Pytester,
) -> None:
    kernel(foreign, "a_ruins", "True")
    kernel(foreign, "b_right", "False")
    found = judged(foreign, "-k", "smoke")
    assert all("CUDA error: an illegal memory access" in v for v in found["a_ruins"].values())
    assert {v.split(":")[0] for v in found["a_ruins"].values()} == {"FAIL"}
    assert set(found["b_right"].values()) == {"PASS: None"}


def test_a_moment_without_gpu_memory_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    compare, shortage = oracle.compare, iter([True, False])

    def once_short(*arguments: Any) -> oracle.Judged:
        if next(shortage):
            raise torch.OutOfMemoryError
        return compare(*arguments)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        comparison = Comparison(Channel(ours))
        comparison.device({}, ())
        case = Case("small", {"M": 4, "N": 8}, "fp32").to_json()
        about = {"op": "reduce", "file": str(FILES["reduce"]), "case": case, "relation": None}
        comparison.make({**about, "device": "cuda", "share": True, "extra_units": 0}, ())
        assert comparison.ticket is not None
        (call,) = comparison.ticket.calls
        assert isinstance(call.memory, OnGpu)
        call.memory.places[0].copy_(call.memory._sources[0])  # as the worker does
        call.memory._room[:16].view(torch.float32).copy_(call.values[0].sum(-1))
        monkeypatch.setattr(oracle, "compare", once_short)
        meta = {"dtype": "float32", "shape": [4], "stride": [1], "offset": 0, "nbytes": 16}
        answer = {"result": meta, "device": "cuda", "aliases": None, "timed": False}
        reply, _ = comparison._answered(comparison.compare, {"call": 0, **answer}, ())
    assert reply["ok"], reply
    assert not list(shortage)


def test_a_kernel_that_finds_no_memory_beside_others_is_not_judged(
    judge: Judge, tmp_path: Path
) -> None:
    import torch

    greedy = "import torch\nKERNEL_TYPE = 'reduce'\n\n\ndef kernel_fn(x):\n"
    free, total = torch.cuda.mem_get_info()
    greedy += f"    return torch.empty({2 * total}, dtype=torch.uint8, device='cuda')\n"
    case = Case("small", {"M": 4, "N": 8}, "fp32")
    with closing(WorkerSubject(judge, parse(tmp_path / "greedy.py", greedy))) as subject:
        alone = judge.check(subject, judge.op("reduce"), case)
        assert alone.verdict is Verdict.FAIL
        assert "out of memory" in str(alone.reason), alone.reason
        held = [torch.empty(max(0, free - 2 * total // 5), dtype=torch.uint8, device="cuda")]
        try:
            with pytest.raises(JudgeError, match=r"other processes hold .* judge where it is free"):
                judge.check(subject, judge.op("reduce"), case)
        finally:
            held.clear()
            torch.cuda.empty_cache()
