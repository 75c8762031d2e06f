"""Timing a kernel beside others, in real processes: what is kept, and what is not believed."""

from __future__ import annotations

import functools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_autokernel import decide, session, timing
from pytest_autokernel.candidate import parse
from pytest_autokernel.channel import TensorMeta
from pytest_autokernel.decide import Decision
from pytest_autokernel.figures import Timing
from pytest_autokernel.judge import HandedOver, Judge
from pytest_autokernel.op import Case
from pytest_autokernel.sampling import CpuBench
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import CandidateError, Verdict

CASE = Case("small", {"rows": 64, "cols": 256}, "fp32")
BLOCKS = 8  # the fewest of which 99 % confidence can be had

RIGHT = """
KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return x.softmax(dim)
"""
TWICE = RIGHT.replace("return", "x.softmax(dim)\n    return")
LATER = """
import os

KERNEL_TYPE = "softmax"
calls = 0


def kernel_fn(x, dim=-1):
    global calls
    calls += 1
    {later}
    return x.softmax(dim)
"""
REMEMBERS = """
KERNEL_TYPE = "softmax"
results = {}


def kernel_fn(x, dim=-1):
    if x.data_ptr() not in results:
        results[x.data_ptr()] = x.softmax(dim)
    return results[x.data_ptr()]
"""
Measure = Callable[..., Timing]


@pytest.fixture
def measure(
    quick_judge: Judge,
    own_cpu: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Measure]:
    """Time a kernel's text on a small case against a baseline's text: as long as one look takes,
    and its confirmation, each in one round of fresh processes. In one thread: two would wait for
    each other where tests share the machine."""
    monkeypatch.setattr(decide, "Rule", functools.partial(decide.Rule, looks=(BLOCKS,)))
    monkeypatch.setattr(session, "BLOCKS_PER_ROUND", BLOCKS)
    before = quick_judge.settings
    quick_judge.settings = alone = replace(before, cpus=own_cpu)

    def measure(text: str, baseline: str | None = None) -> Timing:
        if baseline is not None:
            (tmp_path / "base.py").write_text(baseline)
            named = str(tmp_path / "base.py")
            quick_judge.settings = replace(alone, baseline=named)
        with closing(WorkerSubject(quick_judge, parse(tmp_path / "k.py", text))) as subject:
            return timing.measure(quick_judge, subject, quick_judge.op("softmax"), CASE)

    yield measure
    quick_judge.settings = before


def test_a_copy_is_not_kept_and_its_figures_are_possible_ones(measure: Measure) -> None:
    found = measure(RIGHT, baseline=RIGHT)
    assert found.verdict is Verdict.PASS
    compared = found.comparisons["baseline"]
    assert compared.decision is not Decision.KEEP
    assert compared.estimate.low < 1.1
    assert compared.estimate.high > 0.9
    assert len(found.samples_us) >= BLOCKS * session.BURSTS * session.SAMPLES_PER_BURST
    summary = found.summary()
    assert found.time_us is not None
    assert min(found.samples_us) <= found.time_us <= max(found.samples_us)
    assert summary["gb_s"] == pytest.approx(2 * 4 * 64 * 256 / found.time_us / 1e3)
    assert 0 < summary["pct_roof"] <= 100 * session.MEASURED_LIMIT
    reached = [summary[unit] / summary["roof"][unit] for unit in ("gb_s", "tflops")]
    assert summary["pct_roof"] == pytest.approx(100 * max(reached))
    assert (summary["l2"], summary["pct_datasheet"]) == ("warm", None)


def test_blocks_begin_with_each_contender_in_turn(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[str]] = []
    block = session.Session._block

    def seen(this: session.Session, contenders: dict[str, Any]) -> dict[str, list[float]]:
        orders.append(list(contenders))
        return block(this, contenders)

    monkeypatch.setattr(session.Session, "_block", seen)
    measure(RIGHT, RIGHT)
    first = Counter(order[0] for order in orders)
    assert {"kernel", "baseline"} <= set(first)
    assert max(first.values()) - min(first.values()) <= 1
    # The op's own baseline joins them after the glance.
    assert [len(order) for order in orders] == [2] * decide.Rule().glance + [3] * (
        len(orders) - decide.Rule().glance
    )


def test_another_starts_first_in_each_round(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    start = WorkerSubject.start

    def seen(this: WorkerSubject) -> None:
        started.append(this.kernel.path.name)
        start(this)

    monkeypatch.setattr(WorkerSubject, "start", seen)
    monkeypatch.setattr(session, "BLOCKS_PER_ROUND", decide.Rule().glance // 2)
    measure(RIGHT, RIGHT)
    # Two rounds until the glance; from then on the op's own baseline is one of them.
    assert started[:4] == ["base.py", "k.py", "k.py", "base.py"]


def test_layouts_are_made_side_by_side_on_a_gpu_and_in_turn_on_a_cpu() -> None:
    inside, most, paddings = [0], [0], []
    both = threading.Barrier(2)

    def ask(message: dict[str, Any], fds: tuple[int, ...]) -> tuple[dict[str, Any], tuple[()]]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        paddings.append(message["padding"])
        if threading.current_thread() is not threading.main_thread():
            both.wait(timeout=30)
        inside[0] -= 1
        return {"captured": True}, ()

    def prepared(device: str, *files: str | None) -> int:
        most[0] = 0
        this: Any = SimpleNamespace(
            subject=SimpleNamespace(device=device),
            random=random.Random(1),
            clear_bytes=0,
            host=False,
        )
        contenders: Any = {
            str(n): SimpleNamespace(ask=ask, file=file) for n, file in enumerate(files)
        }
        facts = session.Session._prepared(this, contenders, HandedOver({}, ()), {}, 3)
        assert [found["captured"] for found in facts.values()] == [True] * len(files)
        return most[0]

    assert prepared("cuda", "k.py", "base.py") == 2
    assert prepared("cpu", "k.py", "base.py") == 1
    # A user's own callable is called where the user's test runs.
    assert prepared("cuda", None) == 1
    assert sorted(paddings[:2]) == sorted(paddings[2:4])


def test_a_burst_on_a_cpu_begins_with_calls_that_are_not_timed() -> None:
    calls = []

    def kernel_fn(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x + 1

    meta = TensorMeta("float32", (4,), (1,), 0, 16)
    message = {"options": {}, "padding": 1, "inputs": [meta.to_json()]}
    bench = CpuBench(kernel_fn, [torch.zeros(16, dtype=torch.uint8)], message)
    calls.clear()
    assert len(bench.samples(3, seed=1)) == 3
    assert len(calls) == 4 * bench.calls


def test_twice_the_speed_is_kept_after_a_fresh_confirmation(measure: Measure) -> None:
    found = measure(RIGHT, baseline=TWICE)
    compared = found.comparisons["baseline"]
    assert (compared.decision, compared.confirmed) == (Decision.KEEP, True)
    assert 1.3 < compared.estimate.ratio < 3
    assert len(compared.blocks) == BLOCKS
    assert len(found.samples_us) == 2 * BLOCKS * session.BURSTS * session.SAMPLES_PER_BURST
    eager = found.comparisons["eager"]
    assert not eager.confirmed
    assert eager.estimate.ratio == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    ("later", "verdict", "words"),
    [
        (
            "if calls > 5: return x.clone()",
            Verdict.FAIL,
            "the result of a timed call is wrong: ",
        ),
        (
            "if calls > 5: os.abort()",
            Verdict.CRASH,
            "the kernel's process killed by SIGABRT",
        ),
        (
            "if calls > 5: raise ValueError('tired')",
            Verdict.FAIL,
            "raised ValueError: tired (k.py:11)",
        ),
    ],
    ids=["wrong", "crashes", "raises"],
)
def test_what_goes_wrong_in_timed_calls_alone_is_found(
    measure: Measure, later: str, verdict: Verdict, words: str
) -> None:
    found = measure(LATER.format(later=later))
    assert found.verdict is verdict
    assert (found.reason or "").startswith(words)
    assert found.samples_us == []


def test_a_kernel_that_remembers_its_results_is_wrong_once_the_contents_have_changed(
    measure: Measure,
) -> None:
    found = measure(REMEMBERS)
    assert found.verdict is Verdict.FAIL
    assert "the result of a timed call is wrong" in (found.reason or "")


FORGES = """
import time
import pytest_autokernel.sampling as sampling

KERNEL_TYPE = "softmax"
honest = time.perf_counter_ns
start = honest()


def kernel_fn(x, dim=-1):
    sampling._now_ns = lambda: start + (honest() - start) // 8
    return x.softmax(dim)
"""


def test_a_clock_that_runs_slow_is_found_by_the_parents(measure: Measure) -> None:
    found = measure(FORGES)
    assert found.verdict is Verdict.FAIL
    assert "the clock" in (found.reason or "")


POSSIBLE = [1.5, *range(1, session.SAMPLES_PER_BURST)]


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"samples_us": []},
        {"samples_us": POSSIBLE[1:]},
        {"samples_us": [*POSSIBLE, 1.5]},
        *({"samples_us": [*POSSIBLE[1:], us]} for us in (0, -1.5, float("nan"), float("inf"))),
    ],
    ids=str,
)
def test_impossible_samples_are_refused(reply: dict[str, list[float]]) -> None:
    assert session._samples({"samples_us": POSSIBLE}) == POSSIBLE
    with pytest.raises(CandidateError, match="positive times were asked for") as caught:
        session._samples(reply)
    assert caught.value.verdict is Verdict.FAIL


@pytest.mark.parametrize("looks", [decide.Rule().looks, decide.GATE.looks])
def test_a_phase_is_spread_over_more_than_one_round(looks: tuple[int, ...]) -> None:
    for blocks in looks:
        rounds = list(session._rounds(blocks, first=True))
        assert sum(rounds) == blocks
        assert len(rounds) >= 2


@pytest.mark.parametrize(
    "said", [None, 3, "abc", ["abc"], [None], [[1.0]], [True], [1e-7], [10**400]]
)
def test_samples_that_are_no_times_are_refused(said: object) -> None:
    taken = said * session.SAMPLES_PER_BURST if isinstance(said, list) else said
    with pytest.raises(CandidateError):
        session._samples({"samples_us": taken})


BOASTS = """
from pytest_autokernel.worker import Worker

KERNEL_TYPE = "softmax"
honest = Worker.prepare
boast = {"floor_us": float("nan"), "peak_bytes": "none", "captured": []}
Worker.prepare = lambda *a: (honest(*a)[0] | boast, ())


def kernel_fn(x, dim=-1):
    return x.softmax(dim)
"""


def test_what_a_kernels_process_says_of_itself_is_taken_if_it_can_be(measure: Measure) -> None:
    found = measure(BOASTS)
    assert found.time_us is not None
    json.dumps(found.to_json(), allow_nan=False)
    assert found.summary()["peak_mb"] is None
    assert found.summary()["captured"] is False


@pytest.mark.parametrize(
    "baseline", [RIGHT.replace("softmax", "reduce", 1), "no kernel"], ids=["another", "none"]
)
def test_a_baseline_that_cannot_be_one_is_a_failure_with_its_reason(
    measure: Measure, baseline: str
) -> None:
    found = measure(RIGHT, baseline=baseline)
    assert found.verdict is Verdict.FAIL
    assert (found.reason or "").startswith("--autokernel-baseline: ")
