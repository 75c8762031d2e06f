"""Our kernels beside what a user would pick, by benchmarks/peers.py: measured and drawn."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from pytest_autokernel import decide, session
from pytest_autokernel.judge import Judge
from pytest_autokernel.settings import Settings
from tests.conftest import ROOT

MACHINE = {"device": "a GPU", "date": "2026-11-21", "torch": "2", "quack-kernels": "-"}


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("peers")


@pytest.fixture
def record(peers: ModuleType) -> Any:
    return peers.peers_record


@pytest.fixture
def judge(
    peers: ModuleType,
    settings: Settings,
    own_cpu: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Judge]:
    """One that takes a single look of one round."""
    rule = decide.Rule(looks=(session.BLOCKS_PER_ROUND,))
    monkeypatch.setattr(decide, "Rule", lambda: rule)
    with closing(Judge(replace(settings, effort="quick", cpus=own_cpu))) as judge:
        yield judge


def row(record: ModuleType, **others: Any) -> Any:
    """Ours takes 20 and 25 us, the best peer 22, where the roof allows 16."""
    known = {
        "op": "softmax",
        "shape": "4096x4096",
        "size": "large",
        "clock": "gpu",
        "times_us": {"triton": 20.0, "cuda": 25.0, "eager": 57.0, "liger": 22.0},
        "ratios": {
            "triton": {"eager": (2.85, 2.8, 2.9), "liger": (1.1, 1.08, 1.12)},
            "cuda": {"eager": (2.28, 2.2, 2.3), "liger": (0.88, 0.87, 0.89)},
        },
        "roof": {"what": "copying, 4297 GB/s", "time_us": 16.0},
        "missing": {"quack": "not installed (pip install quack-kernels)"},
    }
    return record.Row(**{**known, **others})


def test_a_cpu_measures_our_kernel_and_the_baselines_on_a_shape_that_is_cut(
    peers: ModuleType, judge: Judge
) -> None:
    work = peers.Work("reduce", (8192, 8192), "large")
    (found,) = peers.measured(judge, work, {"compile": "left out"})
    assert (found.op, found.clock, found.shape) == ("reduce", "gpu", "127x8192")
    assert set(found.times_us) == {"cpp", "eager"}
    assert (found.ours, found.peer) == ("cpp", "eager")
    assert found.standing[1] < found.standing[0] < found.standing[2]
    assert 0 < found.pct("cpp") < 130
    assert found.missing["compile"] == "left out"
    assert found.missing["flag_gems"].startswith("not installed")


def test_a_wrong_kernel_of_ours_is_not_measured_and_the_row_says_why(
    peers: ModuleType, judge: Judge, tmp_path: Path
) -> None:
    (file := tmp_path / "kernels" / "cpp" / "reduce.py").parent.mkdir(parents=True)
    wrong = 'KERNEL_TYPE = "reduce"\n\n\ndef kernel_fn(x, dim=-1):\n    return x[:, 0].clone()\n'
    file.write_text(wrong)
    judge.settings = replace(judge.settings, rootdir=tmp_path)
    (found,) = peers.measured(judge, peers.Work("reduce", (64, 4096), "small"), {})
    assert found.times_us == {}
    assert found.missing["cpp"].startswith("FAIL")


def test_the_shapes_are_of_every_op_and_fit_its_dims(peers: ModuleType, judge: Judge) -> None:
    assert set(peers.LARGE) == set(judge.files)
    for work in peers.work(list(peers.LARGE), ["large", "small"]):
        assert len(work.dims) == len(judge.op(work.op).dims)


def test_what_is_left_out_is_named_for_all_ops_or_for_one(peers: ModuleType) -> None:
    named = "compile,matmul/quack"
    assert set(peers._left_out(named, "matmul")) == {"compile", "quack"}
    assert set(peers._left_out(named, "softmax")) == {"compile"}


def test_the_table_compares_the_faster_of_ours_with_the_best_peer(record: ModuleType) -> None:
    head, _, cells, *_, notes = record.markdown(record.Record(MACHINE, [row(record)])).splitlines()
    assert head.count("|") == cells.count("|")
    assert "| 1.10x [1.08, 1.12] | 80 %, peer 73 % | copying, 4297 GB/s |" in cells
    assert "**20.0** | 25.0 | 57.0 | **22.0**" in cells
    assert notes == "Not installed: quack-kernels."


def test_pytorchs_attention_stands_in_one_column_with_its_other_ops(record: ModuleType) -> None:
    ratios = {"triton": {"sdpa": (1.5, 1.4, 1.6)}}
    attention = row(record, op="attention", times_us={"triton": 10.0, "sdpa": 15.0}, ratios=ratios)
    head, _, _, cells, *_ = record.markdown(
        record.Record(MACHINE, [row(record), attention])
    ).splitlines()
    assert "| eager | liger |" in head
    assert "| **10.0** | - | **15.0** | - | 1.50x [1.40, 1.60] |" in cells


def test_a_small_shape_that_is_more_than_5_percent_slower_by_the_host_is_named(
    record: ModuleType,
) -> None:
    small = {"size": "small", "shape": "1x4096", "times_us": {"triton": 20.0, "eager": 10.0}}
    slow = row(record, **small, clock="host", ratios={"triton": {"eager": (0.5, 0.4, 0.6)}})
    near = row(record, **small, clock="host", ratios={"triton": {"eager": (0.96, 0.9, 0.99)}})
    assert record.too_slow([slow, near]) == [slow]
    words = record.markdown(record.Record(MACHINE, [slow]))
    assert "More than 5 % slower than PyTorch, launch included: softmax 1x4096." in words
    assert "| softmax | 1 | - | - | 0.50x [0.40, 0.60] | 1x4096 |" in words


def test_parts_are_put_together_where_they_are_of_one_machine(
    record: ModuleType, tmp_path: Path
) -> None:
    one, two = row(record), row(record, shape="64x64")
    again = row(record, times_us={**one.times_us, "triton": 19.0})
    parts = [record.Record(MACHINE, [two]), record.Record(MACHINE, [one])]
    for number, part in enumerate([*parts, record.Record(MACHINE, [again])]):
        part.write(tmp_path / f"{number}.json")
    read = [record.Record.read(file) for file in sorted(tmp_path.glob("*.json"))]
    merged = record.Record.merged(read)
    assert [r.shape for r in merged.rows] == ["64x64", "4096x4096"]
    assert merged.rows[1].times_us["triton"] == 19.0
    other = record.Record({**MACHINE, "torch": "3"}, [one])
    with pytest.raises(typer.BadParameter, match="the same machine"):
        record.Record.merged([*read, other])


def test_drawing_puts_tables_and_plot_between_the_marks_of_a_page(
    peers: ModuleType, record: ModuleType, tmp_path: Path
) -> None:
    record.Record(MACHINE, [row(record)]).write(tmp_path / "a.json")
    page = tmp_path / "README.md"
    page.write_text(f"before\n\n{record.BEGIN}\nformer words\n{record.END}\n\nafter\n")
    (tmp_path / "docs").mkdir()
    for _ in range(2):
        peers.draw([tmp_path / "a.json"], page, tmp_path / "docs" / "peers", None)
    text = page.read_text()
    assert text.startswith(f"before\n\n{record.BEGIN}\n<picture>")
    assert text.endswith(f"{record.END}\n\nafter\n")
    assert "former words" not in text
    assert text.count("| softmax |") == 1
    for name in ("light", "dark"):
        assert f"docs/peers-{name}.svg" in text
        drawn = (tmp_path / "docs" / f"peers-{name}.svg").read_text()
        assert ET.fromstring(drawn).tag.endswith("svg")
    with pytest.raises(typer.BadParameter, match="expected a page with"):
        record.put("no marks", "text")
