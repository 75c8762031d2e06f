"""The agent on our own kernels, by benchmarks/tune.py: what is kept of it, and where."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from autokernel_agent.records import from_line

from . import agent_fakes
from .agent_fakes import KERNEL, config_of
from .conftest import ROOT


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program, with the scripted judge for pytest."""
    (stand_in := tmp_path / "path").mkdir()
    (stand_in / "pytest.py").write_text(Path(agent_fakes.__file__).read_text())
    path = os.pathsep.join(filter(None, [str(stand_in), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls.jsonl"))
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("tune")


def run(tune: ModuleType, folder: Path, text: str) -> tuple[Path, Path]:
    """The kernel's file and its ledger after four experiments."""
    (kernel := folder / "kernels" / "cpp" / "softmax.py").parent.mkdir(parents=True)
    kernel.write_text(text)
    tune.main([kernel], "60s", 4, 1, folder / "ledgers")
    return kernel, folder / "ledgers" / "cpp" / "softmax.jsonl"


def test_what_is_shown_to_be_faster_replaces_the_kernel_and_its_ledger_is_small(
    tune: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, ledger = run(tune, tmp_path, KERNEL)
    assert config_of(kernel.read_text())["width"] > 1
    assert "softmax.py: replaced, " in capsys.readouterr().out.replace("\n", "")
    records = [from_line(line) for line in ledger.read_text().splitlines()]
    assert [type(record).__name__ for record in records] == [*["Experiment"] * 5, "Closing"]
    for record in map(json.loads, ledger.read_text().splitlines()):
        (report,) = record["reports"]
        (judged,) = report["kernels"]
        assert not [item for item in judged["items"] if item["verdict"] == "PASS"]
        kept = record.get("decision") == "KEEP" or record["kind"] == "closing"
        assert blocks(judged, "baseline") == kept
        assert not blocks(judged, "eager")
    head, *rows = ledger.with_suffix(".tsv").read_text().splitlines()
    assert head.split("\t")[0] == "experiment"
    assert len(rows) == 5


def test_a_kernel_for_which_nothing_better_was_found_stays_as_it_was(
    tune: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = KERNEL.replace('CONFIG = {"width": 1', 'CONFIG = {"width": 4')
    kernel, ledger = run(tune, tmp_path, best)
    assert kernel.read_text() == best
    assert "left as it was, no gain" in capsys.readouterr().out.replace("\n", "")
    assert ledger.exists()


def test_a_samples_digits_are_cut(tune: ModuleType) -> None:
    assert tune._rounded([12.3456789, 1234567.0]) == [12.346, 1234600.0]


def blocks(judged: dict[str, Any], other: str) -> bool:
    """Whether there are samples of a kernel beside another."""
    return any(t["comparisons"].get(other, {}).get("blocks") for t in judged["timings"])
