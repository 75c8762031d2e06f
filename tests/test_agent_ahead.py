"""What becomes of a candidate by what compiling it alone says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent.ahead import SPILLED, judge_compiled
from autokernel_agent.records import Experiment, from_line, to_line
from autokernel_agent.report import Report
from autokernel_agent.stop import experiments, never

from . import agent_fakes
from .agent_fakes import KERNEL, config_of, item
from .agent_repository import OnGpu, crew, essence, loop, opened, run, user_repository


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return user_repository(tmp_path)


def compiled(text: str = KERNEL, local_bytes: int = 0, refused: str | None = None) -> Report:
    """A report on a binary: each text has its own."""
    raw = agent_fakes.binary(text)
    (kernel,) = raw["kernels"]
    taken = {"kernel": "k", "registers": 32, "local_bytes": local_bytes, "shared_bytes": 0}
    kernel.update(binary=None if refused else str(config_of(text)), resources=[taken])
    if refused:
        found: dict[str, Any] = {"verdict": "FAIL", "reason": refused}
        kernel.update(items=[item("binary", **found)], **found)
    return Report.parse(raw)


class Wide(OnGpu):
    """A GPU that refuses a width of 8, where a width of 4 spills."""

    def binary(self, text: str) -> Report:
        width = config_of(text)["width"]
        self.compiled.append(text)
        refused = "out of resource: shared memory" if width == 8 else None
        return compiled(text, 4 * SPILLED if width == 4 else 0, refused)


@pytest.fixture
def judge() -> Wide:
    return Wide()


@pytest.fixture
def done(repo: Path, judge: Wide) -> list[Experiment]:
    with opened(repo) as ledger:
        dataclasses.replace(loop(ledger), crew=crew(judge)).run(never())
        return ledger.experiments


def widths(texts: list[str]) -> list[int]:
    return [config_of(text)["width"] for text in texts]


def test_what_the_gpu_would_refuse_is_recorded_and_never_sent_there(
    done: list[Experiment], judge: Wide
) -> None:
    refused = [e for e in done if "shared memory" in (e.reason or "")]
    assert refused
    assert {(e.verdict, e.decision, e.speedup) for e in refused} == {("FAIL", "REVERT", None)}
    assert 8 not in widths(judge.screened)


def test_what_spills_is_put_off_then_measured_when_nothing_else_is_left(
    done: list[Experiment], judge: Wide
) -> None:
    off = [e for e in done if e.put_off]
    assert off
    assert {(e.verdict, e.decision, e.local_bytes) for e in off} == {("PASS", "UNDECIDED", 256)}
    assert "a thread spills 256 bytes, the incumbent's none" in (off[0].reason or "")
    first = widths(judge.screened).index(4)
    assert 1 in widths(judge.screened[:first])
    kept = next(e for e in done if e.kept and e.local_bytes)
    assert max(e.experiment for e in off) < kept.experiment  # a gain that is not lost


def test_a_run_that_put_something_off_goes_on_where_it_was_stopped(
    done: list[Experiment], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = user_repository(tmp_path_factory.mktemp("other"))
    for _ in range(len(done)):
        with opened(other) as ledger:
            dataclasses.replace(loop(ledger), crew=crew(Wide())).run(experiments(1))
            found = ledger.experiments
    assert essence(found) == essence(done)


@pytest.fixture
def past(repo: Path) -> list[Experiment]:
    """A starter, and an experiment that was not kept."""
    starter, other = run(repo, 1)[:2]
    none = dataclasses.replace(other, decision="REVERT", verdict="PASS", put_off=False)
    return [dataclasses.replace(starter, local_bytes=0, binary="0"), none]


def twin(past: list[Experiment], **found: Any) -> list[Experiment]:
    return [past[0], dataclasses.replace(past[1], binary=compiled().binary, **found)]


def test_a_duplicate_of_what_is_undecided_is_no_less_so(past: list[Experiment]) -> None:
    of = judge_compiled(compiled(), twin(past, decision="REVERT"), False)
    assert of is not None
    assert (of.decision, of.reason) == (
        "REVERT",
        "duplicate of experiment 1: the same binary in every timed case",
    )
    of = judge_compiled(compiled(), twin(past, decision="UNDECIDED"), False)
    assert of is not None
    assert (of.decision, of.put_off) == ("UNDECIDED", False)
    assert (of.reason or "").startswith("duplicate of experiment 1, UNDECIDED:")


@pytest.mark.parametrize(
    "found", [{"verdict": "TIMEOUT"}, {"put_off": True, "decision": "UNDECIDED"}]
)
def test_a_duplicate_of_what_was_never_judged_to_its_end_is_judged(
    past: list[Experiment], found: dict[str, Any]
) -> None:
    assert judge_compiled(compiled(), twin(past, **found), False) is None


def test_what_spills_waits_only_where_it_comes_again_and_the_incumbent_does_not(
    past: list[Experiment],
) -> None:
    much = compiled(local_bytes=SPILLED + 1)
    waits = judge_compiled(much, past, True)
    assert waits is not None
    assert waits.put_off
    assert judge_compiled(much, past, False) is None
    assert judge_compiled(compiled(local_bytes=SPILLED), past, True) is None
    for known in (8, None):
        others = [dataclasses.replace(past[0], local_bytes=known), past[1]]
        assert judge_compiled(much, others, True) is None


def test_a_ledger_of_before_binaries_told_of_spills_is_read(past: list[Experiment]) -> None:
    line = to_line(dataclasses.replace(past[0], local_bytes=None))
    old = line.replace(', "local_bytes": null', "").replace(', "put_off": false', "")
    assert old != line
    assert from_line(old) == from_line(line)
