"""What is compiled beside a kernel that is being judged: which cases, where, and until when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import wait
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_autokernel import ahead, plan, timing
from pytest_autokernel.ahead import Ahead
from pytest_autokernel.binaries import OfflineSubject
from pytest_autokernel.candidate import parse
from pytest_autokernel.examination import Examination
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case
from pytest_autokernel.session import TooShort
from pytest_autokernel.subjects import WorkerSubject
from tests.conftest import ROOT

pytest.importorskip("triton")

SOFTMAX = (ROOT / "kernels/triton/softmax.py").read_text()
H100 = {"capability": 90, "sms": 132, "shared_bytes": 232_448}


def test_what_it_compiled_is_there_for_the_kernels_own_process(judge: Judge) -> None:
    kernel, op = parse(Path("k.py"), f"# compiled ahead\n{SOFTMAX}"), judge.op("softmax")
    cases = [Case("a", {"rows": 4, "cols": n}, "bf16") for n in (8, 16, 300, 5000, 70_000)]
    with closing(Ahead(judge, kernel, op, cases, H100, 2)) as compiling:
        wait(compiling._done)
    cache = judge.compiled(kernel.sha256)
    found = {*cache.rglob("*.cubin")}
    assert len(found) == len(cases)
    with closing(OfflineSubject(judge, kernel)) as subject:
        subject.compiled(op, cases, H100)
    assert {*cache.rglob("*.cubin")} == found


HANGS = """
KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    while True:
        pass
"""


def test_it_ends_wherever_it_is_when_it_is_closed(judge: Judge) -> None:
    kernel, op = parse(Path("k.py"), HANGS), judge.op("softmax")
    before, folders = judge.settings, {*judge.folder.glob("worker-*")}
    judge.settings = replace(before, timeout_s=3600)
    cases = [Case("a", {"rows": 4, "cols": n}, "bf16") for n in (8, 16)]
    compiling = Ahead(judge, kernel, op, cases, H100, 2)
    while len({*judge.folder.glob("worker-*")} - folders) < 2:
        time.sleep(0.01)
    compiling.close()
    judge.settings = before
    assert {*judge.folder.glob("worker-*")} == folders


@pytest.mark.parametrize("line", ["raise ValueError", "import os; os._exit(0)", "1 +"])
def test_a_kernel_that_cannot_be_compiled_is_left_to_its_own_process(
    judge: Judge, line: str
) -> None:
    text = HANGS.replace("while True:", f"{line}\n    if 1:")
    kernel, op = replace(parse(Path("k.py"), HANGS), text=text), judge.op("softmax")
    cases = [Case("a", {"rows": 4, "cols": 8}, "bf16")]
    with closing(Ahead(judge, kernel, op, cases, H100, 1)) as compiling:
        wait(compiling._done)
        assert all(done.exception() is None for done in compiling._done)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases that an examination asks for."""
    found: list[Case] = []

    def begin(judge: object, kernel: object, op: object, cases: Iterable[Case]) -> None:
        found.extend(cases)

    monkeypatch.setattr(ahead, "begin", begin)
    return found


def test_it_is_told_of_sizes_that_anybody_can_know_and_of_none_that_is_drawn(
    judge: Judge, asked: list[Case]
) -> None:
    kernel, op = parse(Path("k.py"), SOFTMAX), judge.op("softmax")
    subject, target = WorkerSubject(judge, kernel), plan.target("cuda", "normal")
    subject.device = "cuda"
    checks = [*plan.checks(op, kernel.supports, target, "normal")]
    Examination(judge, subject, op, target, {}, "").compile_ahead(checks)
    names = {check.case.name for check in checks}
    assert {case.name for case in asked} == names - {"drawn"} | {"special"}
    around = {n + d for n in kernel.integers for d in (-1, 0, 1)}
    assert all({*case.dims.values()} & around for case in asked if case.name == "special")


def test_it_is_closed_before_anything_is_timed(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, op = parse(Path("k.py"), SOFTMAX), judge.op("softmax")
    target, order = plan.target("cuda", "normal"), list[str]()

    def measure(*arguments: object) -> None:
        order.append("timed")
        raise TooShort("it is")

    monkeypatch.setattr(timing, "measure", measure)
    under = Examination(judge, WorkerSubject(judge, kernel), op, target, {}, "")
    under.ahead = SimpleNamespace(close=lambda: order.append("closed"))  # type: ignore[assignment]
    item: Any = SimpleNamespace(config=SimpleNamespace(), stash={}, nodeid="an item")
    with pytest.raises(pytest.skip.Exception):
        under.time(plan.timed_cases(op, "cuda")[0], item)
    assert order == ["closed", "timed"]


def test_nothing_is_compiled_ahead_for_a_cpu(judge: Judge, asked: list[Case]) -> None:
    kernel, op = parse(Path("k.py"), SOFTMAX), judge.op("softmax")
    target = plan.target("interpreter", "normal")
    under = Examination(judge, WorkerSubject(judge, kernel), op, target, {}, "")
    under.compile_ahead([*plan.checks(op, kernel.supports, target, "normal")])
    assert (under.ahead, asked) == (None, [])


def test_there_have_to_be_processors_to_spare(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, op = parse(Path("k.py"), SOFTMAX), judge.op("softmax")
    monkeypatch.setattr(ahead, "target_of", lambda gpu: H100)
    begun: list[int] = []
    monkeypatch.setattr(ahead, "Ahead", lambda *rest: begun.append(rest[-1]))
    for processors in (3, 4, 15, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=processors: {*range(n)})
        ahead.begin(judge, kernel, op, [])
    assert begun == [1, 3, 4]
