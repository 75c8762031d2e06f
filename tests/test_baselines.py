"""An op's baselines beside a kernel: timed where they work, left out where they do not, and
remembered for no decision."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_autokernel import baseline_times, decide, judge, op, report, session, timing
from pytest_autokernel.baseline_times import BaselineTimes
from pytest_autokernel.baselines import LIBRARIES, rivals
from pytest_autokernel.candidate import parse, read
from pytest_autokernel.figures import Timing
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case
from pytest_autokernel.settings import Settings
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import Verdict
from tests.conftest import Commit
from tests.test_ops import OPS

CASE = Case("small", {"n": 4096}, "fp32")
REFERENCE = """
import os

from pytest_autokernel.op import Cost, Dim, Op, Tolerance, compiled


def reference(x):
    return x * 2


def many(x):
    for _ in range(20):
        y = x * 2
    return y


def dies(x):
    os.abort()


def raises(x):
    raise ValueError(f"no kernel for {x.shape[0]} elements\\nbut for others")


OP = Op(
    name="double",
    reference=reference,
    inputs=lambda draw, dims: (draw.normal(dims["n"]),),
    dims=(Dim("n", 1, 8192),),
    sizes={"small": {"n": 4096}},
    edges={},
    tolerance=Tolerance(lambda inputs, r: 8 * r.abs()),
    cost=lambda dims, size: Cost(dims["n"], 2 * size * dims["n"]),
    roof="copy",
    timed=("small",),
    baselines={
        "eager": reference,
        "compile": compiled(reference),
        "many": many,
        "dies": dies,
        "raises": raises,
        "wrong": lambda x: x * 3,
    },
)
"""
KERNEL = """
KERNEL_TYPE = "double"


def kernel_fn(x):
    return x * 2
"""
Measure = Callable[..., Timing]


@pytest.fixture(scope="module")
def doubling(
    settings: Settings, own_cpu: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Judge]:
    """A judge in a repository with an op of its own."""
    root = tmp_path_factory.mktemp("repository")
    (root / "reference").mkdir()
    (root / "reference" / "double.py").write_text(REFERENCE)
    alone = replace(settings, rootdir=root, effort="quick", cpus=own_cpu)
    with closing(Judge(replace(alone, cache=root / "cache"))) as judge:
        yield judge


@pytest.fixture
def measure(doubling: Judge, monkeypatch: pytest.MonkeyPatch) -> Iterator[Measure]:
    """Time the kernel beside the baselines of these names, in one round of one look."""
    rule = decide.Rule(looks=(session.BLOCKS_PER_ROUND,))
    monkeypatch.setattr(decide, "Rule", lambda: rule)
    before = doubling.settings

    def measure(*compare: str) -> Timing:
        doubling.settings = replace(before, compare=compare)
        kernel = parse(before.rootdir / "k.py", KERNEL)
        with closing(WorkerSubject(doubling, kernel)) as subject:
            return timing.measure(doubling, subject, doubling.op("double"), CASE)

    yield measure
    doubling.settings = before


def test_the_first_is_always_timed_and_the_others_where_they_are_asked_for(
    measure: Measure,
) -> None:
    assert set(measure().comparisons) == {"eager"}
    found = measure("many")
    assert found.verdict is Verdict.PASS
    assert set(found.comparisons) == {"eager", "many"}
    assert found.comparisons["many"].estimate.ratio > 2
    assert not found.missing


def test_torch_compile_works_in_the_sandbox(measure: Measure) -> None:
    found = measure("compile")
    assert (set(found.comparisons), found.missing) == ({"eager", "compile"}, {})


def test_one_that_fails_is_left_out_with_its_reason_and_costs_the_kernel_nothing(
    measure: Measure,
) -> None:
    found = measure("many", "raises", "dies", "wrong", "quack")
    assert found.verdict is Verdict.PASS
    assert found.samples_us
    assert set(found.comparisons) == {"eager", "many"}
    assert set(found.missing) == {"raises", "dies", "wrong", "quack"}
    assert found.missing["raises"].startswith("raised ValueError: no kernel for 4096 elements")
    assert "\n" not in found.missing["raises"]
    assert found.missing["dies"] == "its process killed by SIGABRT"
    assert found.missing["wrong"].startswith("its result is wrong: ")
    assert found.missing["quack"] == "the op has none"


def test_what_others_took_in_an_earlier_run_is_shown_and_compared_with_nothing(
    measure: Measure,
) -> None:
    measured = measure("many").comparisons["many"].others_us
    later = measure()
    assert "many" not in later.comparisons
    assert later.kept["many"].time_us == measured
    assert 0 <= later.kept["many"].age_s < 600
    assert "eager" not in later.kept
    (line,) = (words for words in report._of_baselines(later.to_json()) if "many" in words)
    assert line == f"many {measured:.1f} us (cached just now)"


@pytest.fixture
def times(doubling: Judge, tmp_path: Path) -> Iterator[Callable[[], BaselineTimes]]:
    before = doubling.settings
    doubling.settings = replace(before, cache=tmp_path)
    yield lambda: BaselineTimes(doubling, doubling.op("double"), CASE, "cpu", "warm")
    doubling.settings = before


def test_a_kept_time_is_that_of_the_same_versions_alone(
    times: Callable[[], BaselineTimes], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["many", "liger", "quack"]
    times().keep({"many": 2.5, "liger": 1.5})
    found = {name: kept.time_us for name, kept in times().kept(names).items()}
    assert found == {"many": 2.5, "liger": 1.5}
    monkeypatch.setattr(
        baseline_times, "package_version", lambda name: "1" if name == "liger-kernel" else "2"
    )
    assert times().kept(names) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"key": 1, "time_us": 1, "measured": 1}',
        '{"key": KEY, "time_us": -1, "measured": 1}',
        '{"key": KEY, "time_us": "NaN", "measured": 1}',
        '{"key": KEY, "time_us": 1, "measured": 1e300}',
        '{"key": KEY, "time_us": [], "measured": 1}',
    ],
)
def test_a_broken_or_a_foreign_file_in_the_cache_is_ignored(
    times: Callable[[], BaselineTimes], text: str, tmp_path: Path
) -> None:
    times().keep({"many": 2.5})
    (file,) = (tmp_path / "baselines").iterdir()
    key = json.dumps(json.loads(file.read_text())["key"])
    file.write_text(text.replace("KEY", key))
    assert times().kept(["many"]) == {}


def test_a_cache_that_cannot_be_written_is_none(
    times: Callable[[], BaselineTimes], tmp_path: Path
) -> None:
    (tmp_path / "baselines").write_text("in the way")
    times().keep({"many": 2.5})
    assert times().kept(["many"]) == {}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "just now"), (60, "1 minute ago"), (7300, "2 hours ago"), (3.5 * 86400, "3 days ago")],
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    assert report._age(seconds) == words


def test_what_is_forgotten_of_the_cache_is_compiled_code_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "MOST_CACHED", 1)
    for name in ("baselines", "a" * 64, "b" * 64):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ("a" * 64), (1, 1))
    judge._prune(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"baselines", "b" * 64}


LIBRARIES_HAVE = [(name, of) for of in OPS for name in LIBRARIES if name in OPS[of].baselines]


@pytest.mark.parametrize(("name", "of"), LIBRARIES_HAVE)
def test_a_librarys_baseline_takes_what_the_reference_takes(name: str, of: str) -> None:
    ours, theirs = (
        list(inspect.signature(fn).parameters.values())
        for fn in (OPS[of].reference, OPS[of].baselines[name])
    )
    assert [(p.name, p.default) for p in theirs] == [
        (p.name, p.default) for p in ours[: len(theirs)]
    ]
    assert all(p.default is not p.empty for p in ours[len(theirs) :])


def test_of_several_forms_each_is_tried_once_for_inputs_of_one_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def milliseconds(work: Any) -> float:
        tried.append(work.func)
        return {"slow": 2.0, "fast": 1.0}[work()]

    def on(device: str, size: int) -> Any:
        return SimpleNamespace(
            is_cuda=device == "cuda", shape=(size,), stride=lambda: (1,), dtype="fp32"
        )

    monkeypatch.setattr(op, "_milliseconds", milliseconds)
    fn: Any = op.fastest(lambda x: "slow", lambda x: "fast")
    assert fn(on("cpu", 1)) == "slow"
    assert not tried
    assert [fn(on("cuda", size)) for size in (1, 1, 2)] == ["fast"] * 3
    assert len(tried) == 4


def test_a_revision_stands_for_the_kernel_as_it_was_there(
    commit: Commit, tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'KERNEL_TYPE = "softmax"\n\n\ndef kernel_fn(x, dim=-1):\n    return x\n'
    commit({"kernels/a.py": text})
    commit({"kernels/a.py": text + "# later\n", "kernels/b.py": text})
    monkeypatch.setattr(judge, "settings", replace(judge.settings, baseline="HEAD~1"))
    a, b = (WorkerSubject(judge, read(tmp_path / f"kernels/{name}.py")) for name in "ab")
    before = rivals(judge, a, judge.op("softmax"), {}).makers["baseline"]()
    assert before.file is not None
    assert before.file.text == text
    assert "baseline" not in rivals(judge, b, judge.op("softmax"), {}).makers
